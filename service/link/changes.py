"""Sessions as they change, for all in this process who wait: one subscription, and one read for each change."""

import asyncio
import random
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from service.clock import Clock
from service.errors import StoreUnavailable
from service.link.tasks import Tasks
from service.stores.notices import Notices
from service.stores.records import SessionRecord
from service.stores.sessions import SessionStore

__all__ = ["LOOK_AGAIN_SECONDS", "Changes", "Following"]

LOOK_AGAIN_SECONDS: Final = 10.0
"""A notice may be lost; so old may be what is known when somebody looks. Streams look at every heartbeat."""

_TRY_AGAIN_SECONDS: Final = 2.0
"""After a read that failed: what the notice told is still unread."""


class Changes:
    """Who follows which session in this process.

    Attributes:
        draining: Who waits shall go: the process is about to end.
    """

    def __init__(self, *, sessions: SessionStore, notices: Notices, tasks: Tasks, clock: Clock) -> None:
        self.sessions = sessions
        self.notices = notices
        self.tasks = tasks
        self.clock = clock
        self.draining = False
        self._rooms: dict[str, _Room] = {}

    def follow(self, session_id: str) -> "Following":
        """Follow a session: what is read from now on is as new as this call, or newer."""
        room = self._rooms.get(session_id)
        if room is None:
            room = self._rooms[session_id] = _Room(self, session_id)
        return Following(room)

    def forget(self, session_id: str) -> None:
        """Nobody follows this session any more."""
        del self._rooms[session_id]

    def drain(self) -> None:
        """Let everybody who waits go."""
        self.draining = True
        for room in self._rooms.values():
            room.tell()


class Following:
    """One who follows a session."""

    __slots__ = ("_changed", "_room")

    def __init__(self, room: "_Room") -> None:
        self._room = room
        self._changed = asyncio.Event()

    def __enter__(self) -> Self:
        self._room.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._room.leave(self)

    def wake(self) -> None:
        """There is something to look at."""
        self._changed.set()

    async def changed(self, seconds: float) -> None:
        """Return when there is something to look at, or after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0)):
                await self._changed.wait()
        self._changed.clear()
        self._room.look_if_old()

    async def session(self) -> SessionRecord | None:
        """The session as it was read last; None if there is none.

        Raises:
            StoreUnavailable: It could not be read.
        """
        while self._room.looked_at is None:
            await self._changed.wait()
            self._changed.clear()
        if self._room.failed:
            raise StoreUnavailable
        return self._room.session


class _Room:
    """All in this process who follow one session."""

    __slots__ = ("_again", "_changes", "_followers", "_id", "_reading", "_rest", "failed", "looked_at", "session")

    def __init__(self, changes: Changes, session_id: str) -> None:
        self._changes = changes
        self._id = session_id
        self._followers: set[Following] = set()
        self._reading = False
        self._again = False
        self._rest: asyncio.TimerHandle | None = None
        self.session: SessionRecord | None = None
        self.failed = False
        self.looked_at: float | None = None

    def enter(self, follower: Following) -> None:
        if not self._followers:
            self._changes.notices.attach(self._id, self)
            self.wake()
        self._followers.add(follower)

    def leave(self, follower: Following) -> None:
        self._followers.discard(follower)
        if not self._followers:
            self._wake_up()
            self._changes.notices.detach(self._id, self)
            self._changes.forget(self._id)

    def wake(self) -> None:
        """It changed, or may have. A read that is under way may have been too early.

        After a read that failed, and without a subscription, Redis is left alone for a while: with thousands of
        sessions a process would do little else.
        """
        if self._reading:
            self._again = True
        elif self._rest is None or self._changes.notices.subscribed.is_set():
            self._look()

    def _look(self) -> None:
        self._wake_up()
        self._reading = True
        self._changes.tasks.spawn(self._read(), name="read session")

    def _sleep(self) -> None:
        """Look again later, though no notice may come any more; for nobody, it finds nobody."""
        usual = _TRY_AGAIN_SECONDS if self._changes.notices.subscribed.is_set() else LOOK_AGAIN_SECONDS
        seconds = usual * random.uniform(0.5, 1.5)  # noqa: S311 -- spreads load
        self._rest = asyncio.get_running_loop().call_later(seconds, self._look)

    def _wake_up(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def look_if_old(self) -> None:
        at = self.looked_at
        if at is not None and self._changes.clock.monotonic() - at > LOOK_AGAIN_SECONDS:
            self.wake()

    def tell(self) -> None:
        for follower in self._followers:
            follower.wake()

    async def _read(self) -> None:
        try:
            self._again = True
            while self._again and self._followers:
                self._again = False
                failed = True
                try:
                    self.session = await self._changes.sessions.read(self._id)
                    failed = False
                except StoreUnavailable:
                    pass
                finally:
                    # Whatever happened: nobody may be left waiting for a read that is over.
                    self.failed = failed
                    self.looked_at = self._changes.clock.monotonic()
                    self.tell()
                if failed:
                    return self._sleep()
        finally:
            self._reading = False
