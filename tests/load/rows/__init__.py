"""The rows of the table, by number."""

from collections.abc import Callable, Mapping
from typing import Final

from tests.load.rows.cold import cold_callers
from tests.load.rows.life import start_and_memory
from tests.load.rows.links import whole_links
from tests.load.rows.strictness import strictness
from tests.load.rows.through import added_latency, reads_at_once, reads_of_slow_upstream
from tests.load.rows.waiting import waiters
from tests.load.run import Run

__all__ = ["ROWS"]

ROWS: Final[Mapping[int, Callable[[Run], None]]] = {
    1: reads_at_once,
    2: reads_of_slow_upstream,
    3: added_latency,
    4: whole_links,
    5: waiters,
    6: cold_callers,
    7: start_and_memory,
    8: strictness,
}
