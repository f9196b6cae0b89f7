"""Bulkhead and circuit breaker in one, for one operation of the vendor."""

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from service.clock import Clock
from service.errors import UpstreamBusy, UpstreamShut
from service.telemetry import UPSTREAM_SHUT, log

__all__ = ["Limiter", "LimiterRules"]

_SLOTS: Final = 6
"""Parts of the window: a result counts for five to six sixths of it."""

_JITTER: Final = 0.2
_LEAST_DIFFERENT: Final = 3
"""Accounts, or jobs, that must fail before the operation that reads them is taken for broken."""


@dataclass(frozen=True, slots=True)
class LimiterRules:
    """When an operation is left alone, and for how long.

    Attributes:
        wait_seconds: How long a call waits for its turn, and for how the one goes that is let in after a rest.
        failures: So many in a row, or...
        success_share: ...a smaller share of successes...
        least_calls: ...among at least so many calls...
        window_seconds: ...in this time open the breaker...
        rest_seconds: ...for this long, with 20 % of jitter, or replicas would come back together.
    """

    wait_seconds: float = 2.0
    failures: int = 5
    success_share: float = 0.8
    least_calls: int = 5
    window_seconds: float = 30.0
    rest_seconds: float = 30.0


@dataclass(slots=True)
class _Slot:
    """How calls went in a part of the window, and which resources failed."""

    good: int = 0
    bad: int = 0
    failing: set[str] = field(default_factory=set)


class Limiter:
    """Lets `most` calls through at a time, and none while the operation fails.

    Closed, all may pass. Open, none may. After its rest it is half-open: one call passes, and how that goes decides
    for the others, who wait for it. Whoever is not let through knows that nothing was sent.
    """

    def __init__(
        self,
        operation: str,
        *,
        most: int,
        rules: LimiterRules,
        clock: Clock,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.operation = operation
        self._rules = rules
        self._clock = clock
        self._draw = draw
        self._turns = asyncio.Semaphore(most)
        self._opens_again: float | None = None
        self._probing = False
        self._probed = asyncio.Event()
        self._era = 0
        self._in_a_row = 0
        self._slots: deque[_Slot] = deque(maxlen=_SLOTS)
        self._slot_ends = -math.inf

    def check(self) -> None:
        """Whether a call could pass now.

        Raises:
            UpstreamShut: The breaker is open.
        """
        if self._opens_again is not None:
            left = self._opens_again - self._clock.monotonic()
            if left > 0:
                raise UpstreamShut(retry_after=math.ceil(left))

    async def enter(self, give_up: float = math.inf) -> int:
        """Take a turn, waiting no longer than until `give_up`; returns what `leave` wants to know.

        Raises:
            UpstreamBusy: There was none in time.
            UpstreamShut: As `check`, or the one call that decides took too long.
        """
        if self._turns.locked() or self._probing:
            try:
                async with asyncio.timeout(min(self._rules.wait_seconds, give_up - self._clock.monotonic())):
                    await self._wait()
            except TimeoutError as error:
                raise (UpstreamShut(retry_after=1) if self._probing else UpstreamBusy()) from error
        else:
            await self._turns.acquire()
        if self._opens_again is not None:
            try:
                self.check()
            except UpstreamShut:
                self._turns.release()
                raise
            self._probing = True
            self._probed.clear()
            self._era += 1
        return self._era

    async def _wait(self) -> None:
        """Take a turn at a moment when no call is under way that decides."""
        await self._turns.acquire()
        try:
            while self._probing:
                await self._probed.wait()
        except asyncio.CancelledError:
            self._turns.release()
            raise

    def leave(self, era: int, *, good: bool | None, now: float, about: str = "") -> None:
        """Give the turn back, and say how the call went; None if nothing was learned.

        Args:
            era: What `enter` returned.
            good: How it went.
            now: Seconds on the monotonic clock.
            about: Which resource was read, where a resource by itself may be broken.
        """
        self._turns.release()
        if era != self._era:
            return  # it began before the breaker opened or closed, and says nothing of the time since
        if self._probing:
            self._probing = False
            self._probed.set()
            if good is not None:
                self._close() if good else self._open(now)
        elif good:
            self._in_a_row = 0
            self._slot(now).good += 1
        elif good is not None:
            self._in_a_row += 1
            slot = self._slot(now)
            slot.bad += 1
            if about and len(slot.failing) < _LEAST_DIFFERENT:
                slot.failing.add(about)
            if about and len(set[str]().union(*(each.failing for each in self._slots))) < _LEAST_DIFFERENT:
                return  # one person's broken account is no broken operation
            if self._in_a_row >= self._rules.failures or self._too_few_successes():
                self._open(now)

    def _slot(self, now: float) -> "_Slot":
        """The part of the window that is now."""
        while now >= self._slot_ends:
            if now >= self._slot_ends + self._rules.window_seconds:
                self._slots.clear()
                self._slot_ends = now
            self._slots.append(_Slot())
            self._slot_ends += self._rules.window_seconds / _SLOTS
        return self._slots[-1]

    def _too_few_successes(self) -> bool:
        good = sum(each.good for each in self._slots)
        calls = good + sum(each.bad for each in self._slots)
        return calls >= self._rules.least_calls and good < self._rules.success_share * calls

    def _open(self, now: float) -> None:
        if self._opens_again is None:
            UPSTREAM_SHUT.labels(self.operation).inc()
            log.warning("upstream_shut", operation=self.operation)
        self._opens_again = now + self._rules.rest_seconds * (1 + _JITTER * (2 * self._draw() - 1))
        self._era += 1

    def _close(self) -> None:
        UPSTREAM_SHUT.labels(self.operation).dec()
        log.info("upstream_open_again", operation=self.operation)
        self._opens_again = None
        self._era += 1
        self._in_a_row = 0
        self._slot_ends = -math.inf  # the window begins anew
