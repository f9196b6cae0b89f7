"""The line to one caller: answers go out over it whole, damaged, late or not at all."""

import asyncio
import socket
import struct
from typing import Final

from starlette.types import Receive, Scope, Send

from service.sandbox.answers import Answer, Headers

__all__ = ["EXTENSION", "Line"]

EXTENSION: Final = "omniconnect.sandbox"
"""ASGI extension by which the sandbox's own server hands out the transport of a request."""

CHUNK_BYTES: Final = 64 * 1024


class Line:
    """One request's connection.

    Whole answers go through ASGI. Breaking a connection needs its transport, which only SandboxServer provides.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send

    async def read_body(self) -> bytes | None:
        """The whole body, or None when the caller left before its end."""
        chunks: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return None
            chunks.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(chunks)

    async def send(self, answer: Answer) -> None:
        """Answer as a well-behaved server does, chunk by chunk when it is long."""
        await self.send_head(answer.status, answer.headers)
        for start in range(0, len(answer.body), CHUNK_BYTES):
            await self.send_part(answer.body[start : start + CHUNK_BYTES])
        await self.send_part(b"", last=True)

    async def send_head(self, status: int, headers: list[tuple[bytes, bytes]] | Headers) -> None:
        """Start an answer."""
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send_part(self, body: bytes, *, last: bool = False) -> None:
        """Go on with an answer."""
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def pause(self, seconds: float) -> bool:
        """Wait, but no longer than the caller does; false when the caller has left."""
        try:
            await asyncio.wait_for(self.gone(), seconds)
        except TimeoutError:
            return True
        return False

    async def gone(self) -> None:
        """Wait until the connection has ended: the caller left, or the server stops."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def cut(self, raw: bytes = b"") -> None:
        """Send these bytes and nothing more, then close as a process does that exits."""
        transport = self._transport()
        transport.write(raw)
        transport.close()
        await self.gone()

    async def reset(self) -> None:
        """Break the connection so that the caller sees it (RST)."""
        transport = self._transport()
        _close_hard(transport.get_extra_info("socket").fileno())
        transport.abort()
        await self.gone()

    def _transport(self) -> asyncio.Transport:
        extension = self._scope.get("extensions", {}).get(EXTENSION)
        if extension is None:
            raise RuntimeError("connections can be broken only under SandboxServer")
        transport: asyncio.Transport = extension["transport"]
        return transport


def _close_hard(descriptor: int) -> None:
    """Let the next close of the socket send RST, by way of a second handle because uvloop keeps its own to itself."""
    with socket.socket(fileno=socket.dup(descriptor)) as handle:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
