"""What opens and closes with the process, in which order, and how the process knows that it is well."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

from service.api.caller import Steps, Tenants
from service.api.ops import Health
from service.errors import StoreUnavailable
from service.link.tasks import Tasks
from service.link.watch import Watchers
from service.stores.connection import Store
from service.stores.notices import Notices
from service.telemetry import TASKS, log
from service.tracing import Tracing
from service.upstream.transport import Transport

__all__ = ["Process"]

_DRAIN_SECONDS: Final = 15.0
"""Longer than a link call that is under way."""

_PING_SECONDS: Final = 2.0


class Process:
    """The parts that open something, and the order in which they close."""

    def __init__(
        self,
        *,
        steps: Steps,
        tenants: Tenants,
        health: Health,
        store: Store,
        transports: Sequence[Transport],
        origins: frozenset[str],
        notices: Notices,
        watchers: Sequence[Watchers],
        tasks: Tasks,
        tracing: Tracing | None,
    ) -> None:
        self.steps = steps
        self.tenants = tenants
        self.health = health
        self._store = store
        self._transports = transports
        self.origins = origins
        self._notices = notices
        self._watchers = watchers
        self._tasks = tasks
        self.tracing = tracing

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep leases, subscription and health while the process serves; let work under way finish at the end."""
        async with AsyncExitStack() as stack:
            if self.tracing is not None:
                await stack.enter_async_context(self.tracing)
            await stack.enter_async_context(self._store)
            for transport in self._transports:
                await stack.enter_async_context(transport)
            leases = [asyncio.create_task(each.run(), name="leases") for each in self._watchers]
            loops = [
                asyncio.create_task(self._notices.listen(), name="notices"),
                asyncio.create_task(self._keep_health(), name="health"),
                *leases,
            ]
            try:
                yield
            finally:
                self.drain()
                for loop in leases:
                    loop.cancel()
                await asyncio.gather(*(self._release(each) for each in self._watchers))
                await self._tasks.drain(_DRAIN_SECONDS)
                for loop in loops:
                    loop.cancel()
                await asyncio.gather(*loops, return_exceptions=True)

    async def _release(self, watchers: Watchers) -> None:
        with suppress(StoreUnavailable):
            await watchers.release()

    def announce_end(self) -> None:
        """Fail `/readyz`, and go on serving."""
        self.health.draining = True

    def drain(self) -> None:
        """Take no new work, and let everybody who waits go."""
        self.health.draining = self.health.closing = True
        self.steps.changes.drain()

    async def _keep_health(self) -> None:
        lost = False
        while True:
            TASKS.set(len(asyncio.all_tasks()))
            try:
                await self._store.ping()
            except StoreUnavailable as error:
                if not lost:
                    why = type(error.__cause__).__name__
                    log.error("store_lost", error=why, hint="`omniconnect-bff doctor` says what is wrong")
                lost, self.health.store_answers = True, False
            else:
                if lost:
                    log.info("store_found")
                lost = False
                self.health.store_answers = self.health.started = True
            await asyncio.sleep(_PING_SECONDS if self.health.started else _PING_SECONDS / 20)
