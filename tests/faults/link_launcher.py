"""Serves the app with settings from the environment, and kills its own process at one operation of the link step.

    python -m tests.faults.link_launcher OPERATION before|after

An operation is a script of the store, or `batch`, the vendor's call. Prints its URL once it serves.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

from service.settings import load_settings
from service.stores.connection import Store
from service.upstream.transport import Answer, Transport
from service.wiring import Timing
from tests.conftest import running_replica

__all__ = ["TIMING"]

TIMING: Final = Timing(claim_lease=0.4, sent_lease=0.4)
"""Of whoever takes part: what a killed process held is over soon."""


def _strike_at(operation: str, moment: str) -> None:
    run, act = Store.run, Transport.act

    def strike(now: str, when: str) -> None:
        if (now, when) == (operation, moment):
            os.kill(os.getpid(), signal.SIGKILL)

    async def run_or_die(self: Store, script: str, *, keys: Sequence[str], args: Sequence[str | int] = ()) -> Any:
        strike(script, "before")
        answer = await run(self, script, keys=keys, args=args)
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


async def _serve() -> None:
    async with running_replica(load_settings(), timing=TIMING) as replica:
        print(replica.url, flush=True)  # noqa: T201 -- whoever has started us reads it
        await asyncio.Event().wait()


if __name__ == "__main__":
    _strike_at(*sys.argv[1:3])
    asyncio.run(_serve())
