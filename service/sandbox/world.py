"""The world behind the sandbox's answers: who has which accounts, which jobs run, what was linked."""

import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from service.sandbox.calls import CallLog
from service.sandbox.companies import Company
from service.sandbox.faults import Faults
from service.sandbox.people import (
    Outcome,
    ServiceAccount,
    UtilityAccount,
    account_of,
    accounts_of_grant,
    oauth_choices,
    planned_outcome,
)
from service.sandbox.tokens import Tokens

__all__ = ["ACCOUNT_ID", "CLIENT_ID", "SECRET", "AlreadyFinished", "Job", "LinkCall", "Settings", "World"]

CLIENT_ID: Final = "sandbox-client-id"
SECRET: Final = "sandbox-secret"  # noqa: S105 - opens nothing but this sandbox
ACCOUNT_ID: Final = "5eedc0de00000000000acc01"
"""The integrator's account id, which the access token comes with."""


class AlreadyFinished(Exception):
    """The job has ended and cannot end again."""


@dataclass(slots=True)
class Settings:
    """What can be changed while the sandbox runs.

    `speed` multiplies the duration of every job that is created from then on: 0.02 makes two seconds 40 ms.
    """

    speed: float = 1.0
    token_lifetime: float = 24 * 3600.0
    token_server_lifetime: float = 3600.0


@dataclass(slots=True)
class Job:
    """One check of credentials; its accounts come into being when it ends well."""

    id: str
    company: Company
    username: str
    outcome: Outcome
    ends_at: float
    granted: tuple[ServiceAccount, ...] | None = None
    accounts: tuple[UtilityAccount, ...] = ()
    finished: bool = False


@dataclass(frozen=True, slots=True)
class LinkCall:
    """One batch that was carried out, whether or not anybody heard the answer."""

    seq: int
    time: float
    service_account_ids: tuple[str, ...]


@dataclass(slots=True)
class _Known:
    jobs: dict[str, Job] = field(default_factory=dict)
    accounts: dict[str, UtilityAccount] = field(default_factory=dict)
    service_accounts: dict[str, ServiceAccount] = field(default_factory=dict)
    links: list[LinkCall] = field(default_factory=list)
    link_counts: Counter[str] = field(default_factory=Counter)


class World:
    """Everything that the sandbox remembers, for one integrator.

    Changed by the server's thread; a test in another one may read it, pull levers and reset it, because no step
    here leaves a state that a reader could trip over.

    Attributes:
        secrets: Those that are accepted: an integrator's secret is changed by changing these.
        account_id: The integrator's account.
    """

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        public_url: str | None = None,
        client_id: str = CLIENT_ID,
        secret: str = SECRET,
        account_id: str = ACCOUNT_ID,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._initial = settings or Settings()
        self._clock = clock
        self._wall = wall
        self._known = _Known()
        self._first_secret = secret
        self.client_id = client_id
        self.secrets = frozenset({secret})
        self.account_id = account_id
        self.public_url = public_url and public_url.rstrip("/")
        self.settings = replace(self._initial)
        self.calls = CallLog(wall)
        self.faults = Faults()
        self.tokens = Tokens(clock=clock, wall=wall)

    def reset(self) -> None:
        """Back to the first moment: settings, secret, tokens, jobs, links, faults and the log."""
        self.settings = replace(self._initial)
        self.secrets = frozenset({self._first_secret})
        self.faults.clear()
        self.tokens.revoke_all()
        self._known = _Known()
        self.calls.clear()

    def issue_token(self) -> str:
        """A token with the lives that the settings say."""
        return self.tokens.issue(
            self.account_id,
            claimed_seconds=self.settings.token_lifetime,
            granted_seconds=self.settings.token_server_lifetime,
        )

    def create_job(self, company: Company, username: str, password: str) -> Job:
        """Start a job; one of an OAuth company waits for its sign-in page."""
        outcome, seconds = planned_outcome(username, password)
        if company.sign_in == "oauth":
            outcome, seconds = "success", math.inf
        ends_at = self._clock() + (seconds * self.settings.speed if math.isfinite(seconds) else math.inf)
        job = Job(secrets.token_hex(12), company, username, outcome, ends_at)
        self._known.jobs[job.id] = job
        return job

    def job(self, job_id: str) -> Job | None:
        """The job as of now."""
        job = self._known.jobs.get(job_id)
        if job is not None and not job.finished and self._clock() >= job.ends_at:
            self._settle(job)
        return job

    def finish(self, job_id: str, outcome: Outcome, granted: tuple[ServiceAccount, ...] | None = None) -> Job:
        """End a running job now.

        Raises:
            KeyError: No such job.
            AlreadyFinished: It has ended before.
        """
        job = self.job(job_id)
        if job is None:
            raise KeyError(job_id)
        if job.finished:
            raise AlreadyFinished(job_id)
        job.outcome, job.granted = outcome, granted
        self._settle(job)
        return job

    def account(self, account_id: str) -> UtilityAccount | None:
        """An account that some job has found."""
        return self._known.accounts.get(account_id)

    def service_account(self, service_account_id: str) -> ServiceAccount | None:
        """A service account that some job has found."""
        return self._known.service_accounts.get(service_account_id)

    def link(self, service_account_ids: Iterable[str]) -> LinkCall:
        """Link known service accounts; a repetition is counted, not refused."""
        known = self._known
        call = LinkCall(len(known.links) + 1, self._wall(), tuple(service_account_ids))
        known.link_counts.update(call.service_account_ids)
        known.links.append(call)
        return call

    @property
    def links(self) -> list[LinkCall]:
        """The batches that were carried out, in order."""
        return list(self._known.links)

    def is_linked(self, service_account_id: str) -> bool:
        """Whether the service account was linked at least once."""
        return service_account_id in self._known.link_counts

    @property
    def link_counts(self) -> dict[str, int]:
        """How often each service account was linked."""
        return dict(self._known.link_counts)

    def _settle(self, job: Job) -> None:
        if job.outcome == "success":
            job.accounts = _accounts_found(job)
            for account in job.accounts:
                self._known.accounts[account.id] = account
                self._known.service_accounts.update({found.id: found for found in account.service_accounts})
        job.finished = True


def _accounts_found(job: Job) -> tuple[UtilityAccount, ...]:
    if job.company.sign_in == "password":
        return (account_of(job.username, job.company),)
    return accounts_of_grant(job.company, job.granted or oauth_choices(job.company)[:1])
