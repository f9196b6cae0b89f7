"""Leases on keys: whoever holds one works, the others wait for a notice."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from service.errors import StoreUnavailable
from service.stores.connection import Store

__all__ = ["Locks"]


class Locks:
    """Takes and gives back leases."""

    def __init__(self, *, store: Store, channel: str) -> None:
        self._store = store
        self._channel = channel

    @asynccontextmanager
    async def held(self, key: str, *, lease_ms: int) -> AsyncIterator[bool]:
        """Whether the lease on `key` is ours during the block; afterwards those who wait for `key` are told.

        Raises:
            StoreUnavailable: Redis does not answer when asked for the lease.
        """
        # A holder of its own for each try: a shared one would let one task release what another holds.
        holder = secrets.token_hex(16)
        lock = f"{key}:lock"
        ours = await self._store.run("lock", keys=[lock], args=[holder, lease_ms]) == 1
        try:
            yield ours
        finally:
            if ours:
                with suppress(StoreUnavailable):
                    await self._store.run("unlock", keys=[lock], args=[holder, self._channel, key])
