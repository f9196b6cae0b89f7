"""Work that outlives the request that asked for it, and is not lost at shutdown."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from service.errors import ServiceError
from service.telemetry import log

__all__ = ["Tasks"]

_T = TypeVar("_T")
_CANCEL_ROUNDS: Final = 5
_CANCEL_SECONDS: Final = 1.0


class Tasks:
    """Tasks with an owner: referenced until they end, logged if they break, waited for at shutdown."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, _T], *, name: str) -> asyncio.Task[_T]:
        """Start work that nobody's disconnect can cancel; await it through `asyncio.shield`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, ServiceError):
            log.error("task_broke", task=task.get_name(), exc_info=error)

    async def drain(self, seconds: float) -> None:
        """Wait for what is under way and for what that starts, then cancel what is left, and what that has started."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while self._tasks and (seconds_left := until - loop.time()) > 0:
            await asyncio.wait(tuple(self._tasks), timeout=seconds_left)
        for _ in range(_CANCEL_ROUNDS):
            left = tuple(self._tasks)
            if not left:
                return
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=_CANCEL_SECONDS)
        log.warning("tasks_left", tasks=len(self._tasks))
