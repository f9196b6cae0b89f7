"""One poller per running validation, wherever it was started: leases move to another process when theirs dies."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from service.clock import LONGEST_WAIT_SECONDS, Clock
from service.errors import ServiceError, StoreUnavailable, UpstreamError
from service.link.accounts import Accounts
from service.link.cadence import MOST_COUNTED, Histogram, bucket_of, histogram_of, next_delay
from service.link.flow import State, state_of
from service.link.limits import Lockout
from service.link.tasks import Tasks
from service.link.token import TokenSource
from service.stores.durations import DurationStore
from service.stores.jobs import Job, JobStore
from service.stores.notices import Notices
from service.stores.records import SessionRecord, ValidationRecord
from service.stores.sessions import SessionStore
from service.telemetry import RUNNING_JOBS, log
from service.upstream.client import UpstreamClient
from service.upstream.wire import JobAnswer

__all__ = ["Cadence", "Watchers"]

_MOST_TAKEN_AT_ONCE: Final = 50
_TAKE_MORE_SECONDS: Final = 0.1
"""Until a process that took as many as it may takes more: the others shall have their share."""

_JITTER: Final = 0.1
_SLOWEST_SECONDS: Final = 5.0
_LAST_CALLS_SECONDS: Final = 12.0
"""At shutdown, for calls that are under way; longer than such a call may take."""

_FORGET_AFTER_MS: Final = 10 * 60 * 1000
_PASSING_REFUSALS: Final = {HTTPStatus.UNAUTHORIZED, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often the vendor is asked about one job, in seconds.

    Attributes:
        poll: Between two polls of a provider that nothing is known of, with 10 % of jitter; longer while polls fail.
            What is learned scales with it.
        lease: How long a silent process keeps its jobs.
    """

    poll: float = 1.0
    lease: float = 10.0

    def delay(self, elapsed: float, histogram: Histogram, failures: int) -> float:
        """Until the next poll of a job that began `elapsed` seconds ago."""
        if failures:
            plain = min(self.poll * float(1 << min(failures, 10)), _SLOWEST_SECONDS)
        elif any(histogram):
            plain = self.poll * next_delay(elapsed / self.poll, histogram)
        else:
            plain = self.poll if elapsed > self.poll / 2 else self.poll / 2
        return plain * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 -- spreads load, keeps no secret

    def bucket(self, seconds: float) -> int:
        """Where a job is counted that took so long."""
        return bucket_of(seconds / self.poll)


@dataclass(slots=True)
class _Watched:
    """A job of this process.

    Attributes:
        held_until: Moment of the monotonic clock from which on it may be another's.
    """

    task: asyncio.Task[None]
    held_until: float


