"""Rows 1 to 3: one read passed through to the vendor, by this service and by each peer."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from tests.load.measure import OURS, Goal, Measure
from tests.load.peers.start import node_peer, node_ready, ours, plain, proxy
from tests.load.processes import Server
from tests.load.run import Run
from tests.load.upstreams.answers import ACCOUNT_PATH, PREFIX
from tests.load.upstreams.start import Upstream, instant, late
from tests.load.walks import ready
from tests.load.wrk import Burst, Lines, burst, write_lines

__all__ = ["added_latency", "reads_at_once", "reads_of_slow_upstream"]

_SESSIONS: Final = 1024
"""Asked in turn, and more than there are connections: no two requests that are under way share a session."""

_OPENED_AT_ONCE: Final = 64
_CONNECTIONS: Final = 64
_MANY_CONNECTIONS: Final = 500
_LATE_SECONDS: Final = 0.1
_LEAST_ASKED: Final = 0.99
"""Upstream calls per answer, below which somebody answers without asking."""

_DIRECT: Final = "direct"


@dataclass(frozen=True, slots=True)
class _Target:
    """What is asked, and where; the vendor itself has no server of ours."""

    server: Server
    lines: Path


def reads_at_once(run: Run) -> None:
    """Row 1: an upstream that answers at once."""
    speed = Measure(
        1,
        f"pass-through read, {_CONNECTIONS} connections",
        "1/s",
        Goal(
            "at least 12 x plain, above express",
            lambda of: of[OURS] >= 12 * of["plain"] and of[OURS] > of.get("express", 0),
        ),
    )
    cost = Measure(1, "CPU per request", "us")
    asked = Measure(1, "upstream calls per answer", "", base=None)
    failed = Measure(1, "failed", "", base=None)
    run.measure(speed, cost, asked, failed)
    with instant(run.place) as upstream, _line_up(run, upstream) as targets:
        for name, target in _turns(run, targets, _CONNECTIONS):
            target.server.settle()
            seen, used = upstream.requests(), target.server.cpu_seconds()
            told = burst(target.server.origin, target.lines, connections=_CONNECTIONS, seconds=run.effort.seconds)
            speed.add(name, told.per_second)
            cost.add(name, 1_000_000 * (target.server.cpu_seconds() - used) / max(1, told.answers))
            _account(run, name, told, upstream.requests() - seen, asked=asked, failed=failed)


def reads_of_slow_upstream(run: Run) -> None:
    """Row 2: many connections, and an upstream that takes its time."""
    possible = round(_MANY_CONNECTIONS / _LATE_SECONDS)
    speed = Measure(
        2,
        f"the same, {_MANY_CONNECTIONS} connections, upstream takes {_LATE_SECONDS * 1000:.0f} ms, {possible} possible",
        "1/s",
        Goal.above(3500, "at least 3,500"),
    )
    slowest = Measure(2, "p99", "ms", Goal.below(300, "below 300 ms"))
    failed = Measure(2, "failed", "", Goal.below(0, "none"), base=None)
    asked = Measure(2, "upstream calls per answer", "", base=None)
    run.measure(speed, slowest, failed, asked)
    with late(run.place, _LATE_SECONDS) as upstream, _line_up(run, upstream) as targets:
        for name, target in _turns(run, targets, _MANY_CONNECTIONS):
            target.server.settle()
            seen = upstream.requests()
            told = burst(target.server.origin, target.lines, connections=_MANY_CONNECTIONS, seconds=run.effort.seconds)
            speed.add(name, told.per_second)
            slowest.add(name, told.p99_ms)
            _account(run, name, told, upstream.requests() - seen, asked=asked, failed=failed)


def added_latency(run: Run) -> None:
    """Row 3: what a call takes longer than one to the vendor itself, one at a time."""
    middle = Measure(3, "latency added to the upstream's, one connection, p50", "ms", Goal.below(1.0, "below 1 ms"))
    slow = Measure(3, "the same, p99", "ms")
    whole = Measure(3, "whole latency, p50", "ms")
    run.measure(middle, slow, whole)
    with instant(run.place) as upstream, _line_up(run, upstream) as targets:
        direct = _Target(upstream.server, write_lines(run.place, _DIRECT, [(f"{PREFIX}{ACCOUNT_PATH}", None)]))
        base: Burst | None = None
        for name, target in _turns(run, {_DIRECT: direct, **targets}, 1):
            target.server.settle()
            told = burst(target.server.origin, target.lines, connections=1, seconds=run.effort.seconds / 2)
            whole.add(name, told.p50_ms)
            if name == _DIRECT:
                base = told
            elif base is not None:
                middle.add(name, told.p50_ms - base.p50_ms)
                slow.add(name, told.p99_ms - base.p99_ms)


def _account(run: Run, name: str, told: Burst, seen: int, *, asked: Measure, failed: Measure) -> None:
    good = max(1, told.answers - told.failed)
    asked.add(name, seen / good)
    failed.add(name, told.failed)
    if seen < _LEAST_ASKED * good:
        run.note(f"{name} gave {good} answers for {seen} upstream calls: it answered without asking")


def _turns(run: Run, targets: Mapping[str, _Target], connections: int) -> Iterator[tuple[str, _Target]]:
    """Everybody once to warm up, then everybody in turn, so that what the machine does meets all alike."""
    for name, target in targets.items():
        run.say(f"  warming up {name}")
        burst(target.server.origin, target.lines, connections=connections, seconds=run.effort.seconds / 2)
    for repeat in range(run.effort.repeats):
        run.say(f"  round {repeat + 1} of {run.effort.repeats}")
        yield from targets.items()


@contextmanager
def _line_up(run: Run, upstream: Upstream) -> Iterator[dict[str, _Target]]:
    """This service and all peers, each ready to be asked for service accounts."""
    place = run.place
    through: Lines = [(ACCOUNT_PATH, None)]
    with ExitStack() as stack:
        targets: dict[str, _Target] = {}
        for name, start in ((OURS, ours), ("plain", plain)):
            store = stack.enter_context(place.store())
            server = stack.enter_context(start(place, store=store, upstream=upstream.url))
            targets[name] = _Target(server, write_lines(place, name, _sessions(server)))
        passing = write_lines(place, "through", through)
        targets["nginx"] = _Target(stack.enter_context(proxy(place, upstream)), passing)
        home = node_ready(place)
        if home is None:
            run.note("express and fastify are left out: node and its packages are not to be had here")
        else:
            for name in ("express", "fastify"):
                targets[name] = _Target(stack.enter_context(node_peer(place, home, name, upstream)), passing)
        yield targets


def _sessions(server: Server) -> Lines:
    async def open_all() -> list[tuple[str, str]]:
        turns = asyncio.Semaphore(_OPENED_AT_ONCE)
        return await asyncio.gather(*(ready(server.origin, "user_good", turns) for _ in range(_SESSIONS)))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return [(f"{path}/service-accounts", token) for path, token in runner.run(open_all())]
