"""Waiting, bounded, for what no event tells of: what others have heard, or what a lease's end brings."""

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isawaitable

__all__ = ["until"]


async def until(happened: Callable[[], Awaitable[object] | object], *, seconds: float = 20) -> None:
    """Return as soon as it has happened.

    Raises:
        TimeoutError: It did not.
    """
    async with asyncio.timeout(seconds):
        while True:
            answer = happened()
            if await answer if isawaitable(answer) else answer:
                return
            await asyncio.sleep(0.02)
