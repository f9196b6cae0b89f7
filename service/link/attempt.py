"""One attempt to link one choice: claim, token, mark, one call, result into the guard, result into the session.

The mark stands before the call, so that a process that dies leaves "unknown" behind and never "free"; a confirmation
is recorded whoever holds the account by then; a caller who leaves changes nothing, since an attempt has its own task.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from service.clock import Clock
from service.errors import (
    AlreadyInProgress,
    OutcomeUnknown,
    ServiceError,
    SessionClosed,
    StoreUnavailable,
    UpstreamCredentialsRejected,
    UpstreamError,
)
from service.link.settle import Settlement
from service.link.token import TokenSource
from service.stores.guards import Claim, GuardStore
from service.stores.notices import Notices
from service.stores.records import Intent, LinkRecord, SessionRecord
from service.stores.sessions import SessionStore
from service.telemetry import log
from service.upstream.client import LinkRefused, LinkUnclear, TokenRejected, UpstreamClient

__all__ = ["Attempt", "Attempts", "Choice", "Linked", "Patience"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a caller wants linked.

    Attributes:
        accounts: Service account ids, sorted, each once.
        resend: Unclear attempts that the caller was told of, and decided to send again in spite of.
        idempotency: Name and fingerprint of the request, if the caller gave it a name.
        consent: What the person agreed to, as the host told us.
        digest: The same for the same accounts.
    """

    accounts: Sequence[str]
    resend: Sequence[str] = ()
    idempotency: tuple[str, str] | None = None
    consent: Mapping[str, str] | None = None
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha256(",".join(self.accounts).encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class Linked:
    """A choice that is linked; `replayed` if it already was before this request."""

    link: LinkRecord
    accounts: Sequence[str]
    replayed: bool


@dataclass(frozen=True, slots=True)
class Patience:
    """Bounds of one attempt, in seconds.

    Attributes:
        others: Waiting for another attempt at the same choice.
        look_again: While waiting for a notice that may have been lost.
        mark: An answer to the mark that took longer came to a process that was paused: its lease may be over.
    """

    others: float = 20.0
    look_again: float = 0.25
    mark: float = 1.0


@dataclass(slots=True)
class Attempt:
    """What one attempt knows of itself."""

    session: SessionRecord
    choice: Choice
    intent: Intent
    waited_for: str | None = None

    @property
    def id(self) -> str:
        """Its name in the guard."""
        return self.intent.attempt

    @property
    def account_id(self) -> str:
        """The upstream account that it links to."""
        return self.session.account_id


class Attempts:
    """Runs attempts whose intent has been announced."""

    def __init__(
        self,
        *,
        client: UpstreamClient,
        tokens: TokenSource,
        sessions: SessionStore,
        guards: GuardStore,
        settlement: Settlement,
        notices: Notices,
        clock: Clock,
        patience: Patience,
    ) -> None:
        self._client = client
        self._tokens = tokens
        self._sessions = sessions
        self._guards = guards
        self._settlement = settlement
        self._notices = notices
        self._clock = clock
        self._patience = patience

    async def run(self, attempt: Attempt) -> Linked:
        """Link the choice, or join whoever is linking it.

        Raises:
            OutcomeUnknown: The call was sent, now or earlier, and no clear answer came.
            UpstreamError: The vendor refused; nothing is linked.
            ServiceError: Nothing was sent.
        """
        try:
            return await self._run(attempt)
        except OutcomeUnknown as unknown:
            unclear = unknown.attempts
            await self._settlement.insist(lambda: self._settle(attempt, "unknown", unclear))
            raise
        except ServiceError:
            await self._settlement.insist(lambda: self._settle(attempt, "open"))
            raise

    async def _run(self, attempt: Attempt) -> Linked:
        give_up = self._clock.monotonic() + self._patience.others
        tokens_refused = 0
        with self._notices.watch(self._guards.topic) as watch:
            while True:
                claim = await self._claim(attempt)
                if claim.verdict == "done":
                    return await self._confirm(attempt, (), replayed=attempt.waited_for is None)
                if claim.verdict == "claimed":
                    try:
                        if await self._send(attempt, claim.accounts):
                            return await self._confirm(attempt, claim.accounts, replayed=False)
                    except TokenRejected as error:
                        tokens_refused += 1
                        if tokens_refused > 1:
                            raise UpstreamCredentialsRejected from error
                    continue
                if claim.verdict != "held":
                    raise _refusal(claim)
                if self._clock.monotonic() >= give_up:
                    raise AlreadyInProgress
                attempt.waited_for = claim.attempts[0]
                await watch.changed(min(self._patience.look_again, claim.left_seconds))

    async def _claim(self, attempt: Attempt) -> Claim:
        return await self._guards.claim(
            attempt.id,
            attempt.account_id,
            attempt.choice.accounts,
            digest=attempt.choice.digest,
            waited_for=attempt.waited_for,
            resend=attempt.choice.resend,
        )

    async def _send(self, attempt: Attempt, accounts: Sequence[str]) -> bool:
        """Mark and send what was claimed; False if the claim was lost, and nothing was sent.

        Raises:
            TokenRejected: Nothing ran; the token is dropped.
            OutcomeUnknown, UpstreamError: As `run`.
            ServiceError: Nothing was sent, the claim is given back.
        """
        try:
            token = await self._tokens.get()
            marked = await self._mark(attempt, accounts)
        except BaseException:
            await self._give_back(attempt, accounts)
            raise
        if not marked:
            return False
        try:
            await self._client.link(token.value, account_id=attempt.account_id, service_account_ids=accounts)
        except TokenRejected:
            await self._give_back(attempt, accounts)
            await self._tokens.drop(token)
            raise
        except LinkRefused as refused:
            why = str(refused.status)
            await self._settlement.insist(lambda: self._record(attempt, accounts, "refused", why))
            raise UpstreamError(refused.status) from refused
        except LinkUnclear as unclear:
            await self._settlement.insist(lambda: self._record(attempt, accounts, "unknown"))
            raise OutcomeUnknown([attempt.id]) from unclear
        return True

    async def _mark(self, attempt: Attempt, accounts: Sequence[str]) -> bool:
        asked_at = self._clock.monotonic()
        verdict = await self._guards.mark_sent(attempt.id, attempt.account_id, accounts)
        if verdict == "voided":
            raise SessionClosed
        if verdict == "sent" and self._clock.monotonic() - asked_at > self._patience.mark:
            await self._record(attempt, accounts, "unsent")
            return False
        return verdict == "sent"

    async def _give_back(self, attempt: Attempt, accounts: Sequence[str]) -> None:
        """Let others have what was claimed; if Redis is away, the lease's end does."""
        try:
            await self._record(attempt, accounts, "unsent")
        except StoreUnavailable:
            log.warning("claim_not_given_back")

    async def _record(
        self,
        attempt: Attempt,
        accounts: Sequence[str],
        result: Literal["linked", "refused", "unknown", "unsent"],
        why: str = "",
    ) -> None:
        await self._guards.record(attempt.id, attempt.account_id, accounts, result, why=why)

    async def _confirm(self, attempt: Attempt, sent: Sequence[str], *, replayed: bool) -> Linked:
        """Write a confirmation down, in the guard first; the caller is told even if Redis is away."""
        link = self._settlement.new_link(attempt.account_id, attempt.choice.consent)
        kept = [link]

        async def write() -> None:
            if sent:
                await self._record(attempt, sent, "linked")
            settled = await self._sessions.settle_link(
                attempt.session.id, attempt.intent, "linked", now=self._clock.now(), link=link
            )
            if settled.link is not None:
                kept[0] = settled.link

        await self._settlement.insist(write)
        return Linked(kept[0], attempt.choice.accounts, replayed)

    async def _settle(self, attempt: Attempt, result: Literal["unknown", "open"], unclear: Sequence[str] = ()) -> None:
        await self._sessions.settle_link(
            attempt.session.id, attempt.intent, result, now=self._clock.now(), unclear=unclear
        )


def _refusal(claim: Claim) -> ServiceError:
    match claim.verdict:
        case "unknown":
            return OutcomeUnknown(claim.attempts)
        case "refused":
            return UpstreamError(int(claim.why))
        case "overlap":
            return AlreadyInProgress("Another choice that overlaps is being linked")
        case _:
            return SessionClosed()
