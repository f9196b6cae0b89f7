"""Step 2b: sign in at a utility. The password is sent once, kept in memory for that one call, and written nowhere."""

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from pydantic import SecretStr

from service.clock import Clock, Millis
from service.errors import (
    AlreadyInProgress,
    FieldError,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    ServiceError,
    SessionClosed,
    SessionExpired,
    StoreUnavailable,
    TooManyAttempts,
    UpstreamCredentialsRejected,
    UpstreamError,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.link.changes import LOOK_AGAIN_SECONDS, Changes
from service.link.flow import require_open
from service.link.limits import Doors, Lockout
from service.link.providers import Providers
from service.link.settle import Settlement
from service.link.token import TokenSource
from service.link.watch import Watchers
from service.stores.jobs import Job
from service.stores.records import SessionRecord, ValidationRecord
from service.stores.sessions import Added, SessionStore
from service.telemetry import log
from service.upstream.client import UpstreamClient
from service.upstream.companies import CompanyTable
from service.upstream.wire import Company

__all__ = ["Credentials", "TimeLimits", "Validations", "settled"]

MOST_PENDING: Final = 3
MOST_PASSWORDS: Final = 5
MOST_VALIDATIONS: Final = 20

_POLLER_GRACE_MS: Final = 30_000
"""A validation still pending this long after its deadline has lost its poller for good."""

_RECORD_SECONDS: Final = 30.0
_OAUTH_WORDS: Final = (SecretStr("username"), SecretStr("password"))
"""What the vendor's widget sends for a company whose own page asks for the real ones."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the person signs in with."""

    username: SecretStr
    password: SecretStr


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """From when on a validation has timed out, in seconds."""

    password: float = 180.0
    oauth: float = 900.0


class _Tried(Exception):
    """The call that starts a job was sent and not answered with 401: the vendor may have tried the password."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _LeaseOver(Exception):
    """The credentials were not sent: this process stood still, and the validation may have been given up meanwhile."""


class Validations:
    """Starts validations, waits for them, gives them up."""

    def __init__(
        self,
        *,
        client: UpstreamClient,
        tokens: TokenSource,
        providers: Providers,
        table: CompanyTable,
        sessions: SessionStore,
        watchers: Watchers,
        lockout: Lockout,
        doors: Doors,
        changes: Changes,
        settlement: Settlement,
        clock: Clock,
        limits: TimeLimits,
    ) -> None:
        self._settlement = settlement
        self._client = client
        self._tokens = tokens
        self._providers = providers
        self._table = table
        self._sessions = sessions
        self._watchers = watchers
        self._lockout = lockout
        self._doors = doors
        self._changes = changes
        self._clock = clock
        self._limits = limits

    async def signs_in_elsewhere(self, provider_id: str, give_up: float) -> bool:
        """Whether people sign in at the provider's own page; waits for the list of them until `give_up`.

        Raises:
            NotFound: No such provider.
        """
        return self._table.rule(await self._providers.find(provider_id, give_up)).sign_in == "oauth"

    async def start(
        self,
        session: SessionRecord,
        provider_id: str,
        credentials: Credentials | None,
        *,
        address: str,
        give_up: float,
    ) -> ValidationRecord:
        """Start a validation; returns once the vendor has taken it on, or it has failed, or at `give_up`.

        Args:
            session: Where it belongs.
            provider_id: Where the person signs in.
            credentials: None if the provider asks for them itself.
            address: Where the request comes from.
            give_up: When the caller waits no longer, and nothing is sent any more.

        Raises:
            SessionClosed, SessionExpired, AlreadyInProgress: The session is not open, or this provider has one pending.
            NotFound: No such provider.
            InvalidRequest: The credentials do not fit the provider's way to sign in.
            OutcomeUnknown: What the session has linked is unknown.
            TooManyAttempts: The session, the account at the utility, or the address has had its share.
            RateLimited: The page has.
            ServiceError: Nothing was sent, since Redis, the provider list or a token was not to be had, or the vendor
                is left alone; no attempt is counted.
        """
        # A choice that a dead process was linking is in the way only until somebody looks at what became of it.
        session = await self._settlement.recover(session)
        require_open(session, self._clock.now())
        company = await self._providers.find(provider_id, give_up)
        self._check(company, credentials)
        # Before anything is counted: without these, no credentials can be tried.
        self._client.check_jobs(provider_id)
        await self._tokens.get(give_up)
        if session.client is not None:
            await self._doors.by_sign_in(session.tenant, session.client, address)
        counted_by = self._counted_by(session, provider_id, credentials, address) if credentials else ""
        job = Job(session.id, f"val_{secrets.token_hex(12)}")
        try:
            left = await self._lockout.spend(counted_by, job.validation_id) if counted_by else 0
            held_until = await self._watchers.claim(job)
            # Should Redis fail here, the claim stays: the validation may be written down, and must not stay pending.
            added = await self._add(session, job, company, counted_by=counted_by, attempts_left=left)
        except StoreUnavailable:
            await self._give_back(job, counted_by)
            raise
        if added.verdict != "added":
            await self._watchers.drop(job)
            await self._give_back(job, counted_by)
            raise _refusal(session, added, now=self._clock.now())
        begun = self._watchers.start(
            job, lambda: self._begin(job, company, credentials, give_up, counted_by=counted_by), held_until=held_until
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(give_up - self._clock.monotonic()):
                await asyncio.shield(begun)
        return await self.find(session.id, job.validation_id)

    def _counted_by(self, session: SessionRecord, provider_id: str, credentials: Credentials, address: str) -> str:
        # A host's server may well stand between all of its people and this service.
        stranger = address if session.client is not None else None
        return self._lockout.counted_by(provider_id, credentials.username, address=stranger)

    async def _give_back(self, job: Job, counted_by: str) -> None:
        """Stop counting an attempt that was not made; if Redis is away, this goes on in the background."""
        if counted_by:
            give_back = partial(self._lockout.give_back, counted_by, job.validation_id)
            await self._settlement.insist(give_back, event="attempt_not_given_back")

    def _check(self, company: Company, credentials: Credentials | None) -> None:
        if self._table.rule(company).sign_in == "password":
            if credentials is None:
                raise InvalidRequest(
                    [FieldError(each, "Required for this provider") for each in ("username", "password")]
                )
        elif credentials is not None:
            raise InvalidRequest([FieldError("password", "People sign in at this provider's own page")])
        elif self._table.sign_in_page(company) is None:
            raise InvalidRequest([FieldError("providerId", "This provider is not available")])

    async def _add(
        self, session: SessionRecord, job: Job, company: Company, *, counted_by: str, attempts_left: int
    ) -> Added:
        now = self._clock.now()
        sign_in = self._table.rule(company).sign_in
        seconds = self._limits.oauth if sign_in == "oauth" else self._limits.password
        return await self._sessions.add_validation(
            session,
            job.validation_id,
            provider_id=company.id,
            kind=sign_in,
            now=now,
            deadline=Millis(min(now + int(seconds * 1000), session.expires)),
            most_pending=MOST_PENDING,
            most_passwords=MOST_PASSWORDS,
            most=MOST_VALIDATIONS,
            grace_ms=_POLLER_GRACE_MS,
            account=counted_by,
            attempts_left=attempts_left,
        )

    async def _begin(
        self, job: Job, company: Company, credentials: Credentials | None, give_up: float, *, counted_by: str
    ) -> str | None:
        """Send the credentials, once; the job id if there is something to poll."""
        try:
            job_id = await self._create_job(job, company, credentials, give_up)
        except _Tried as tried:
            await self._record(job, {"state": "failed", "reason": tried.reason})
            return None
        except _LeaseOver:
            reason = "interrupted"
        except UpstreamCredentialsRejected:
            reason = "upstream_credentials_rejected"
        except UpstreamMalformed:
            reason = "upstream_malformed"
        except ServiceError:
            reason = "utility_unavailable"
        else:
            changes = {"job": job_id}
            page = self._table.authorize_url(company, job_id) if credentials is None else None
            if page is not None:
                changes["authorize"] = page
            return job_id if await self._record(job, changes) else None
        await self._record(job, {"state": "failed", "reason": reason}, untried=counted_by)
        return None

    async def _create_job(self, job: Job, company: Company, credentials: Credentials | None, give_up: float) -> str:
        username, password = (credentials.username, credentials.password) if credentials else _OAUTH_WORDS

        async def create(token: SecretStr, give_up: float) -> str:
            if not self._watchers.holds(job):
                raise _LeaseOver
            try:
                return await self._client.create_job(
                    token,
                    company_id=company.id,
                    job_type=self._table.rule(company).job_type,
                    username=username,
                    password=password,
                    give_up=give_up,
                )
            except (UpstreamTimeout, UpstreamUnavailable, UpstreamMalformed) as error:
                raise _Tried("outcome_unknown") from error
            except UpstreamError as error:
                raise _Tried("utility_unavailable") from error

        return await self._tokens.authorized(create, give_up=give_up)

    async def _record(self, job: Job, changes: dict[str, str], *, untried: str = "") -> bool:
        """Write down what the vendor said, even if Redis is away for a moment; False if nobody wants it any more.

        A password that was not tried is given back before anybody can see that, and also if nobody wants it any more.

        Args:
            job: The validation.
            changes: Its fields.
            untried: What the password is counted by, if it was not tried.
        """
        give_up = self._clock.monotonic() + _RECORD_SECONDS
        while True:
            try:
                if untried:
                    await self._sessions.take_back_attempt(job.session_id, job.validation_id)
                    await self._lockout.give_back(untried, job.validation_id)
                return await self._sessions.change_validation(
                    job.session_id, job.validation_id, changes, now=self._clock.now()
                )
            except StoreUnavailable:
                if self._clock.monotonic() >= give_up:
                    log.error("validation_not_recorded", reason=changes.get("reason"))
                    raise
                await asyncio.sleep(0.5)

    async def find(self, session_id: str, validation_id: str) -> ValidationRecord:
        """A validation as it is now.

        Raises:
            NotFound: There is none of this id in this session.
        """
        session = await self._sessions.read(session_id)
        return self.among(session, validation_id) if session else _absent()

    def among(self, session: SessionRecord, validation_id: str) -> ValidationRecord:
        """A validation of a session that was just read.

        Raises:
            NotFound: There is none of this id in this session.
        """
        for validation in session.validations:
            if validation.id == validation_id:
                return settled(validation, self._clock.now())
        return _absent()

    async def wait(self, session_id: str, validation_id: str, seconds: float) -> ValidationRecord:
        """A validation once it is finished, or as it is after `seconds`.

        Raises:
            NotFound: There is none of this id in this session.
        """
        until = self._clock.monotonic() + seconds
        with self._changes.follow(session_id) as following:
            while True:
                session = await following.session()
                found = [each for each in session.validations if each.id == validation_id] if session else []
                # Who followed the session before may have read it before this validation began.
                validation = (
                    settled(found[0], self._clock.now()) if found else await self.find(session_id, validation_id)
                )
                left = until - self._clock.monotonic()
                if validation.state != "pending" or left <= 0 or self._changes.draining:
                    return validation
                await following.changed(min(left, LOOK_AGAIN_SECONDS))

    async def give_up(self, session: SessionRecord, validation_id: str) -> ValidationRecord:
        """Give up a validation that is pending; a finished one stays as it is.

        Raises:
            NotFound: There is none of this id in this session.
        """
        if self.among(session, validation_id).state == "pending":
            changes = {"state": "failed", "reason": "canceled"}
            await self._sessions.change_validation(session.id, validation_id, changes, now=self._clock.now())
        return await self.find(session.id, validation_id)


def settled(validation: ValidationRecord, now: Millis) -> ValidationRecord:
    """A validation as it is to be shown: one whose poller is gone for good has timed out."""
    if validation.state == "pending" and validation.deadline + _POLLER_GRACE_MS <= now:
        return replace(validation, state="failed", reason="timed_out")
    return validation


def _absent() -> ValidationRecord:
    raise NotFound


def _refusal(session: SessionRecord, added: Added, *, now: Millis) -> ServiceError:
    match added.verdict:
        case "missing":
            return NotFound()
        case "expired":
            return SessionExpired()
        case "unknown":
            return OutcomeUnknown(added.detail.split(",") if added.detail else ())
        case "linking" | "pending":
            return _under_way(session, added)
        case "crowded" | "attempts" | "spent":
            return _too_many(session, added, now)
        case _:
            return SessionClosed()


def _under_way(session: SessionRecord, added: Added) -> AlreadyInProgress:
    if added.verdict == "linking":
        return AlreadyInProgress("A choice of this session is being linked")
    location = f"/v1/sessions/{session.id}/validations/{added.detail}"
    return AlreadyInProgress("This provider is being validated", location=location)


def _too_many(session: SessionRecord, added: Added, now: Millis) -> TooManyAttempts:
    if added.verdict == "crowded":
        return TooManyAttempts.pending(limit=MOST_PENDING)
    by_password = added.verdict == "attempts"
    policy, limit = ("attempts", MOST_PASSWORDS) if by_password else ("validations", MOST_VALIDATIONS)
    seconds = max(1, -(-(session.expires - now) // 1000))
    return TooManyAttempts(policy=policy, limit=limit, window=seconds, retry_after=seconds)
