"""What happens in a session, as it happens: streams that can be broken off anywhere and resumed at any replica."""

import random
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from service.clock import Clock, Millis
from service.errors import NotFound, RateLimited, StoreUnavailable
from service.link.changes import Changes, Following
from service.link.flow import State, state_of
from service.link.settle import Settlement
from service.stores.records import EventRecord, SessionRecord
from service.stores.sessions import SessionStore

__all__ = ["Events", "News", "Stream", "event_id"]

MOST_STREAMS: Final = 3
HEARTBEAT_SECONDS: Final = 15.0
LIFE_SECONDS: Final = 300.0
_HOLD_SECONDS: Final = 45.0
"""How long a place stays held when its process dies; renewed at every second heartbeat."""

_RETRY_MS: Final = (1000, 3000)
"""Until a broken stream is opened again, spread so that all who lost one process do not come back at once."""

_EVENT_ID: Final = re.compile(r"evt_([0-9a-f]{32})_([0-9]{6})")
_OVER: Final = frozenset({State.LINKED, State.CLOSED, State.EXPIRED})


@dataclass(frozen=True, slots=True)
class News:
    """What to tell next: events with the session as it is by now; none of them is a heartbeat.

    Attributes:
        retry_ms: When to come back if the stream breaks; told with the first news, and with the last.
    """

    events: Sequence[EventRecord]
    session: SessionRecord | None
    retry_ms: int | None = None


def event_id(session: SessionRecord, event: EventRecord) -> str:
    """The same at every replica, and sortable within its session."""
    return f"evt_{session.id.removeprefix('ses_')}_{event.number:06d}"


class Events:
    """Opens streams.

    Args:
        settlements: By tenant.
    """

    def __init__(
        self, *, sessions: SessionStore, settlements: Mapping[str, Settlement], changes: Changes, clock: Clock
    ) -> None:
        self._sessions = sessions
        self._settlements = settlements
        self._changes = changes
        self._clock = clock

    async def open(self, session: SessionRecord, after: str | None) -> "Stream | None":
        """A stream of a session that was just read; None if nothing can follow `after`.

        Args:
            session: Whose holder asks.
            after: Id of the last event that was seen, if any; one that is not of this session counts as none.

        Raises:
            RateLimited: All places are taken.
            StoreUnavailable: Redis failed.
        """
        seen = _number(session, after)
        if seen is not None and _is_over(session, self._clock.now()) and seen >= _last(session):
            return None
        stream = Stream(
            session,
            seen,
            sessions=self._sessions,
            settlement=self._settlements[session.tenant],
            changes=self._changes,
            clock=self._clock,
        )
        if not await stream.hold():
            raise RateLimited(
                policy="streams", limit=MOST_STREAMS, window=int(LIFE_SECONDS), retry_after=int(HEARTBEAT_SECONDS)
            )
        return stream


class Stream:
    """One stream of a session's events."""

    __slots__ = ("_changes", "_clock", "_id", "_name", "_seen", "_sessions", "_settlement", "_token", "gone")

    def __init__(
        self,
        session: SessionRecord,
        seen: int | None,
        *,
        sessions: SessionStore,
        settlement: Settlement,
        changes: Changes,
        clock: Clock,
    ) -> None:
        self._id = session.id
        self._token = session.token_hash
        self._seen = seen
        self._name = secrets.token_hex(8)
        self._sessions = sessions
        self._settlement = settlement
        self._changes = changes
        self._clock = clock
        self.gone = False

    async def hold(self) -> bool:
        """Hold a place; False if all are held by others."""
        return await self._sessions.hold_stream(
            self._id, self._name, now=self._clock.now(), hold_ms=int(_HOLD_SECONDS * 1000), most=MOST_STREAMS
        )

    async def leave(self) -> None:
        """Give the place up."""
        with suppress(StoreUnavailable):
            await self._sessions.drop_stream(self._id, self._name)

    async def news(self, following: Following) -> AsyncIterator[News]:
        """All news, as they come; ends with the session, with the stream's life, and when its token is replaced."""
        now = self._clock.monotonic()
        until = now + LIFE_SECONDS * random.uniform(0.9, 1)  # noqa: S311 -- spreads load
        beat, renewal = now + HEARTBEAT_SECONDS, now + 2 * HEARTBEAT_SECONDS
        yield News((), None, _retry())
        while not self.gone:
            pause = HEARTBEAT_SECONDS
            with suppress(StoreUnavailable, NotFound):  # it goes on when Redis is back
                session = await following.session()
                if session is None or session.token_hash != self._token:
                    return
                fresh = self._fresh(session)
                if fresh:
                    self._seen = fresh[-1].number
                    yield News(fresh, session)
                if _is_over(session, self._clock.now()):
                    return
                state = state_of(session, self._clock.now())
                if state is State.OPEN:
                    pause = max(1.0, (session.expires - self._clock.now()) / 1000)
                await self._make_good(session, state, beat)
            now = self._clock.monotonic()
            if now >= renewal:
                renewal = now + HEARTBEAT_SECONDS
                with suppress(StoreUnavailable):
                    # Others take it while Redis is away for longer than it was held, or this process stands still.
                    until = until if await self.hold() else now
                    renewal += HEARTBEAT_SECONDS
            if now >= until or self._changes.draining:
                yield News((), None, _retry())
                return
            if now >= beat:
                beat = now + HEARTBEAT_SECONDS
                yield News((), None)
            await following.changed(min(beat - now, until - now, pause))

    async def _make_good(self, session: SessionRecord, state: State, beat: float) -> None:
        """Write down what nobody else may be there to: that its time is over, and what became of a link.

        Raises:
            NotFound, StoreUnavailable: It is gone, or Redis failed.
        """
        if state is State.EXPIRED:
            await self._sessions.expire(session.id, now=self._clock.now())
        elif state is State.LINKING and self._clock.monotonic() >= beat:
            await self._settlement.recover(session)  # its process may have died

    def _fresh(self, session: SessionRecord) -> Sequence[EventRecord]:
        if self._seen is None:
            # Of what was before, only where it has led to.
            return session.events[-1:]
        return [event for event in session.events if event.number > self._seen]


def _retry() -> int:
    return random.randint(*_RETRY_MS)  # noqa: S311 -- spreads load


def _last(session: SessionRecord) -> int:
    return max((event.number for event in session.events), default=0)


def _is_told(session: SessionRecord) -> bool:
    """Whether its expiry is written down; one from a version that wrote no events never is."""
    events = session.events
    return not events or any(event.name == "session.expired" for event in events)


def _number(session: SessionRecord, after: str | None) -> int | None:
    parts = _EVENT_ID.fullmatch(after or "")
    if parts is None or f"ses_{parts[1]}" != session.id or int(parts[2]) > _last(session):
        return None
    return int(parts[2])


def _is_over(session: SessionRecord, now: Millis) -> bool:
    state = state_of(session, now)
    return state in _OVER and (state is not State.EXPIRED or _is_told(session))
