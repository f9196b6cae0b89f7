"""One attempt to link one choice: claim, token, mark, one call, result into the guard, result into the session.

The steps, which the comments in `service/stores/lua` cite by number:

1. begin: write the intent into the session, so that whoever closes it, or finds it after a crash, knows of the attempt.
2. subscribe to what happens to the guards, and look only then, or a notice could fall in between.
3. claim all accounts of the choice in the guard, or none; wait while others hold them, then claim again.
4. get the upstream token: this may take long, so it comes before the mark.
5. mark the accounts as sent, only if all of them are still held.
6. call the vendor: bounded, never repeated, on a connection of its own.
7. write the result into the guard: whoever asks there next must not send again.
8. settle: take the result over into the session, and remove the intent. If a process dies between 7 and 8, whoever
   reads the session next makes it good (`service.link.settle`).

The mark stands before the call, so that a process that dies leaves "unknown" behind and never "free"; a confirmation
is recorded whoever holds the account by then; a caller who leaves changes nothing, since an attempt has its own task.
Where Redis has replicas, intent, mark and result each count only once a replica has them, too: a server that is lost
with its last writes takes nothing along that a call has been, or will be, made on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from service.clock import Clock
from service.errors import (
    AlreadyInProgress,
    OutcomeUnknown,
    ServiceError,
    StoreUnavailable,
    UpstreamBusy,
    UpstreamError,
    UpstreamTimeout,
)
from service.link.settle import Settlement, digest_of
from service.link.token import TokenSource
from service.stores.guards import Claim, GuardStore
from service.stores.notices import Notices
from service.stores.records import Intent, LinkRecord, SessionRecord
from service.stores.sessions import SessionStore
from service.stores.tokens import UpstreamToken
from service.upstream.client import LinkRefused, LinkUnclear, TokenRejected, UpstreamClient

__all__ = ["Attempt", "Attempts", "Choice", "ClaimLost", "Linked", "Patience"]


class ClaimLost(Exception):
    """The claim was over before the call could be made: nothing was sent.

    Its lease ran out, or its session was being closed; whether it is closed, the session knows.
    """


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
        object.__setattr__(self, "digest", digest_of(self.accounts))


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
        send: From asking for the mark until the call must have begun, so that its lease outlives the call.
    """

    others: float = 20.0
    look_again: float = 0.25
    mark: float = 1.0
    send: float = 3.0


