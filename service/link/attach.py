"""Step 4: link a choice of service accounts, with one call to the vendor per choice whatever is retried."""

import asyncio
import secrets
from typing import Final

from service.clock import Clock, Millis
from service.errors import (
    AlreadyInProgress,
    IdempotencyKeyReused,
    NotFound,
    OutcomeUnknown,
    ServiceError,
    SessionClosed,
    SessionExpired,
    StoreUnavailable,
    TooManyAttempts,
    UpstreamCredentialsRejected,
)
from service.link.accounts import Accounts
from service.link.attempt import Attempt, Attempts, Choice, ClaimLost, Linked
from service.link.flow import Event, State, move, state_of
from service.link.settle import Settlement
from service.link.tasks import Tasks
from service.stores.records import Intent, SessionRecord
from service.stores.sessions import Begun, SessionStore
from service.upstream.client import TokenRejected

__all__ = ["Attach"]

MOST_INTENTS: Final = 200
"""Callers of one session that wait for the same link at the same time."""

_MOST_TRIES: Final = 4
"""One more for a token that was refused, and some for processes that are paused at the wrong moment."""

MOST_IDEMPOTENCY_KEYS: Final = 100
"""Names that one session may give its requests; each stays in its hash."""

_ANSWER_SECONDS: Final = 55.0
"""A caller is answered within this; common load balancers give up after 60."""

_CALL_SECONDS: Final = 16.0
"""Of these, what is kept for the mark, the bounded call and its result: none of them may be cut."""

_ATTEMPT_LIFE_MS: Final = 120_000
"""Longer than any attempt can take; an older intent belongs to a process that is gone."""


class Attach:
    """Announces attempts and runs each in a task of its own."""

    def __init__(
        self,
        *,
        accounts: Accounts,
        sessions: SessionStore,
        attempts: Attempts,
        settlement: Settlement,
        tasks: Tasks,
        clock: Clock,
        answer_seconds: float = _ANSWER_SECONDS,
    ) -> None:
        self._accounts = accounts
        self._sessions = sessions
        self._attempts = attempts
        self._settlement = settlement
        self._tasks = tasks
        self._clock = clock
        self._answer_seconds = answer_seconds

    async def link(self, session: SessionRecord, choice: Choice) -> Linked:
        """Link a choice, or join whoever is linking it, or tell that it is linked.

        Raises:
            SessionClosed, SessionExpired: The session has ended, or has linked another choice.
            NotFound: An account that this session was never told of.
            AlreadyInProgress: Another choice is being linked; or this one, and it takes too long to wait for it.
            IdempotencyKeyReused: The same name for a different request.
            TooManyAttempts: The session has given its requests too many names.
            UpstreamError: The vendor refused; nothing is linked.
            OutcomeUnknown: The call was sent, now or earlier, for this choice or another, and no clear answer came.
            ServiceError: Nothing was sent.
        """
        state = state_of(session, self._clock.now())
        if state in {State.CLOSED, State.EXPIRED}:
            move(state, Event.LINK)
        if not self._accounts.learned(session).issuperset(choice.accounts):
            raise NotFound
        linking = self._tasks.spawn(self._link(session, choice), name="link")
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await asyncio.shield(linking)
        except TimeoutError as error:
            raise AlreadyInProgress from error  # it goes on, and whoever asks again joins it

    async def _link(self, session: SessionRecord, choice: Choice) -> Linked:
        """Try, and try again under another name as long as it is certain that nothing ran."""
        mark_by = self._clock.monotonic() + self._answer_seconds - _CALL_SECONDS
        tokens_refused = 0
        for tries in range(_MOST_TRIES):
            if tries and self._clock.monotonic() >= mark_by:
                break
            try:
                return await self._try(session, choice, mark_by)
            except TokenRejected as error:
                tokens_refused += 1
                if tokens_refused > 1:
                    raise UpstreamCredentialsRejected from error
            except ClaimLost:
                continue
        raise AlreadyInProgress

    async def _try(self, session: SessionRecord, choice: Choice, mark_by: float) -> Linked:
        attempt_id = f"att_{secrets.token_hex(12)}"
        intent = Intent(attempt_id, Millis(self._clock.now() + _ATTEMPT_LIFE_MS), choice.digest, choice.accounts)
        begun = await self._begin(session, intent, choice)
        if begun in {"other", "unknown"}:
            # Perhaps only the remains of a process that died.
            await self._settlement.recover(session if session.intents else await self._read(session.id))
            begun = await self._begin(session, intent, choice)
        if begun == "linked":
            linked = await self._read(session.id)
            if linked.link is None:
                raise NotFound
            return Linked(linked.link, linked.choice, replayed=True)
        if begun == "unknown":
            raise OutcomeUnknown((await self._read(session.id)).unclear)
        if begun == "keys":
            seconds = max(1, -(-(session.expires - self._clock.now()) // 1000))
            raise TooManyAttempts.keys(limit=MOST_IDEMPOTENCY_KEYS, seconds=seconds)
        if begun != "begun":
            raise _refusal(begun)
        return await self._attempts.run(Attempt(session, choice, intent, mark_by))

    async def _begin(self, session: SessionRecord, intent: Intent, choice: Choice) -> Begun:
        try:
            return await self._sessions.begin_link(
                session,
                intent,
                now=self._clock.now(),
                most_intents=MOST_INTENTS,
                most_keys=MOST_IDEMPOTENCY_KEYS,
                idempotency=choice.idempotency,
            )
        except StoreUnavailable:
            # It may have been announced all the same, and nobody will run it.
            await self._settlement.insist(lambda: self._withdraw(session, intent))
            raise

    async def _withdraw(self, session: SessionRecord, intent: Intent) -> None:
        await self._sessions.settle_link(session.id, intent, "open", now=self._clock.now())

    async def _read(self, session_id: str) -> SessionRecord:
        session = await self._sessions.read(session_id)
        if session is None:
            raise NotFound
        return session


def _refusal(begun: Begun) -> ServiceError:
    match begun:
        case "missing":
            return NotFound()
        case "reused":
            return IdempotencyKeyReused()
        case "expired":
            return SessionExpired()
        case "other":
            return AlreadyInProgress("Another choice of this session is being linked")
        case _:
            return SessionClosed()
