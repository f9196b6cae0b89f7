"""Results of link attempts, taken from the guard into their sessions by whoever looks next."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from service.clock import Clock
from service.errors import AlreadyInProgress, NotFound, StoreUnavailable
from service.link.tasks import Tasks
from service.stores.guards import GuardStore
from service.stores.records import Intent, LinkRecord, SessionRecord
from service.stores.sessions import SessionStore
from service.telemetry import log

__all__ = ["Settlement", "digest_of"]

_INSIST_SECONDS: Final = 60.0
_WAIT_SECONDS: Final = 1.0
"""How long a caller waits for work that continues in the background."""

_TRY_AGAIN_SECONDS: Final = 0.25
_CLOSE_ROUNDS: Final = 10


def digest_of(accounts: Sequence[str]) -> str:
    """Names a choice: the same for the same accounts, which must be sorted."""
    return hashlib.sha256(",".join(accounts).encode()).hexdigest()


class Settlement:
    """Settles attempts, makes good what processes that died have left, and closes sessions.

    It also repeats writes that Redis must receive in the end.
    """

    def __init__(self, *, sessions: SessionStore, guards: GuardStore, tasks: Tasks, clock: Clock) -> None:
        self._sessions = sessions
        self._guards = guards
        self._tasks = tasks
        self._clock = clock

    def new_link(self, session: SessionRecord, consent: Mapping[str, str] | None = None) -> LinkRecord:
        """The one link of a session, as of now: whoever writes it down first, it has the name that others tell."""
        name = hashlib.sha256(f"link of {session.id}".encode()).hexdigest()[:24]
        return LinkRecord(f"lnk_{name}", self._clock.now(), session.account_id, consent)

    async def insist(self, work: Callable[[], Awaitable[None]], *, event: str = "link_result_not_recorded") -> None:
        """Do something in Redis for a minute however often it fails; wait for it only a moment.

        Args:
            work: It may run again after it ran, since an answer may be lost.
            event: What is logged if it failed for all that time.
        """

        async def keep_trying() -> None:
            give_up = self._clock.monotonic() + _INSIST_SECONDS
            while True:
                try:
                    return await work()
                except StoreUnavailable:
                    if self._clock.monotonic() >= give_up:
                        log.error(event)
                        raise
                    await asyncio.sleep(_TRY_AGAIN_SECONDS)

        await asyncio.wait([self._tasks.spawn(keep_trying(), name="insist on Redis")], timeout=_WAIT_SECONDS)

    async def recover(self, session: SessionRecord) -> SessionRecord:
        """Compare open intents with the guard, and settle those whose attempt is over; the session as it is then.

        Raises:
            NotFound: The session is gone.
            StoreUnavailable: Redis failed; nothing is lost.
        """
        if not session.intents and session.state != "unknown":
            return session
        for intent in session.intents:
            await self._recover_one(session, intent)
        if session.state == "unknown":
            await self._recover_unknown(session)
        return await self._read(session.id)

    async def _recover_one(self, session: SessionRecord, intent: Intent) -> None:
        # A younger attempt may be alive and waiting; an overdue one belongs to a process that is gone.
        overdue = intent.until <= self._clock.now()
        look = await self._guards.look(intent.attempt, session.account_id, intent.choice, void=overdue)
        now = self._clock.now()
        match look.verdict:
            case "done":
                link = self.new_link(session)
                await self._sessions.settle_link(session.id, intent, "linked", now=now, link=link)
            case "unknown":
                await self._sessions.settle_link(session.id, intent, "unknown", now=now, unclear=look.attempts)
            case "refused" | "voided":
                await self._sessions.settle_link(session.id, intent, "open", now=now)
            case "busy" | "unsent":
                pass

    async def _recover_unknown(self, session: SessionRecord) -> None:
        """A clear answer may have come late, or to an attempt of another session and for a part of this choice."""
        for attempt in session.unclear:
            look = await self._guards.look(attempt, session.account_id, session.choice, void=False)
            now = self._clock.now()
            intent = Intent(attempt, now, digest_of(session.choice), session.choice)
            if look.verdict == "done":
                link = self.new_link(session)
                await self._sessions.settle_link(session.id, intent, "linked", now=now, link=link)
            elif look.verdict in {"refused", "unsent", "voided"}:
                await self._sessions.settle_link(session.id, intent, "open", now=now)

    async def close(self, asked: SessionRecord) -> SessionRecord:
        """End a session at the person's wish, or leave it as it has ended; nothing is sent for it afterwards.

        Raises:
            AlreadyInProgress: A link call may be under way.
            NotFound: The session is gone, or another browser's by now.
        """
        for _ in range(_CLOSE_ROUNDS):
            session = await self.recover(await self._read(asked.id))
            if session.browser != asked.browser:
                raise NotFound
            if session.state == "unknown" and session.intents:
                raise AlreadyInProgress("A choice of this session is being linked again")
            if session.state != "open":
                return session
            voided = [intent.attempt for intent in session.intents if await self._void(session, intent)]
            if await self._sessions.close(session, now=self._clock.now(), voided=voided) != "intents":
                return await self.recover(await self._read(session.id))
        raise AlreadyInProgress

    async def _void(self, session: SessionRecord, intent: Intent) -> bool:
        look = await self._guards.look(intent.attempt, session.account_id, intent.choice, void=True)
        if look.verdict == "busy":
            raise AlreadyInProgress("A choice of this session is being linked")
        # Any other verdict is settled by the next round's recovery.
        return look.verdict == "voided"

    async def _read(self, session_id: str) -> SessionRecord:
        session = await self._sessions.read(session_id)
        if session is None:
            raise NotFound
        return session
