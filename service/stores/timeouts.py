"""Time limits that a busy event loop does not use up."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

__all__ = ["within"]

_T = TypeVar("_T")
_TICKS: Final = 20


class _Ticks:
    """A time limit that is counted in ticks of the event loop, so that the loop's own delays do not use it up.

    A busy process sees an answer late that was there in time; by the clock alone it would call a healthy Redis dead.
    """

    __slots__ = ("_end", "_left", "_loop", "_seconds", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, end: Callable[[], object]) -> None:
        self._loop = loop
        self._seconds = seconds / _TICKS
        self._left = _TICKS
        self._end = end
        self._timer = loop.call_later(self._seconds, self._tick)

    def cancel(self) -> None:
        """It came in time."""
        self._timer.cancel()

    def _tick(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = self._loop.call_later(self._seconds, self._tick)
        else:
            self._end()


async def within(seconds: float, work: Awaitable[_T]) -> _T:
    """Do it in a task of its own: should redis-py lose a cancellation, the caller goes on all the same.

    Raises:
        TimeoutError: It took too long.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    over: asyncio.Future[None] = loop.create_future()

    def end(_: object = None) -> None:
        if not over.done():
            over.set_result(None)

    task.add_done_callback(end)
    ticks = _Ticks(loop, seconds, end)
    try:
        await over
        if task.done():
            return task.result()
    finally:
        ticks.cancel()
        if not task.done():
            task.add_done_callback(_forget)
            task.cancel()
    raise TimeoutError


def _forget(task: asyncio.Future[Any]) -> None:
    """Nobody waits for it any more, and what it ended with is no news."""
    if not task.cancelled():
        task.exception()
