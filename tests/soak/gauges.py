"""What must not grow: read from the service's own metrics and from its store, and fitted with a line."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression
from typing import Any, Final

import httpx
from redis.asyncio import Redis

__all__ = ["BOUNDS", "Sample", "slope_per_minute", "take"]

_MEBIBYTE: Final = 2**20
_METRICS: Final = {
    "memory": "process_resident_memory_bytes",
    "descriptors": "process_open_fds",
    "tasks": "omniconnect_tasks",
}
_COUNT_KEYS: Final = """
local cursor, all, guards, endless = '0', 0, 0, 0
repeat
  local page = redis.call('SCAN', cursor, 'COUNT', 1000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do
    if string.find(key, ':{g:', 1, true) then guards = guards + 1 else all = all + 1 end
    if redis.call('PTTL', key) == -1 then endless = endless + 1 end
  end
until cursor == '0'
return {all, guards, endless}
"""

BOUNDS: Final[Mapping[str, float]] = {
    "memory": 0.5,
    "descriptors": 1.0,
    "tasks": 1.0,
    "keys": 30.0,
    "keys without TTL": 0.0,
}
"""The most that each may grow in a minute; memory in MiB.

Guards of what is linked are not among the keys: they are kept for a day, so within minutes they only become more.
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """All gauges at one moment.

    Attributes:
        at: Seconds since the first one.
    """

    at: float
    values: Mapping[str, float]


async def take(client: httpx.AsyncClient, redis: Redis, *, at: float) -> Sample:
    """Read all gauges."""
    text = (await client.get("/metrics")).text
    values = {name: _metric(text, metric) for name, metric in _METRICS.items()}
    values["memory"] /= _MEBIBYTE
    counted: Any = await redis.eval(_COUNT_KEYS, 0)  # type: ignore[misc,no-untyped-call,unused-ignore]
    return Sample(at, values | dict(zip(("keys", "guards", "keys without TTL"), map(float, counted), strict=True)))


def _metric(text: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    if found is None:
        raise LookupError(name)
    return float(found[1])


def slope_per_minute(samples: Sequence[Sample], name: str) -> float:
    """By least squares; 0 where nothing moves."""
    values = [each.values[name] for each in samples]
    if len(set(values)) == 1:
        return 0.0
    return linear_regression([each.at / 60 for each in samples], values).slope


def mean(samples: Sequence[Sample], name: str) -> float:
    """The mean."""
    return fmean(each.values[name] for each in samples)
