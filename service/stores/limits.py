"""Counters in windows of time, shared by all processes: one round trip counts and tells how much is left."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import RateLimited
from service.stores.connection import Store
from service.stores.keys import Keys

__all__ = ["Limit", "LimitStore", "Quota"]


@dataclass(frozen=True, slots=True)
class Limit:
    """How many of one kind are allowed in a window of time.

    Attributes:
        policy: Names it in `RateLimit` headers.
        restarts: For attempts alone: each one that is counted begins the window anew, so that there are never more than
            `most` within any `window_seconds`.
    """

    policy: str
    most: int
    window_seconds: int
    restarts: bool = False


@dataclass(frozen=True, slots=True)
class Quota:
    """What is left of a limit."""

    limit: Limit
    left: int
    reset_seconds: int


class LimitStore:
    """Counts. Every method raises `StoreUnavailable` when Redis fails; then it may have counted all the same.

    Requests are counted by number, since no request is given back. Attempts are counted by name, and no two have the
    same name: an attempt counts once and is given back once, however often and however late a command arrives. A
    success forgets its own attempt and those before it, never a later one.
    """

    def __init__(self, *, store: Store, keys: Keys) -> None:
        self._store = store
        self._keys = keys

    async def spend(self, limit: Limit, who: str, *, how_many: int = 1) -> Quota:
        """Count a request, if there is room for it.

        Raises:
            RateLimited: There is none; then nothing is counted.
        """
        args = [limit.window_seconds * 1000, how_many, limit.most]
        quota = _quota(limit, await self._store.run("window", keys=[self._keys.limit(limit.policy, who)], args=args))
        if quota.left < 0:
            raise RateLimited(
                policy=limit.policy, limit=limit.most, window=limit.window_seconds, retry_after=quota.reset_seconds
            )
        return quota

    async def count_attempt(self, limit: Limit, who: str, attempt: str) -> Quota:
        """Count an attempt, if there is room for it; what is left is below zero if there is none."""
        args: list[str | int] = [attempt, limit.window_seconds * 1000, limit.most, int(limit.restarts)]
        return _quota(limit, await self._store.run("attempt_count", keys=self._of(limit, who, attempt), args=args))

    async def give_back_attempt(self, limit: Limit, who: str, attempt: str) -> None:
        """Stop counting an attempt that was not made; if its count arrives later, it does not count either."""
        args: list[str | int] = [attempt, self._store.remember_ms]
        await self._store.run("attempt_give_back", keys=self._of(limit, who, attempt), args=args)

    async def forget_attempts(self, limit: Limit, who: str, attempt: str) -> None:
        """Stop counting an attempt that succeeded, and all that were counted before it."""
        await self._store.run("attempt_forget", keys=[self._keys.attempts(limit.policy, who)], args=[attempt])

    def _of(self, limit: Limit, who: str, attempt: str) -> list[str]:
        return [self._keys.attempts(limit.policy, who), self._keys.given_back(limit.policy, who, attempt)]


def _quota(limit: Limit, answer: Sequence[int]) -> Quota:
    count, left_ms = answer
    return Quota(limit, limit.most - count, max(1, -(-left_ms // 1000)))
