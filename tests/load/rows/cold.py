"""Row 6: many callers at the same time, and nobody has a token yet."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import uvloop

from service.settings import SANDBOX_API_KEY
from tests.load.client import Broken, Connection
from tests.load.measure import OURS, Goal, Measure
from tests.load.peers.start import ours, plain
from tests.load.processes import Server
from tests.load.run import Run
from tests.load.upstreams.start import crowd

__all__ = ["cold_callers"]

_PROCESSES: Final = 3
_ROUNDS: Final = 3


def cold_callers(run: Run) -> None:
    """Everybody opens a session at once, on processes that share a store."""
    callers = run.effort.callers
    calls = Measure(6, f"{callers} cold callers, {_PROCESSES} processes: token calls", "", Goal.below(1, "1"))
    slowest = Measure(6, "until all have a session", "s")
    failed = Measure(6, "failed", "", base=None)
    run.measure(calls, slowest, failed)
    for _ in range(min(_ROUNDS, run.effort.repeats)):
        for name, start in ((OURS, ours), ("plain", plain)):
            run.say(f"  {name}")
            with ExitStack() as stack:
                store = stack.enter_context(run.place.store())
                upstream = stack.enter_context(crowd(run.place, 0))
                run.note(f"row 6: the vendor takes {upstream.slow_tokens():g} s for a token")
                servers = [
                    stack.enter_context(start(run.place, store=store, upstream=upstream.url)) for _ in range(_PROCESSES)
                ]
                runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
                seconds, lost = runner.run(_call_at_once(servers, callers))
                calls.add(name, upstream.calls().get("token", 0))
                slowest.add(name, seconds)
                failed.add(name, lost)


async def _call_at_once(servers: Sequence[Server], callers: int) -> tuple[float, int]:
    """How long it took, and how many got none."""
    connections = [Connection(servers[number % len(servers)].origin) for number in range(callers)]
    await asyncio.gather(*(each.open() for each in connections))
    started = time.monotonic()

    async def call(connection: Connection) -> bool:
        try:
            answer = await connection.send("POST", "/v1/sessions", token=SANDBOX_API_KEY, body={})
        except Broken:
            return False
        return answer.status == 201

    done = await asyncio.gather(*(call(each) for each in connections))
    seconds = time.monotonic() - started
    for each in connections:
        each.close()
    return seconds, done.count(False)
