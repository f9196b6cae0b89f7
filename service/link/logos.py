"""The providers' pictures, each fetched once in a while, however many ask."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from service.clock import Clock, Millis
from service.errors import NotFound
from service.link.providers import Providers
from service.link.tasks import Tasks
from service.telemetry import log
from service.upstream.pictures import NoPicture, Picture, PictureClient, decoded

__all__ = ["Logos"]

KEEP_MS: Final = 24 * 3600 * 1000
KEEP_FAILURE_MS: Final = 10 * 60 * 1000
_MOST_KEPT: Final = 256
"""At 64 KiB each, 16 MiB at worst."""

_CONNECTIONS: Final = 4
_MOST_WAITING: Final = 100
"""Requests for pictures; more would fill the process while a vendor is slow."""

_TURN_SECONDS: Final = 5.0
"""How long a fetch waits for one of them: the page shows initials meanwhile, and asks again another time."""


@dataclass(frozen=True, slots=True)
class _Known:
    picture: Picture | None
    until: Millis


class Logos:
    """Pictures by provider. Where they come from is read in the vendor's list alone, never in what a caller sends."""

    def __init__(self, *, providers: Providers, pictures: PictureClient, tasks: Tasks, clock: Clock) -> None:
        self._providers = providers
        self._pictures = pictures
        self._tasks = tasks
        self._clock = clock
        # By address, so that a picture that moves is fetched anew.
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._running: dict[str, asyncio.Task[Picture | None]] = {}
        self._turns = asyncio.Semaphore(_CONNECTIONS)
        self._waiting = 0

    async def find(self, provider_id: str) -> Picture:
        """A provider's picture.

        Raises:
            NotFound: There is no such provider, or no picture of it.
            ServiceError: There is no list of providers.
        """
        if self._waiting >= _MOST_WAITING:
            raise NotFound
        self._waiting += 1
        try:
            address = (await self._providers.find(provider_id)).logo or ""
            picture = await self._fetched(address) if address[:4].lower() == "http" else decoded(address)
        finally:
            self._waiting -= 1
        if picture is None:
            raise NotFound
        return picture

    async def _fetched(self, address: str) -> Picture | None:
        known = self._known.get(address)
        if known is not None and self._clock.now() < known.until:
            self._known.move_to_end(address)
            return known.picture
        running = self._running.get(address)
        if running is None:
            running = self._tasks.spawn(self._fetch(address), name="logo")
            self._running[address] = running
            running.add_done_callback(lambda _: self._running.pop(address))
        return await asyncio.shield(running)

    async def _fetch(self, address: str) -> Picture | None:
        try:
            async with asyncio.timeout(_TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            return None
        try:
            picture = await self._pictures.fetch(address)
        except NoPicture as error:
            log.info("logo_unavailable", reason=error.reason)
            picture = None
        finally:
            self._turns.release()
        self._keep(address, picture)
        return picture

    def _keep(self, address: str, picture: Picture | None) -> None:
        keep_ms = KEEP_FAILURE_MS if picture is None else KEEP_MS
        self._known[address] = _Known(picture, Millis(self._clock.now() + keep_ms))
        self._known.move_to_end(address)
        if len(self._known) > _MOST_KEPT:
            self._known.popitem(last=False)
