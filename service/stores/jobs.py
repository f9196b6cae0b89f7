"""Which process polls which running validation: leases that move to another process when theirs dies."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from service.stores.connection import Store
from service.stores.keys import Keys

__all__ = ["Held", "Job", "JobStore"]

_KEEP_MS: Final = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Job:
    """A running validation, by the names that all processes know it by."""

    session_id: str
    validation_id: str

    def encode(self) -> str:
        """As it stands in Redis."""
        return f"{self.session_id}|{self.validation_id}"

    @classmethod
    def decode(cls, text: str) -> "Job":
        """The inverse of `encode`."""
        session_id, _, validation_id = text.partition("|")
        return cls(session_id, validation_id)


@dataclass(frozen=True, slots=True)
class Held:
    """What came of renewing: jobs that are another's by now, and jobs whose holder is gone."""

    lost: Sequence[Job]
    taken: Sequence[Job]


class JobStore:
    """The leases of this process. Every method raises `StoreUnavailable` when Redis fails.

    Attributes:
        topic: Where those who may take over are told that jobs were released.
    """

    def __init__(self, *, store: Store, keys: Keys, lease_ms: int) -> None:
        self._store = store
        self._names = [keys.job_leases, keys.job_holders]
        self._channel = keys.channel
        self.topic = keys.job_leases
        self._lease_ms = lease_ms
        self._holder = secrets.token_hex(8)

    async def hold(self, job: Job) -> None:
        """Claim a new job, before anything is sent for it."""
        await self._hold(most=0, fresh=[job])

    async def renew(self, *, sent: Sequence[Job], unsent: Sequence[Job], most: int) -> Held:
        """Renew the leases of this process, and take over up to `most` jobs whose holder has stopped renewing.

        What Redis has forgotten of jobs that were `sent` to the vendor is written down anew.
        """
        return await self._hold(most=most, sent=sent, unsent=unsent)

    async def drop(self, jobs: Sequence[Job], how: Literal["finished", "release"]) -> None:
        """Let go of jobs: finished ones for good, others so that another process takes them over at once."""
        args = [self._holder, how, self._channel, self.topic, *(job.encode() for job in jobs)]
        await self._store.run("job_drop", keys=self._names, args=args)

    async def _hold(
        self, *, most: int, fresh: Sequence[Job] = (), sent: Sequence[Job] = (), unsent: Sequence[Job] = ()
    ) -> Held:
        jobs = [job.encode() for job in (*fresh, *sent, *unsent)]
        args: list[str | int] = [self._holder, self._lease_ms, most, _KEEP_MS, len(fresh), len(sent), *jobs]
        answer = await self._store.run("job_hold", keys=self._names, args=args)
        lost = int(answer[0])
        decoded = [Job.decode(text) for text in answer[1:]]
        return Held(lost=decoded[:lost], taken=decoded[lost:])