class Watchers:
    """The pollers of this process, and the loop that keeps their leases and takes over orphaned jobs."""

    def __init__(
        self,
        *,
        client: UpstreamClient,
        tokens: TokenSource,
        accounts: Accounts,
        lockout: Lockout,
        sessions: SessionStore,
        jobs: JobStore,
        durations: DurationStore,
        notices: Notices,
        tasks: Tasks,
        clock: Clock,
        cadence: Cadence,
    ) -> None:
        self._client = client
        self._tokens = tokens
        self._accounts = accounts
        self._lockout = lockout
        self._sessions = sessions
        self._jobs = jobs
        self._durations = durations
        self._notices = notices
        self._tasks = tasks
        self._clock = clock
        self._cadence = cadence
        self._running: dict[Job, _Watched] = {}
        self._beginning: dict[Job, asyncio.Task[str | None]] = {}
        self._told_running = 0

    async def claim(self, job: Job) -> float:
        """Hold a job before anything is sent for it, so that it is found if this process dies; returns until when.

        Raises:
            StoreUnavailable: It could not be written down; nothing may be sent.
        """
        held_until = self._clock.monotonic() + self._cadence.lease
        await self._jobs.hold(job)
        return held_until

    def holds(self, job: Job) -> bool:
        """Whether a started job cannot be another's: that of a process that stood still may have been given up."""
        watched = self._running.get(job)
        return watched is not None and self._clock.monotonic() < watched.held_until

    async def drop(self, job: Job) -> None:
        """Let go of a job for which nothing was sent, or that is over."""
        try:
            await self._jobs.drop([job], "finished")
        except StoreUnavailable:
            log.warning("job_not_dropped")  # whoever takes it over finds it finished

    def start(
        self, job: Job, begin: Callable[[], Awaitable[str | None]], *, held_until: float
    ) -> asyncio.Task[str | None]:
        """Begin a claimed job in a task of its own, and poll it if `begin` returned the vendor's job id."""
        begun = self._tasks.spawn(self._begin(job, begin), name="begin validation")
        self._beginning[job] = begun
        begun.add_done_callback(lambda _: self._beginning.pop(job, None))
        self._running[job] = _Watched(self._tasks.spawn(self._follow(job, begun), name="poll validation"), held_until)
        self._tell_running()
        return begun

    async def _begin(self, job: Job, begin: Callable[[], Awaitable[str | None]]) -> str | None:
        job_id = await begin()
        self._notices.wake(job.session_id)
        return job_id

    async def _follow(self, job: Job, begun: asyncio.Task[str | None]) -> None:
        try:
            job_id = await asyncio.shield(begun)
            if job_id is not None:
                await self._poll(job, job_id)
            await self.drop(job)
        finally:
            self._forget(job)

    async def _resume(self, job: Job) -> None:
        """Go on with a job whose process is gone."""
        try:
            session = await self._sessions.read(job.session_id)
            validation = _pending(session, job)
            if validation is None:
                await self.drop(job)
            elif validation.job_id is None:
                # The password died with its process, and whether the vendor has seen it is unknown.
                await self._finish(job, {"state": "failed", "reason": "interrupted"})
            else:
                await self._poll(job, validation.job_id)
                await self.drop(job)
        finally:
            self._forget(job)

    def _forget(self, job: Job) -> None:
        watched = self._running.get(job)
        if watched is not None and watched.task is asyncio.current_task():
            del self._running[job]
            self._tell_running()

    def _tell_running(self) -> None:
        """Each tenant has its own pollers, and the process one figure."""
        RUNNING_JOBS.inc(len(self._running) - self._told_running)
        self._told_running = len(self._running)

    async def run(self) -> None:
        """Renew leases and take over orphaned jobs, for as long as the process lives."""
        with self._notices.watch(self._jobs.topic) as watch:
            while True:
                taken = 0
                try:
                    taken = await self._renew(most=_MOST_TAKEN_AT_ONCE)
                except StoreUnavailable:
                    if self._running:
                        log.warning("leases_not_renewed", jobs=len(self._running))
                pause = self._cadence.lease / 4
                await watch.changed(pause if taken < _MOST_TAKEN_AT_ONCE else min(pause, _TAKE_MORE_SECONDS))

    async def _renew(self, *, most: int) -> int:
        """Renew all leases, and take over up to `most` orphaned jobs; how many there were."""
        known = list(self._running)
        held_until = self._clock.monotonic() + self._cadence.lease
        unsent = [job for job in known if job in self._beginning]
        sent = [job for job in known if job not in self._beginning]
        held = await self._jobs.renew(sent=sent, unsent=unsent, most=most)
        for job in held.lost:
            watched = self._running.pop(job, None)
            if watched is not None:
                watched.task.cancel()
        for job in known:
            if job in self._running:
                self._running[job].held_until = held_until
        for job in held.taken:
            if job not in self._running:
                resumed = self._tasks.spawn(self._resume(job), name="resume validation")
                self._running[job] = _Watched(resumed, held_until)
        self._tell_running()
        return len(held.taken)

    async def release(self) -> None:
        """Stop polling and let other processes take over at once.

        A job whose credentials are on their way is kept until the vendor has answered: whoever took it over before
        could only give it up, and the person would have to send the password again.
        """
        give_up = self._clock.monotonic() + _LAST_CALLS_SECONDS
        await self._let_go([job for job in self._running if job not in self._beginning])
        while self._beginning and self._clock.monotonic() < give_up:
            beginning = dict(self._beginning)
            await asyncio.wait(beginning.values(), timeout=self._cadence.lease / 4, return_when=asyncio.FIRST_COMPLETED)
            await self._let_go([job for job, begun in beginning.items() if begun.done()])
            with suppress(StoreUnavailable):
                await self._renew(most=0)

    async def _let_go(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            watched = self._running.pop(job, None)
            if watched is not None:
                watched.task.cancel()
        if jobs:
            try:
                await self._jobs.drop(jobs, "release")
            except StoreUnavailable:
                log.warning("jobs_not_released", jobs=len(jobs))  # they are taken over when their leases end

    async def _poll(self, job: Job, job_id: str) -> None:
        """Ask the vendor until the job is over, and write down how it ended."""
        failures = 0
        delay: float = 0
        pending_at: float = 0
        histogram: Histogram | None = None
        with self._notices.watch(job.session_id) as watch:
            while (validation := await self._wait(job, watch.changed, delay)) is not None:
                elapsed = (self._clock.now() - validation.created) / 1000
                if histogram is None:
                    histogram = await self._histogram(validation.provider_id)
                    delay = self._cadence.delay(elapsed, histogram, 0)
                    continue
                if validation.deadline <= self._clock.now():
                    return await self._finish(job, {"state": "failed", "reason": "timed_out"})
                asked_to_wait = 0
                if self.holds(job):
                    # Later than this, whoever looks has been told that the validation has timed out.
                    give_up = self._clock.monotonic() + LONGEST_WAIT_SECONDS
                    try:
                        answer = await self._tokens.authorized(
                            lambda token, give_up: self._client.read_job(token, job_id, give_up),
                            of=f"job {job_id}",
                            give_up=give_up,
                        )
                        failures = 0
                    except UpstreamError as error:
                        failures += 1
                        if error.status < HTTPStatus.INTERNAL_SERVER_ERROR and error.status not in _PASSING_REFUSALS:
                            return await self._finish(job, {"state": "failed", "reason": "utility_unavailable"})
                        asked_to_wait = error.retry_after or 0
                    except ServiceError:
                        failures += 1
                    else:
                        if answer.result != "running":
                            await self._conclude(job, validation, answer, give_up)
                            return await self._learn(validation.provider_id, (pending_at + elapsed) / 2)
                        pending_at = elapsed
                left = (validation.deadline - self._clock.now()) / 1000
                delay = min(max(self._cadence.delay(elapsed, histogram, failures), asked_to_wait), max(left, 0))
        return None

    async def _histogram(self, provider_id: str) -> Histogram:
        try:
            return histogram_of(await self._durations.read(provider_id))
        except StoreUnavailable:
            return ()

    async def _learn(self, provider_id: str, seconds: float) -> None:
        """Count a finished job, by the middle between the last poll that found it pending and the one that did not."""
        with suppress(StoreUnavailable):
            await self._durations.count(provider_id, self._cadence.bucket(seconds), most=MOST_COUNTED)

    async def _wait(
        self, job: Job, changed: Callable[[float], Awaitable[None]], seconds: float
    ) -> ValidationRecord | None:
        """Wait for the next poll; None if nobody wants the result any more.

        The session is looked at whenever it changed, and once per wait.
        """
        until = self._clock.monotonic() + seconds
        while True:
            await changed(until - self._clock.monotonic())
            try:
                session = await self._sessions.read(job.session_id)
            except StoreUnavailable:
                await asyncio.sleep(self._cadence.poll)
                continue
            validation = _pending(session, job)
            if session is None or validation is None:
                return None
            if state_of(session, self._clock.now()) in {State.CLOSED, State.LINKED}:
                await self._finish(job, {"state": "failed", "reason": "canceled"})
                return None
            if self._clock.monotonic() >= until:
                return validation

    async def _conclude(self, job: Job, validation: ValidationRecord, answer: JobAnswer, give_up: float) -> None:
        match answer.result:
            case "incorrect_credentials":
                await self._finish(job, {"state": "rejected", "reason": "incorrect_credentials"})
            case "succeeded":
                sealed = await self._accounts.read_sealed(job.session_id, answer.account_ids, give_up)
                changes = {
                    "state": "succeeded",
                    "accounts": ",".join(answer.account_ids),
                    "services": ",".join("/".join(pair) for pair in answer.services),
                }
                await self._finish(job, changes, sealed)
                if validation.account:
                    with suppress(StoreUnavailable):
                        await self._lockout.forget(validation.account, validation.id)
            case _:
                await self._finish(job, {"state": "failed", "reason": "utility_unavailable"})

    async def _finish(
        self, job: Job, changes: Mapping[str, str], sealed_accounts: Mapping[str, str] | None = None
    ) -> None:
        """Write down the end of a validation, however long Redis is away."""
        forget_at = self._clock.monotonic() + _FORGET_AFTER_MS / 1000
        while self._clock.monotonic() < forget_at:
            try:
                await self._sessions.change_validation(
                    job.session_id,
                    job.validation_id,
                    changes,
                    now=self._clock.now(),
                    sealed_accounts=sealed_accounts,
                )
            except StoreUnavailable:
                await asyncio.sleep(self._cadence.poll)
            else:
                return
        log.error("validation_not_recorded", reason=changes.get("reason"))


def _pending(session: SessionRecord | None, job: Job) -> ValidationRecord | None:
    if session is None:
        return None
    for validation in session.validations:
        if validation.id == job.validation_id and validation.state == "pending":
            return validation
    return None
