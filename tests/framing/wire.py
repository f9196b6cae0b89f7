"""HTTP/1.1 as bytes: what is sent in chosen segments, and a strict reader of the answers."""

import json
import re
import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from service.settings import SANDBOX_API_KEY

__all__ = [
    "CRLF",
    "HOST",
    "JSON",
    "KEY",
    "LAST",
    "Answer",
    "Connection",
    "chunked",
    "head",
    "ids",
    "named",
    "sized",
]

CRLF: Final = b"\r\n"
HOST: Final = b"Host: bff.example"
KEY: Final = b"Authorization: Bearer " + SANDBOX_API_KEY.encode()
JSON: Final = b"Content-Type: application/json"
_SECONDS: Final = 10.0
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [\t -~]*")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\t -~\x80-\xff]*)")
_INTERIM: Final = 200
_WITHOUT_BODY: Final = frozenset({204, 304})


def head(*lines: bytes) -> bytes:
    """A request line, header lines, and the empty line after them."""
    return CRLF.join([*lines, b"", b""])


def named(name: str) -> bytes:
    """A header line; the service repeats the name in its answer."""
    return b"X-Request-Id: " + name.encode()


def sized(body: bytes) -> tuple[bytes, bytes]:
    """The header line that announces a body by its length, and the body as it is sent."""
    return b"Content-Length: %d" % len(body), body


def chunked(body: bytes) -> tuple[bytes, bytes]:
    """The header line that announces chunks, and the body in two of them."""
    parts = [body[: len(body) // 2], body[len(body) // 2 :]]
    encoded = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part)
    return b"Transfer-Encoding: chunked", encoded + b"0\r\n\r\n"


LAST: Final = head(b"GET /livez HTTP/1.1", HOST, b"Connection: close", named("last"))
"""The request that ends a connection in order."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A final answer, and the statuses of the interim ones before it."""

    status: int
    headers: dict[str, str]
    body: bytes
    interim: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        return self.headers.get("x-request-id", "")

    @property
    def closes(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ids(answers: Sequence[Answer]) -> list[str]:
    """Which requests were answered, in order."""
    return [answer.id for answer in answers]


class Connection:
    """A TCP connection that reads while it sends, so that neither side waits for the other."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._received = bytearray()
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        """Close without an orderly end."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._socket.close()

    def send(self, segment: bytes) -> None:
        """Send a segment; what the other side does not take any more is dropped, as a network would."""
        rest = memoryview(segment)
        while rest and not self._ended:
            ready = self._wait(select.POLLIN | select.POLLOUT)
            if ready & select.POLLIN:
                self._receive()
            if ready & select.POLLOUT:
                try:
                    rest = rest[self._socket.send(rest) :]
                except BlockingIOError:
                    continue
                except ConnectionError:
                    return

    def offer(self, data: bytes, settle: Callable[[], None]) -> None:
        """Send as much as the other side takes, and let it read in between."""
        rest = memoryview(data)
        while rest and self._ready(select.POLLOUT):
            try:
                while rest:
                    rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                settle()
            except ConnectionError:
                return

    def end(self) -> None:
        """Send no more; what the service has not answered by now, it need not answer."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def answer(self) -> Answer | None:
        """The next final answer; None at the end of the connection. All bytes before the end belong to answers."""
        interim: list[int] = []
        while True:
            if not self._received and not self._more():
                assert not interim, "the connection ended after an interim answer"
                return None
            status, headers = self._head()
            if status >= _INTERIM:
                break
            interim.append(status)
        body = b"" if status in _WITHOUT_BODY else self._body(headers)
        return Answer(status, headers, body, tuple(interim))

    def rest(self) -> list[Answer]:
        """All answers until the service closes the connection."""
        answers: list[Answer] = []
        while answer := self.answer():
            answers.append(answer)
        return answers

    def wait_for(self, part: bytes) -> None:
        """Read until this arrives, and leave it to be read as part of an answer."""
        while part not in self._received:
            assert self._more(), f"the connection ended with {bytes(self._received)!r}"

    def starts_with(self, part: bytes) -> bool:
        return self._received.startswith(part)

    def _head(self) -> tuple[int, dict[str, str]]:
        status_line, *fields = self._until(b"\r\n\r\n").split(CRLF)
        status = _STATUS_LINE.fullmatch(status_line)
        assert status, status_line
        headers: dict[str, str] = {}
        for line in fields:
            parts = _FIELD.fullmatch(line)
            assert parts, line
            name = parts[1].decode().lower()
            assert name not in headers, line
            headers[name] = parts[2].decode("latin-1")
        return int(status[1]), headers

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("connection", "").lower() == "close" and not headers.keys() & {
            "content-length",
            "transfer-encoding",
        }:
            return self._everything()
        assert ("content-length" in headers) != ("transfer-encoding" in headers), headers
        if "content-length" in headers:
            assert re.fullmatch("[0-9]+", headers["content-length"]), headers
            return self._exactly(int(headers["content-length"]))
        assert headers["transfer-encoding"] == "chunked", headers
        body = b""
        while size := self._chunk_size():
            body += self._exactly(size)
            assert self._exactly(2) == CRLF
        assert self._exactly(2) == CRLF
        return body

    def _everything(self) -> bytes:
        while self._more():
            pass
        return self._exactly(len(self._received))

    def _chunk_size(self) -> int:
        line = self._until(CRLF)
        assert re.fullmatch(b"[0-9a-f]+", line), line
        return int(line, 16)

    def _until(self, mark: bytes) -> bytes:
        self.wait_for(mark)
        end = self._received.index(mark)
        found = self._exactly(end)
        self._exactly(len(mark))
        return found

    def _exactly(self, count: int) -> bytes:
        while len(self._received) < count:
            assert self._more(), f"the connection ended within an answer: {bytes(self._received)!r}"
        found = bytes(self._received[:count])
        del self._received[:count]
        return found

    def _more(self) -> bool:
        while not self._ended:
            self._wait(select.POLLIN)
            if self._receive():
                return True
        return False

    def _receive(self) -> bool:
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return False
        except ConnectionError:
            data = b""
        self._received += data
        self._ended = not data
        return bool(data)

    def _wait(self, events: int) -> int:
        happened = self._ready(events, seconds=_SECONDS)
        assert happened, "the service neither answers nor closes"
        return happened

    def _ready(self, events: int, *, seconds: float = 0) -> int:
        poll = select.poll()
        poll.register(self._socket, events)
        happened = sum(event for _, event in poll.poll(seconds * 1000))
        return happened | events if happened & (select.POLLERR | select.POLLHUP) else happened
