"""Row 7: how fast it starts, and what it holds."""

import time
from typing import Final

from tests.load.measure import OURS, Goal, Measure
from tests.load.peers.start import ours, plain
from tests.load.processes import Server
from tests.load.rows.links import link_many
from tests.load.run import Run
from tests.load.upstreams.crowd import username
from tests.load.upstreams.start import Crowd, crowd
from tests.load.walks import link_by_stream

__all__ = ["start_and_memory"]

_AT_ONCE: Final = 100
_FIRST_SHARE: Final = 10
"""The first tenth of the links fills what is filled once."""

_REST_SECONDS: Final = 1.0


def start_and_memory(run: Run) -> None:
    """Starts in turn with plain's; then an hour's worth of links on the last of ours."""
    start = Measure(7, "start to ready", "s", Goal.below(1.2, "below 1.2 s"))
    rest = Measure(7, "resident memory at rest", "MB", Goal.below(110, "below 110 MB"))
    after = Measure(7, f"resident memory after {run.effort.links} links", "MB", Goal.below(110, "below 110 MB"))
    growth = Measure(7, "growth over the last nine tenths of them", "MB")
    run.measure(start, rest, after, growth)
    with run.place.store() as store, crowd(run.place, run.effort.links) as upstream:
        for number in range(run.effort.starts):
            run.say(f"  start {number + 1} of {run.effort.starts}")
            for name, starting in ((OURS, ours), ("plain", plain)):
                started = time.monotonic()
                with starting(run.place, store=store, upstream=upstream.url) as server:
                    start.add(name, time.monotonic() - started)
                    time.sleep(_REST_SECONDS)
                    rest.add(name, server.resident_mb())
                    if name == OURS and number == run.effort.starts - 1:
                        _link_for_an_hour(run, server, upstream, after, growth)


def _link_for_an_hour(run: Run, server: Server, upstream: Crowd, after: Measure, growth: Measure) -> None:
    people = [username("user_quick", number) for number in range(run.effort.links)]
    first = len(people) // _FIRST_SHARE
    sizes = []
    for part in (people[:first], people[first:]):
        run.say(f"  {len(part)} links")
        faults = link_many(link_by_stream, server.origin, part, arrive_seconds=0, at_once=_AT_ONCE)
        if faults:
            run.note(f"row 7: {len(faults)} links failed, the first with {faults[0]}")
        server.settle()
        sizes.append(server.resident_mb())
    linked = upstream.calls().get("batch", 0)
    if linked != len(people):
        run.note(f"row 7: the vendor was told of {linked} links instead of {len(people)}")
    after.add(OURS, sizes[-1])
    growth.add(OURS, sizes[-1] - sizes[0])
