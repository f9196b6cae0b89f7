"""Whether a read is tried again, and when: few times, spread out, and never so often that it adds to the trouble.

Not a retry library: those add jitter to a fixed wait, know no budget, and log what the exception says.
"""

import random
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from service.clock import Clock
from service.errors import ServiceError, UpstreamError, UpstreamUnavailable

__all__ = ["Retries"]

_MOST_RETRIES: Final = 2
_BASE_SECONDS: Final = 0.1
_CAP_SECONDS: Final = 2.0
_EARNED_BY_A_READ: Final = 0.1
_EARNED_PER_SECOND: Final = 1.0
_MOST_SAVED: Final = 10.0


class Retries:
    """The budget that all reads of a process share: a tenth of them, and one a second."""

    def __init__(self, *, clock: Clock, draw: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._draw = draw
        self._saved = _MOST_SAVED
        self._counted_at = clock.monotonic()

    def earn(self) -> None:
        """A read was asked for."""
        self._saved = min(_MOST_SAVED, self._saved + _EARNED_BY_A_READ)

    def delay(self, error: ServiceError, *, retries: int, left: float) -> float | None:
        """Seconds until a read is tried again that was tried again `retries` times; None if it is not.

        With full jitter, later if the vendor has said so, and only if it ends within the `left` seconds.
        """
        passing = isinstance(error, UpstreamUnavailable) or (
            isinstance(error, UpstreamError) and error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        )
        if not passing or retries >= _MOST_RETRIES:
            return None
        delay = self._draw() * min(_CAP_SECONDS, _BASE_SECONDS * 2**retries)
        if isinstance(error, UpstreamError) and error.retry_after is not None:
            delay += error.retry_after
        return delay if delay < left and self._spend() else None

    def _spend(self) -> bool:
        now = self._clock.monotonic()
        self._saved = min(_MOST_SAVED, self._saved + (now - self._counted_at) * _EARNED_PER_SECOND)
        self._counted_at = now
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
