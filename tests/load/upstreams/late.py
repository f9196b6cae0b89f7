"""An upstream that answers everything after a fixed time: `python -m tests.load.upstreams.late PORT SECONDS`.

`GET /_status` tells the number of requests so far, in the form of nginx's `stub_status`.
"""

import asyncio
import socket
import sys
from typing import Final, cast

import uvloop
from httptools import HttpRequestParser
from typing_extensions import override

from tests.load.upstreams.answers import PREFIX, answers

__all__ = ["main"]

_BACKLOG: Final = 4096
_REASONS: Final = {200: "OK", 201: "Created", 404: "Not Found"}


class _Vendor(asyncio.Protocol):
    """One connection; answers come in the order of the requests, since all take the same time."""

    requests = 0

    def __init__(self, seconds: float, table: dict[tuple[bytes, bytes], bytes]) -> None:
        self._seconds = seconds
        self._table = table
        self._loop = asyncio.get_running_loop()
        self._url = b""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._parser = HttpRequestParser(self)

    @override
    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_message_complete(self) -> None:
        type(self).requests += 1
        if self._url == b"/_status":
            self._answer(_encoded(200, f"server accepts handled requests\n 0 0 {self.requests}\n".encode()))
        else:
            answer = self._table.get((self._parser.get_method(), self._url)) or _encoded(404, b"{}")
            self._loop.call_later(self._seconds, self._answer, answer)

    def _answer(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


def _encoded(status: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


async def _serve(port: int, seconds: float) -> None:
    table = {
        (method.encode(), f"{PREFIX}{path}".encode()): _encoded(*answer) for (method, path), answer in answers().items()
    }
    listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Vendor(seconds, table), sock=listener, backlog=_BACKLOG)
    await server.serve_forever()


def main() -> None:
    """Serve until a signal ends it."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1]), float(sys.argv[2])))


if __name__ == "__main__":
    main()
