"""Time, passed in wherever it decides something, so that tests of expiry move a clock instead of waiting."""

import time
from typing import Final, NewType, Protocol

__all__ = ["LONGEST_WAIT_SECONDS", "SYSTEM_CLOCK", "Clock", "Millis", "SystemClock"]

Millis = NewType("Millis", int)
"""Milliseconds since the Unix epoch."""

LONGEST_WAIT_SECONDS: Final = 25
"""For which a caller is kept waiting: below the 30 s after which common proxies give up.

Who makes calls to the vendor for a caller hands down the moment of the monotonic clock when this is over, `give_up`.
"""


class Clock(Protocol):
    """Where code that decides about time gets it from."""

    def now(self) -> Millis:
        """Wall-clock time: for what is stored and shared."""

    def monotonic(self) -> float:
        """Seconds that only grow: for how long something took."""


class SystemClock:
    """The machine's own time."""

    def now(self) -> Millis:
        """Wall-clock time in milliseconds."""
        return Millis(time.time_ns() // 1_000_000)

    def monotonic(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()


SYSTEM_CLOCK: Final[Clock] = SystemClock()
