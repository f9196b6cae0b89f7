"""Counters in fixed windows, shared by all processes: one round trip counts and tells how much is left."""

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
        quiet: The window begins anew with each that is counted, so that no two windows meet: never more than `most`
            within `window_seconds`, wherever these begin.
    """

    policy: str
    most: int
    window_seconds: int
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Quota:
    """What is left of a limit."""

    limit: Limit
    left: int
    reset_seconds: int


class LimitStore:
    """Counts. Every method raises `StoreUnavailable` when Redis fails."""

    def __init__(self, *, store: Store, keys: Keys) -> None:
        self._store = store
        self._keys = keys

    async def count(self, limit: Limit, who: str, *, how_many: int = 1) -> Quota:
        """Count, and tell what is left; below zero if there was nothing."""
        name = self._keys.limit(limit.policy, who)
        args = [limit.window_seconds * 1000, how_many, limit.most if limit.quiet else 0]
        count, left_ms = await self._store.run("window", keys=[name], args=args)
        return Quota(limit, limit.most - int(count), max(1, -(-int(left_ms) // 1000)))

    async def spend(self, limit: Limit, who: str, *, how_many: int = 1) -> Quota:
        """Count, if there is something left.

        Raises:
            RateLimited: There is not.
        """
        quota = await self.count(limit, who, how_many=how_many)
        if quota.left < 0:
            raise RateLimited(
                policy=limit.policy, limit=limit.most, window=limit.window_seconds, retry_after=quota.reset_seconds
            )
        return quota

    async def forget(self, limit: Limit, who: str) -> None:
        """Start the window anew."""
        await self._store.delete(self._keys.limit(limit.policy, who))
