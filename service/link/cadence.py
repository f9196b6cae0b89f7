"""When to ask next whether a job is finished, learned from how long earlier jobs of the same provider took.

A poll costs the vendor a request; waiting costs the person time. Delay + price * polls is least when polls come at the
rate sqrt(h / (2 * price)), h being the chance per second that a job still pending finishes now. One price for all
providers spends each poll where it saves the most waiting.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from math import sqrt
from typing import Final, TypeAlias

__all__ = ["BUCKETS", "MOST_COUNTED", "Histogram", "bucket_of", "histogram_of", "next_delay"]

Histogram: TypeAlias = tuple[int, ...]
"""How many finished jobs fell into each bucket, shortest first."""

BUCKETS: Final = 32
MOST_COUNTED: Final = 192
"""Jobs. Whoever counts one more halves all buckets, so that the last hundred or two decide."""

_UNKNOWN_SECONDS: Final = 1.0
_SOONEST_SECONDS: Final = 0.25
_LATEST_SECONDS: Final = 5.0

_POLL_PRICE_SECONDS: Final = 0.023
"""The delay that one poll more must save. Dearer, and waiting is not halved; cheaper, and providers without a typical
duration are polled more often than once a second."""

_SURPRISES: Final = 1.0
"""Jobs, spread over all buckets, that are believed in unseen: they keep polls coming where nothing was counted."""

_ENDLESS: Final = 1.0
"""Jobs that are believed never to finish: after the last bucket with a count they let the polls become ever slower."""

_EDGES: Final = (0.0, *(1.05 * 2 ** (step / 5) for step in range(BUCKETS - 1)), 300.0)
"""Seconds. With five steps per doubling from 1.05, the durations 5, 10, 15, 20, 30, 40 and 60 s, which timers and
retries like, all stand early in a bucket, where few polls go before them."""

_WIDTHS: Final = tuple(end - start for start, end in pairwise(_EDGES))
_BELIEVABLE_COUNT: Final = 1_000_000
_DIGITS_READ: Final = 9


def bucket_of(seconds: float) -> int:
    """The bucket for a job that took so long; the outermost ones take whatever lies beyond, and 0 what is no number.

    The caller passes the middle between the last poll that found the job pending and the one that found it finished.
    """
    return min(bisect_right(_EDGES, seconds), BUCKETS) - 1 if seconds > 0 else 0


def histogram_of(fields: Mapping[str, str]) -> Histogram:
    """The counts in a Redis hash whose fields are bucket numbers; whatever is not a count is 0."""
    return tuple(_count(fields.get(str(bucket), "0")) for bucket in range(BUCKETS))


def next_delay(elapsed: float, histogram: Sequence[int]) -> float:
    """Seconds until the next poll of a job that was still pending `elapsed` seconds after its start.

    Always between 0.25 and 5, whatever the counts are; 1 if nothing was counted yet. Carries no jitter.
    """
    counts = [min(max(count, 0), _BELIEVABLE_COUNT) for count in histogram[:BUCKETS]]
    if not any(counts):
        return _UNKNOWN_SECONDS
    at = min(elapsed, _EDGES[-1]) if elapsed > 0 else 0.0
    return min(max(_due(at, counts) - at, _SOONEST_SECONDS), _LATEST_SECONDS)


def _due(at: float, counts: Sequence[int]) -> float:
    """When the polling rate, integrated from `at`, reaches one poll.

    With the jobs of a bucket spread evenly over it, the integral of sqrt(h) from u to v within one bucket is
    2 * (sqrt(pending at u) - sqrt(pending at v)) / sqrt(jobs per second).
    """
    jobs = [count + _SURPRISES / BUCKETS for count in counts]
    jobs += [_SURPRISES / BUCKETS] * (BUCKETS - len(jobs))
    pending_from = [*accumulate(reversed(jobs), initial=_ENDLESS)][::-1]
    missing = sqrt(2 * _POLL_PRICE_SECONDS)
    start = at
    for bucket in range(bucket_of(at), BUCKETS):
        end, per_second, pending_at_end = _EDGES[bucket + 1], jobs[bucket] / _WIDTHS[bucket], pending_from[bucket + 1]
        root = sqrt(pending_at_end + per_second * (end - start))
        root_when_due = root - missing * sqrt(per_second) / 2
        if root_when_due > 0 and root_when_due * root_when_due >= pending_at_end:
            return end - (root_when_due * root_when_due - pending_at_end) / per_second
        missing -= 2 * (root - sqrt(pending_at_end)) / sqrt(per_second)
        start = end
        if end - at >= _LATEST_SECONDS:
            break
    return at + _LATEST_SECONDS


def _count(text: str) -> int:
    return int(text) if len(text) <= _DIGITS_READ and text.isascii() and text.isdigit() else 0
