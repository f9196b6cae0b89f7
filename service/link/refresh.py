"""One fetch for everybody: look, lock, look again, fetch, store."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

from service.clock import LONGEST_WAIT_SECONDS, Clock
from service.errors import ServiceError, StoreUnavailable, UpstreamTimeout
from service.link.tasks import Tasks
from service.stores.locks import Locks
from service.stores.notices import Notices

__all__ = ["Refresh"]

_T = TypeVar("_T")
_LEASE_MS: Final = 15_000
"""Longer than a call, so that the lease outlives the one that it protects. A fetch that needs two of them, since the
first secret was refused, may overrun it at worst: then another process fetches as well."""

_WAIT_FOR_OTHERS_SECONDS: Final = 12.0
_LOOK_AGAIN_SECONDS: Final = 0.25
_REST_SECONDS: Final = 5.0
"""After a failure, until it is tried again ahead of need: what is there still serves, and the vendor has trouble."""


class Refresh(Generic[_T]):
    """Fetches something that all processes share, once, however many ask at the same time.

    Within a process the fetch is one task that no cancellation reaches, across processes a lease on `key`. Without
    Redis each process fetches for itself. `fetch` is told the moment when it has taken as long as anybody waits.
    """

    def __init__(
        self,
        *,
        key: str,
        look: Callable[[], Awaitable[_T | None]],
        fetch: Callable[[float], Awaitable[_T]],
        keep: Callable[[_T], Awaitable[None]],
        locks: Locks,
        notices: Notices,
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self._key = key
        self._look = look
        self._fetch = fetch
        self._keep = keep
        self._locks = locks
        self._notices = notices
        self._tasks = tasks
        self._clock = clock
        self._running: asyncio.Task[_T] | None = None
        self._rested_at: float = 0

    def start(self) -> asyncio.Task[_T]:
        """Start a refresh, or join the one that runs."""
        if self._running is None or self._running.done():
            self._running = self._tasks.spawn(self._refresh(), name=f"refresh {self._key}")
        return self._running

    def start_ahead(self) -> asyncio.Task[_T] | None:
        """Start or join a refresh before it is needed; None for a while after one has failed."""
        return None if self._clock.monotonic() < self._rested_at else self.start()

    async def join(self, give_up: float = math.inf) -> _T:
        """Start or join a refresh and wait for it, as long as callers do, or until `give_up` if that comes first.

        Raises:
            UpstreamTimeout: It took too long; it goes on without us.
            ServiceError: What the fetch raised.
        """
        try:
            async with asyncio.timeout(min(LONGEST_WAIT_SECONDS, give_up - self._clock.monotonic())):
                return await asyncio.shield(self.start())
        except TimeoutError as error:
            raise UpstreamTimeout from error

    async def _refresh(self) -> _T:
        give_up = self._clock.monotonic() + LONGEST_WAIT_SECONDS
        try:
            try:
                return await self._refresh_shared(give_up)
            except StoreUnavailable:
                return await self._fetch_and_keep(math.inf, give_up)
        except ServiceError:
            self._rested_at = self._clock.monotonic() + _REST_SECONDS
            raise

    async def _refresh_shared(self, give_up: float) -> _T:
        found = await self._look()
        alone_from = self._clock.monotonic() + _WAIT_FOR_OTHERS_SECONDS
        while found is None:
            with self._notices.watch(self._key) as watch:
                until = self._clock.monotonic() + _LEASE_MS / 1000
                async with self._locks.held(self._key, lease_ms=_LEASE_MS) as ours:
                    found = await self._look()
                    if found is None and (ours or self._clock.monotonic() >= alone_from):
                        return await self._fetch_and_keep(until if ours else math.inf, give_up)
                if found is None:
                    await watch.changed(_LOOK_AGAIN_SECONDS)
        return found

    async def _fetch_and_keep(self, until: float, give_up: float) -> _T:
        fetched = await self._fetch(give_up)
        if self._clock.monotonic() < until:  # else another process may have kept a newer one
            with suppress(StoreUnavailable):
                await self._keep(fetched)
        return fetched
