"""Row 8: how long a request body is looked at, beside how long others take to parse it."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from timeit import Timer
from typing import Final

import orjson

from service.api.strict_json import parse_json
from service.errors import MalformedRequest
from tests.api.costly_json import COSTLY
from tests.load.measure import OURS, Goal, Measure
from tests.load.run import Run

__all__ = ["strictness"]

_STDLIB: Final = "json.loads"
_SECONDS_AT_A_TIME: Final = 0.01
_FREE_MICROSECONDS: Final = 600
"""A quarter of what the costliest of them takes `json.loads`; what it reads in no time may take this long."""

_PARSERS: Final[Mapping[str, Callable[[bytes], object]]] = {
    OURS: lambda raw: parse_json(raw, max_depth=32),
    _STDLIB: json.loads,
    "orjson.loads": orjson.loads,
}
_TYPICAL: Final = {
    "sign-in": b'{"providerId": "aps", "username": "user_quick", "password": "pass_good"}',
    "link": b'{"serviceAccountIds":["sa_1","sa_2"],"consent":{"version":"1","acceptedAt":"2026-01-01T00:00:00Z"}}',
}


def strictness(run: Run) -> None:
    """Row 8: bodies of 64 KiB that cost as much as they can, and two of every day."""
    within = Goal(
        f"2 x {_STDLIB}, or {_FREE_MICROSECONDS} us", lambda of: of[OURS] <= max(2 * of[_STDLIB], _FREE_MICROSECONDS)
    )
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {run.place.cores.server})
    try:
        for kind, raw in {**COSTLY, **_TYPICAL}.items():
            measure = Measure(8, f"{kind}: {len(raw):,} bytes", "us", within)
            run.measure(measure)
            for _ in range(run.effort.repeats):
                for name, parse in _PARSERS.items():
                    measure.add(name, _microseconds(parse, raw))
    finally:
        os.sched_setaffinity(0, everywhere)


def _microseconds(parse: Callable[[bytes], object], raw: bytes) -> float:
    def once() -> None:
        with suppress(ValueError, RecursionError, MalformedRequest):
            parse(raw)

    timer = Timer(once, "import gc; gc.enable()")  # collected as in a service
    times = max(1, int(_SECONDS_AT_A_TIME / timer.timeit(1)))
    return min(timer.repeat(3, times)) / times * 1e6
