"""A vendor that says exactly the bytes that a test wants, and counts connections."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import orjson

__all__ = ["ROUTES", "RawVendor", "Seen", "json_answer", "raw"]

Script = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]

ROUTES: Final = {
    "token": ("POST", r"/access-token"),
    "companies": ("GET", r"/utility-companies"),
    "jobs": ("POST", r"/jobs"),
    "job": ("GET", r"/jobs/[^/]+"),
    "account": ("GET", r"/utility-user-account/[^/]+"),
    "batch": ("POST", r"/[^/]+/utility-service-accounts/batch"),
}


def raw(status: int, body: bytes, *headers: str) -> bytes:
    """A complete answer."""
    head = [f"HTTP/1.1 {status} Said", f"content-length: {len(body)}", "content-type: application/json", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def json_answer(status: int, content: object) -> bytes:
    return raw(status, orjson.dumps(content))


@dataclass
class Seen:
    """One request as it arrived."""

    connection: int
    route: str | None
    line: str
    head: str
    body: bytes


@dataclass
class RawVendor:
    """Answers each route with what `says` holds for it; by default all goes well, at once."""

    says: dict[str, Script] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        well: dict[str, Script] = {
            "token": json_answer(200, {"id": "acc", "token": "tok"}),
            "companies": json_answer(200, [{"id": "c1", "name": "One"}]),
            "jobs": json_answer(201, {"id": "job1"}),
            "job": json_answer(200, {"status": "success", "response": {"accountId": "ua1"}}),
            "account": json_answer(200, {"id": "ua1", "name": "Me", "serviceAccounts": [{"id": "sa1"}]}),
            "batch": json_answer(201, {}),
        }
        self.says = well | self.says

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, route: str) -> int:
        return sum(each.route == route for each in self.seen)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        connection = self.connections
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                    length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                    body = await reader.readexactly(int(length[1])) if length else b""
                    line = head.partition("\r\n")[0]
                    route = _route_of(line)
                    self.seen.append(Seen(connection, route, line, head, body))
                    script = self.says.get(route or "other", raw(404, b"{}"))
                    if isinstance(script, bytes):
                        writer.write(script)
                    else:
                        await script(writer)
                    await writer.drain()
        except asyncio.CancelledError:
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)


def _route_of(line: str) -> str | None:
    method, path, _ = line.split(" ", 2)
    for route, (wanted, pattern) in ROUTES.items():
        if method == wanted and re.fullmatch(pattern, path):
            return route
    return None
