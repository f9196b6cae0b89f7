"""Serves the app in a process of its own, which kills itself at one operation of the link step.

An operation is a script of the store, or `batch`, the vendor's call.
"""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any, Final

from service.settings import load_settings
from service.stores.connection import Store
from service.upstream.transport import Answer, Transport
from service.wiring import Timing
from tests.conftest import running_replica

__all__ = ["TIMING", "doomed"]

TIMING: Final = Timing(claim_lease=0.4, sent_lease=0.4)
"""Of whoever takes part: what a killed process held is over soon."""

_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])  # importing the service takes a second, and a process is killed in each test


@asynccontextmanager
async def doomed(
    environ: Mapping[str, str], operation: str, moment: str
) -> AsyncIterator[tuple[str, ForkServerProcess]]:
    """Address and process of an instance with settings of `environ`, which dies `before` or `after` an operation."""
    ours, theirs = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=_run, args=(dict(environ), operation, moment, theirs))
    process.start()
    theirs.close()
    try:
        with ours:
            url: str = await asyncio.to_thread(ours.recv)
        yield url, process
    finally:
        process.kill()
        await asyncio.to_thread(process.join)
        process.close()


def _run(environ: Mapping[str, str], operation: str, moment: str, told: Connection) -> None:
    os.environ.clear()
    os.environ.update(environ)
    _strike_at(operation, moment)
    asyncio.run(_serve(told))


def _strike_at(operation: str, moment: str) -> None:
    run, act = Store.run, Transport.act

    def strike(now: str, when: str) -> None:
        if (now, when) == (operation, moment):
            os.kill(os.getpid(), signal.SIGKILL)

    async def run_or_die(
        self: Store, script: str, *, keys: Sequence[str], args: Sequence[str | int] = (), kept: bool = False
    ) -> Any:
        strike(script, "before")
        answer = await run(self, script, keys=keys, args=args, kept=kept)
        strike(script, "after")
        return answer

    async def act_or_die(self: Transport, url: str, **rest: Any) -> Answer:
        route = url.rpartition("/")[2]
        strike(route, "before")
        answer = await act(self, url, **rest)
        strike(route, "after")
        return answer

    Store.run = run_or_die  # type: ignore[method-assign]
    Transport.act = act_or_die  # type: ignore[method-assign]


async def _serve(told: Connection) -> None:
    async with running_replica(load_settings(), timing=TIMING) as replica:
        told.send(replica.url)
        await asyncio.Event().wait()
