"""What is written leaves in one piece, and nothing of it is lost."""

import asyncio
from typing import Any

from starlette.types import Receive, Scope, Send
from typing_extensions import override
from uvicorn import Config
from uvicorn.server import ServerState

from service.protocol import HttpProtocol
from tests.processes import eventually


class Recording(asyncio.Transport):
    """A transport that only writes down what is done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[bytes | str] = []

    @override
    def write(self, data: Any) -> None:
        self.done.append(bytes(data))

    @override
    def close(self) -> None:
        self.done.append("closed")

    @override
    def is_closing(self) -> bool:
        return "closed" in self.done


async def hello(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


def connected() -> tuple[HttpProtocol, Recording]:
    config = Config(hello, lifespan="off", log_config=None, access_log=False, server_header=False, date_header=False)
    config.load()
    protocol = HttpProtocol(config, ServerState(), app_state={})
    transport = Recording()
    protocol.connection_made(transport)
    return protocol, transport


HELLO = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
GOODBYE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"


async def test_head_and_body_leave_in_one_piece() -> None:
    protocol, transport = connected()
    protocol.data_received(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    await eventually(lambda: bool(transport.done))
    protocol.data_received(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    await eventually(lambda: len(transport.done) > 1)
    assert transport.done == [HELLO, HELLO]


async def test_what_was_written_leaves_before_the_connection_closes() -> None:
    protocol, transport = connected()
    protocol.data_received(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    await eventually(transport.is_closing)
    assert transport.done == [GOODBYE, "closed"]


async def test_what_was_written_leaves_before_the_other_side_has_ended() -> None:
    protocol, transport = connected()
    protocol.transport.write(HELLO)
    protocol.eof_received()
    assert transport.done == [HELLO]


async def test_nothing_is_written_to_a_connection_that_broke_meanwhile() -> None:
    protocol, transport = connected()
    protocol.transport.write(HELLO)
    transport.close()
    over = asyncio.Event()
    asyncio.get_running_loop().call_soon(over.set)
    await over.wait()
    assert transport.done == ["closed"]
