"""How long finished jobs took, by provider: counts in buckets, shared by all processes, old ones fading away."""

from typing import Final

from service.stores.connection import Store
from service.stores.keys import Keys

__all__ = ["DurationStore"]

_KEEP_MS: Final = 30 * 24 * 3600 * 1000


class DurationStore:
    """Counts of one hash per provider. Every method raises `StoreUnavailable` when Redis fails."""

    def __init__(self, *, store: Store, keys: Keys) -> None:
        self._store = store
        self._keys = keys

    async def read(self, provider_id: str) -> dict[str, str]:
        """Counts by bucket, as they are written."""
        return await self._store.hash(self._keys.durations(provider_id))

    async def count(self, provider_id: str, bucket: int, *, most: int) -> None:
        """Count a job; above `most` in all, every count is halved."""
        await self._store.run("duration_count", keys=[self._keys.durations(provider_id)], args=[bucket, most, _KEEP_MS])
