"""The line to Redis, with a switch in it: whole, dead, silent, deaf or slow."""

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

__all__ = ["RedisLine"]

Trouble = Literal["black_hole", "lost_replies", "refused"]


class RedisLine:
    """A proxy on a unix socket before the real server.

    Attributes:
        trouble: What happens to bytes from now on; None lets them through. In a black hole nothing arrives on either
            side, `lost_replies` lets commands through and drops what comes back.
        delay_seconds: How late replies are.
        lose: So many chunks of replies are dropped, then all is well.
    """

    def __init__(self, target: str) -> None:
        self._target = unquote(urlsplit(target).path)
        self._home = Path(tempfile.mkdtemp(prefix="line-"))
        self._address = self._home / "redis.sock"
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.trouble: Trouble | None = None
        self.delay_seconds = 0.0
        self.lose = 0
        self._lost: Counter[bytes] = Counter()
        self._lose_each = 0
        self.lost = asyncio.Event()
        self.accepted = 0

    @property
    def url(self) -> str:
        return f"unix://{self._address}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._carry, self._address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()
        shutil.rmtree(self._home, ignore_errors=True)

    async def cut(self) -> None:
        """No server is there any more: connections break, new ones are refused."""
        self.trouble = "refused"
        await self._close()

    async def heal(self) -> None:
        """All is well again."""
        was_refused, self.trouble, self.delay_seconds = self.trouble == "refused", None, 0.0
        if was_refused:
            self._address.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._carry, self._address)
        else:
            self.break_connections()  # what a silent line has swallowed does not come back

    @contextmanager
    def losing_replies(self, *, each: int = 1) -> Iterator[None]:
        """Drop the first replies to each batch that may change something; the same batch, sent again, is answered."""
        self._lost.clear()
        self._lose_each = each
        try:
            yield
        finally:
            self._lose_each = 0

    def break_connections(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self.break_connections()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        self._writers |= {writer, far_writer}
        if self.trouble == "refused":  # it was cut while this connection was being made
            self.break_connections()
        deaf = asyncio.Event()
        try:
            there = asyncio.create_task(self._pump(reader, far_writer, deaf, replies=False))
            back = asyncio.create_task(self._pump(far_reader, writer, deaf, replies=True))
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
            there.cancel()
            back.cancel()
            await asyncio.wait({there, back})
        finally:
            for each in (writer, far_writer):
                self._writers.discard(each)
                each.transport.abort()
            self._tasks.discard(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, deaf: asyncio.Event, *, replies: bool
    ) -> None:
        """Carry bytes one way; while `deaf` is set, what comes back on this connection is dropped."""
        with suppress(OSError):
            while data := await reader.read(65536):
                if self.trouble == "black_hole" or (replies and self.trouble == "lost_replies"):
                    continue
                if not replies:
                    deaf.clear()
                    # A new connection's greeting changes nothing.
                    changes = b"EVAL" in data or b"\r\nDEL\r\n" in data
                    if changes and self._lost[data] < self._lose_each:
                        self._lost[data] += 1
                        deaf.set()
                elif deaf.is_set():
                    self.lost.set()
                    continue
                if replies and self.lose > 0:
                    self.lose -= 1
                    self.lost.set()
                    continue
                if replies and self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                writer.write(data)
                await writer.drain()
