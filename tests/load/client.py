"""A client that costs next to nothing, so that thousands of callers fit on the load's core."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from httptools import HttpResponseParser
from typing_extensions import override

__all__ = ["Answer", "Broken", "Connection", "Stream", "request_bytes"]

_ANSWER_SECONDS: Final = 60.0
_TAIL_BYTES: Final = 64


class Broken(Exception):
    """A connection that ended before the answer did, or an answer that nobody expected."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body, decoded."""
        return orjson.loads(self.body)


def request_bytes(
    method: str,
    target: str,
    *,
    token: str | None = None,
    body: object = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """A request as it goes over the line."""
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    encoded = b"" if body is None else orjson.dumps(body)
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(encoded)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + encoded


class Connection(asyncio.Protocol):
    """A connection that is kept alive, for one request at a time; opened by the first, and again when it was closed."""

    def __init__(self, origin: str) -> None:
        self._address = _address(origin)
        self._transport: asyncio.Transport | None = None
        self._parser = HttpResponseParser(self)
        self._chunks: list[bytes] = []
        self._answer: asyncio.Future[Answer] | None = None

    @classmethod
    @asynccontextmanager
    async def to(cls, origin: str) -> AsyncIterator["Connection"]:
        """A connection for as long as the block runs."""
        connection = cls(origin)
        try:
            yield connection
        finally:
            connection.close()

    async def open(self) -> None:
        """Connect, unless that was done."""
        if self._transport is None:
            loop = asyncio.get_running_loop()
            self._transport, _ = await loop.create_connection(lambda: self, *self._address)

    async def send(
        self,
        method: str,
        target: str,
        *,
        token: str | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request and wait for its answer.

        Raises:
            Broken: No whole answer came.
        """
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self.open()
                if self._transport is None:
                    raise Broken("closed at once")
                self._answer = asyncio.get_running_loop().create_future()
                self._transport.write(request_bytes(method, target, token=token, body=body, headers=headers))
                return await self._answer
        except (OSError, TimeoutError) as error:
            raise Broken(f"{method} {target}: {type(error).__name__}") from error
        finally:
            self._answer = None

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.close()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._parser = HttpResponseParser(self)

    @override
    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Broken("the connection was closed"))

    def on_message_begin(self) -> None:
        self._chunks = []

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(status, b"".join(self._chunks)))
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()
            self._transport = None


class Stream(asyncio.Protocol):
    """Server-sent events of one session, read as far as to see one of them come.

    Args:
        until: The line that is waited for.
        told: Called once with the time when it came.

    Attributes:
        opened: Done when the stream has begun.
        finished: Done when the line came, with the time.
    """

    def __init__(self, until: bytes, told: Callable[[float], None] | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.finished: asyncio.Future[float] = loop.create_future()
        self._until = until
        self._told = told
        self._tail = b""
        self._transport: asyncio.Transport | None = None

    async def open(self, origin: str, target: str, *, token: str) -> None:
        """Connect and ask; returns when the stream has begun.

        Raises:
            Broken: It was refused.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                self._transport, _ = await loop.create_connection(lambda: self, *_address(origin))
                self._transport.write(
                    request_bytes("GET", target, token=token, headers={"Accept": "text/event-stream"})
                )
                await self.opened
        except (OSError, TimeoutError) as error:
            raise Broken(f"{target}: {type(error).__name__}") from error

    def close(self) -> None:
        """Leave."""
        if self._transport is not None:
            self._transport.close()

    @override
    def data_received(self, data: bytes) -> None:
        seen = self._tail + data
        if not self.opened.done():
            if seen.startswith(b"HTTP/1.1 200"):
                self.opened.set_result(None)
            else:
                self.opened.set_exception(Broken(seen[:200].decode(errors="replace")))
        if self._until in seen and not self.finished.done():
            now = time.monotonic()
            self.finished.set_result(now)
            if self._told is not None:
                self._told(now)
        self._tail = seen[-_TAIL_BYTES:]

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        for each in (self.opened, self.finished):
            if not each.done():
                each.set_exception(Broken("the stream was closed"))
                each.exception()  # whoever waits is told; nobody else needs to be


def _address(origin: str) -> tuple[str, int]:
    parts = urlsplit(origin)
    return parts.hostname or "", parts.port or 80
