"""Row 4: whole links, by everybody who can make them."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import uvloop

from tests.load.client import Broken
from tests.load.measure import Goal, Measure
from tests.load.peers.start import ours, plain
from tests.load.processes import Server
from tests.load.run import Run
from tests.load.upstreams.crowd import username
from tests.load.upstreams.start import Crowd, crowd
from tests.load.walks import link_by_polling, link_by_stream, link_by_widget

__all__ = ["link_many", "whole_links"]

_PEOPLE: Final = {2: "user_good", 15: "user_slow"}
"""By how many seconds the check of their password takes."""

_ROUNDS_TO_LEARN: Final = 2
_ARRIVE_SECONDS: Final = 2.0
_WIDGET: Final = "vendor's widget"
_POLLING: Final = "ours, polling"
_STREAM: Final = "ours, stream"

Walk = Callable[[str, str], Awaitable[None]]


def whole_links(run: Run) -> None:
    """All ways to link, with short and with long jobs."""
    speeds, calls = {}, {}
    for seconds in _PEOPLE:
        speeds[seconds] = Measure(4, f"links per CPU second, {seconds} s jobs", "1/s", base=_STREAM)
        goal = Goal.below(9, "at most 9", subject=_STREAM) if seconds == max(_PEOPLE) else None
        calls[seconds] = Measure(4, f"upstream calls per link, {seconds} s jobs", "", goal, base=_STREAM)
        run.measure(speeds[seconds], calls[seconds])
    failed = Measure(4, "failed links", "", base=None)
    run.measure(failed)
    most = run.effort.walkers * (run.effort.rounds + 1) * 8 + 200
    with crowd(run.place, most) as upstream:
        numbers = itertools.count()

        def measured(seconds: int, who: str, walk: Walk, url: str, server: Server | None) -> None:
            for _ in range(run.effort.rounds if seconds == min(_PEOPLE) else 1):
                run.say(f"  {who}, {seconds} s jobs")
                done, used, asked = _round(
                    run, walk, url, person=_PEOPLE[seconds], numbers=numbers, upstream=upstream, server=server
                )
                failed.add(who, run.effort.walkers - done)
                calls[seconds].add(who, asked / max(1, done))
                if server is not None:
                    speeds[seconds].add(who, done / max(used, 0.01))

        for seconds, person in _PEOPLE.items():
            # A store of its own for each length: what a provider's jobs take is learned, and this one's take that long.
            with run.place.store() as store, ours(run.place, store=store, upstream=upstream.url) as server:
                _warm_up(link_by_stream, server, numbers)
                for _ in range(_ROUNDS_TO_LEARN):
                    run.say(f"  ours, learning {seconds} s jobs")
                    _round(
                        run,
                        link_by_stream,
                        server.origin,
                        person=person,
                        numbers=numbers,
                        upstream=upstream,
                        server=server,
                    )
                measured(seconds, _STREAM, link_by_stream, server.origin, server)
                measured(seconds, _POLLING, link_by_polling, server.origin, server)
            with run.place.store() as store, plain(run.place, store=store, upstream=upstream.url) as server:
                _warm_up(link_by_polling, server, numbers)
                measured(seconds, "plain", link_by_polling, server.origin, server)
            measured(seconds, _WIDGET, link_by_widget, upstream.url, None)


def link_many(walk: Walk, url: str, people: list[str], *, arrive_seconds: float, at_once: int) -> list[str]:
    """Let people link, arriving one after the other; returns why some failed."""

    async def run_all() -> list[str]:
        turns = asyncio.Semaphore(at_once)

        async def one(number: int, person: str) -> str | None:
            await asyncio.sleep(arrive_seconds * number / len(people))
            async with turns:
                try:
                    await walk(url, person)
                except Broken as error:
                    return str(error)
            return None

        told = await asyncio.gather(*(one(number, person) for number, person in enumerate(people)))
        return [each for each in told if each is not None]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_all())


def _round(
    run: Run, walk: Walk, url: str, *, person: str, numbers: Iterator[int], upstream: Crowd, server: Server | None
) -> tuple[int, float, int]:
    """How many have linked, the server's CPU seconds, and the calls that reached the vendor."""
    people = [username(person, next(numbers)) for _ in range(run.effort.walkers)]
    if server is not None:
        server.settle()
    before, used = sum(upstream.calls().values()), server.cpu_seconds() if server is not None else 0.0
    faults = link_many(walk, url, people, arrive_seconds=_ARRIVE_SECONDS, at_once=len(people))
    if faults:
        run.say(f"  {len(faults)} failed, the first with {faults[0]}")
    if server is not None:
        used = server.cpu_seconds() - used
    return len(people) - len(faults), used, sum(upstream.calls().values()) - before


def _warm_up(walk: Walk, server: Server, numbers: Iterator[int]) -> None:
    people = [username("user_quick", next(numbers)) for _ in range(20)]
    link_many(walk, server.origin, people, arrive_seconds=0, at_once=len(people))
    time.sleep(0.5)