@dataclass(slots=True)
class Attempt:
    """What one attempt knows of itself.

    Attributes:
        mark_by: Moment of the monotonic clock until when it must have marked, or give up with nothing sent.
        send_by: The same for its call.
        waited_for: The attempt that it found in its way.
        may_hold: Whether the guard may hold accounts for it.
    """

    session: SessionRecord
    choice: Choice
    intent: Intent
    mark_by: float
    send_by: float = -math.inf
    waited_for: str | None = None
    may_hold: bool = False

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
        """Link the choice, or join whoever is linking it; its intent is settled at the end.

        Raises:
            ClaimLost, TokenRejected: Nothing ran; another attempt, with a name of its own, may go better.
            OutcomeUnknown: The call was sent, now or earlier, and no clear answer came.
            UpstreamError: The vendor refused; nothing is linked.
            ServiceError: Nothing was sent.
        """
        try:
            accounts = await self._claim(attempt)
            token = await self._mark(attempt, accounts) if accounts else None
        except OutcomeUnknown as unknown:
            await self._finish(attempt, "unknown", (), unclear=unknown.attempts)
            raise
        except BaseException:
            await self._finish(attempt, "unsent", attempt.choice.accounts if attempt.may_hold else ())
            raise
        if token is not None:
            await self._send(attempt, accounts, token)
        return await self._confirm(attempt, accounts)

    async def _claim(self, attempt: Attempt) -> Sequence[str]:
        """Claim what is still to be linked, once nobody else holds it; nothing if all is linked."""
        give_up = min(self._clock.monotonic() + self._patience.others, attempt.mark_by)
        with self._notices.watch(self._guards.topic) as watch:
            while True:
                attempt.may_hold = True
                claim = await self._guards.claim(
                    attempt.id,
                    attempt.account_id,
                    attempt.choice.accounts,
                    digest=attempt.choice.digest,
                    waited_for=attempt.waited_for,
                    resend=attempt.choice.resend,
                )
                attempt.may_hold = claim.verdict == "claimed"
                if claim.verdict in {"claimed", "done"}:
                    return claim.accounts
                if claim.verdict == "voided":
                    raise ClaimLost
                if claim.verdict != "held":
                    raise _refusal(claim)
                if self._clock.monotonic() >= give_up:
                    raise AlreadyInProgress
                attempt.waited_for = claim.attempts[0]
                await watch.changed(min(self._patience.look_again, claim.left_seconds))

    async def _mark(self, attempt: Attempt, accounts: Sequence[str]) -> UpstreamToken:
        """Mark what was claimed as being sent, with the token at hand: getting one may take longer than a lease."""
        token = await self._tokens.get(attempt.mark_by)
        asked_at = self._clock.monotonic()
        if asked_at >= attempt.mark_by:
            raise UpstreamTimeout
        verdict = await self._guards.mark_sent(attempt.id, attempt.account_id, accounts)
        if verdict != "sent" or self._clock.monotonic() - asked_at > self._patience.mark:
            raise ClaimLost
        attempt.send_by = asked_at + self._patience.send
        return token

    async def _send(self, attempt: Attempt, accounts: Sequence[str], token: UpstreamToken) -> None:
        """Make the one call; returns when linked."""
        try:
            await self._client.link(
                token.value, account_id=attempt.account_id, service_account_ids=accounts, give_up=attempt.send_by
            )
        except TokenRejected:
            # First of all, or whoever is let in next would take the dead token.
            await self._tokens.drop(token)
            await self._finish(attempt, "unsent", accounts)
            raise
        except UpstreamBusy:
            await self._finish(attempt, "unsent", accounts)
            raise
        except LinkRefused as refused:
            await self._finish(attempt, "refused", accounts, why=str(refused.status))
            raise UpstreamError(refused.status) from refused
        except LinkUnclear as lost:
            unclear = await self._finish(attempt, "unknown", accounts, unclear=[attempt.id])
            raise OutcomeUnknown(unclear) from lost
        self._tokens.accepted()

    async def _finish(
        self,
        attempt: Attempt,
        result: Literal["refused", "unknown", "unsent"],
        held: Sequence[str],
        *,
        why: str = "",
        unclear: Sequence[str] = (),
    ) -> Sequence[str]:
        """Write down how an attempt ended, in the guard first; the unclear attempts of its accounts, as far as known.

        If Redis is away this goes on in the background; should it stay away, the leases do the rest.
        """
        told = list(unclear)

        async def write() -> None:
            if held:
                recorded = await self._guards.record(attempt.id, attempt.account_id, held, result, why=why)
                told[:] = recorded or told
            await self._sessions.settle_link(
                attempt.session.id,
                attempt.intent,
                "unknown" if result == "unknown" else "open",
                now=self._clock.now(),
                unclear=told,
            )

        await self._settlement.insist(write)
        return told

    async def _confirm(self, attempt: Attempt, sent: Sequence[str]) -> Linked:
        """Write a confirmation down, in the guard first; the caller is told even if Redis is away."""
        link = self._settlement.new_link(attempt.session, attempt.choice.consent)
        kept = [link]

        async def write() -> None:
            not_kept: StoreUnavailable | None = None
            if sent:
                try:
                    await self._guards.record(attempt.id, attempt.account_id, sent, "linked")
                except StoreUnavailable as error:
                    if not error.done:
                        raise
                    not_kept = error  # the guard knows, so the session may; both are told again until it is kept
            settled = await self._sessions.settle_link(
                attempt.session.id, attempt.intent, "linked", now=self._clock.now(), link=link, kept=True
            )
            if settled.link is not None:
                kept[0] = settled.link
            if not_kept is not None:
                raise not_kept

        await self._settlement.insist(write)
        return Linked(kept[0], attempt.choice.accounts, replayed=not sent and attempt.waited_for is None)


def _refusal(claim: Claim) -> ServiceError:
    match claim.verdict:
        case "unknown":
            return OutcomeUnknown(claim.attempts)
        case "refused":
            return UpstreamError(int(claim.why))
        case _:
            return AlreadyInProgress("Another choice that overlaps is being linked")
