"""A reader of server-sent events, as browsers read them (WHATWG HTML, section 9.2.6)."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.walk import Walk

__all__ = ["Event", "Reader", "listening"]


@dataclass(frozen=True)
class Event:
    id: str
    name: str
    data: dict[str, Any]


class Reader:
    """One open stream."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()
        self.retries: list[int] = []
        self.comments = 0

    async def next(self) -> Event | None:
        """The next event; None at the end of the stream."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(20):
            async for line in self._lines:
                name, _, value = line.partition(": ")
                if name == "retry":
                    self.retries.append(int(value))
                elif line.startswith(":"):
                    self.comments += 1
                elif line:
                    fields[name] = value
                elif fields:
                    return Event(fields["id"], fields["event"], json.loads(fields["data"]))
        return None

    async def until(self, name: str) -> list[Event]:
        """All events up to the first of this name."""
        seen: list[Event] = []
        while event := await self.next():
            seen.append(event)
            if event.name == name:
                return seen
        raise AssertionError([each.name for each in seen])

    async def rest(self) -> list[Event]:
        """All events until the stream ends."""
        seen: list[Event] = []
        while event := await self.next():
            seen.append(event)
        return seen


@asynccontextmanager
async def listening(
    walk: Walk, *, after: str | None = None, client: httpx.AsyncClient | None = None
) -> AsyncIterator[Reader]:
    """Open a session's stream; it must work."""
    headers = walk.headers | {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
    async with (client or walk.client).stream("GET", f"{walk.path}/events", headers=headers, timeout=30) as answer:
        assert answer.status_code == 200, await answer.aread()
        yield Reader(answer)
