"""When to poll: bounds, shapes, and on a virtual clock the delay and the polls that it costs."""

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

import pytest

from service.link.cadence import BUCKETS, MOST_COUNTED, bucket_of, histogram_of, next_delay

NOTHING = (0,) * BUCKETS
WARM_UP, MEASURED, SEEDS = 200, 300, range(2)
CHARACTERISTIC_SECONDS = (2, 5, 15, 40)

Rule = Callable[[float, Sequence[int]], float]
Draw = Callable[[random.Random], float]


class Seen(NamedTuple):
    delay: float
    polls: int


def only(bucket: int, count: int = 100) -> list[int]:
    return [count if other == bucket else 0 for other in range(BUCKETS)]


def fixed(elapsed: float, _: Sequence[int]) -> float:
    return 1.0 if elapsed else 0.5


def around(seconds: float) -> Draw:
    return lambda rng: seconds * math.exp(rng.gauss(0, 0.2))


def mixed(rng: random.Random) -> float:
    return around(rng.choice(CHARACTERISTIC_SECONDS))(rng)


def provider(rule: Rule, draws: Sequence[Draw], seed: int = 1) -> list[Seen]:
    """One provider's jobs one after another, the same for every rule; what a poll has seen is all that is learned."""
    world, rng = random.Random(seed), random.Random(~seed)  # noqa: S311 -- the same in every run
    counts, seen = [0] * BUCKETS, []
    for draw in draws:
        duration, pending, at, polls = draw(world), 0.0, 0.0, 0
        while at < duration or not polls:
            pending = at
            at += rule(at, counts) * rng.uniform(0.9, 1.1)
            polls += 1
        counts[bucket_of((pending + at) / 2)] += 1
        if sum(counts) > MOST_COUNTED:
            counts = [count // 2 for count in counts]
        seen.append(Seen(at - duration, polls))
    return seen


def warm(rule: Rule, draw: Draw, seed: int = 1) -> list[Seen]:
    return provider(rule, [draw] * (WARM_UP + MEASURED), seed)[WARM_UP:]


def delay(seen: Sequence[Seen]) -> float:
    return fmean(job.delay for job in seen)


def polls(seen: Sequence[Seen]) -> int:
    return sum(job.polls for job in seen)


@pytest.mark.parametrize("elapsed", [0, 0.5, 7, 1e9])
@pytest.mark.parametrize("nothing", [NOTHING, (), (-3,) * BUCKETS])
def test_polls_once_a_second_while_nothing_was_counted(elapsed: float, nothing: Sequence[int]) -> None:
    assert next_delay(elapsed, nothing) == 1


def test_the_delay_keeps_its_bounds_whatever_the_counts_and_the_clock_are() -> None:
    rng = random.Random(1)  # noqa: S311 -- the same in every run
    counts = (-(10**400), -1, 0, 0, 0, 1, 7, 150, 10**6, 10**400)
    clocks = (-math.inf, -1.0, 0.0, 1e-300, 67.2, 300.0, 1e300, math.inf, math.nan)
    for _ in range(2000):
        histogram = [rng.choice(counts) for _ in range(rng.choice((1, 5, BUCKETS, 100)))]
        assert 0.25 <= next_delay(rng.choice((*clocks, rng.uniform(0, 400))), histogram) <= 5


def test_every_duration_has_a_bucket_and_longer_ones_no_lower_one() -> None:
    durations = [-math.inf, -1, 0, 1e-9, *(1.1**step for step in range(-10, 80)), 1e300, math.inf]
    assert [bucket_of(0), bucket_of(math.nan), bucket_of(math.inf)] == [0, 0, BUCKETS - 1]
    assert all(bucket_of(short) <= bucket_of(long) for short, long in pairwise(durations))
    assert {bucket_of(duration) for duration in durations} == set(range(BUCKETS))


def test_fields_that_are_no_counts_are_nothing() -> None:
    rubbish = ("-7", "1e9", "", "9" * 5000, "\xff", "0x7", " 7")
    fields = {"0": "7", "32": "7", "x": "7"} | {str(bucket): text for bucket, text in enumerate(rubbish, 1)}
    assert histogram_of(fields) == (7, *NOTHING[1:])
    assert histogram_of({}) == NOTHING


def test_is_slow_before_a_result_is_likely_dense_around_it_and_ever_slower_after() -> None:
    histogram = only(bucket_of(15))
    before, around_it = next_delay(0, histogram), next_delay(15, histogram)
    after = [next_delay(elapsed, histogram) for elapsed in (18, 25, 35, 50, 70)]
    assert (before, after[-1]) == (5, 5)
    assert around_it < 0.5
    assert after[0] > 1
    assert after == sorted(after)


def test_a_gap_is_skipped_up_to_the_next_durations() -> None:
    histogram = [left + right for left, right in zip(only(bucket_of(5)), only(bucket_of(9)), strict=True)]
    assert bucket_of(6 + next_delay(6, histogram)) == bucket_of(9)


def test_a_few_counts_do_not_make_it_blind() -> None:
    assert next_delay(0, only(bucket_of(40), count=1)) < 2
    assert max(next_delay(elapsed, only(bucket_of(2), count=2)) for elapsed in range(3, 60)) < 5


def test_halves_the_delay_of_typical_providers_with_fewer_polls() -> None:
    providers = [around(seconds) for seconds in CHARACTERISTIC_SECONDS]
    learned = [job for draw in providers for seed in SEEDS for job in warm(next_delay, draw, seed)]
    plain = [job for draw in providers for seed in SEEDS for job in warm(fixed, draw, seed)]
    assert delay(learned) <= delay(plain) / 2
    assert polls(learned) <= 0.75 * polls(plain)


def test_one_provider_of_all_kinds_is_seen_sooner_with_as_many_polls() -> None:
    # Half the delay is out of reach here: a cadence that knew the distribution would get to 0.37 s with as many polls.
    learned = [job for seed in SEEDS for job in warm(next_delay, mixed, seed)]
    plain = [job for seed in SEEDS for job in warm(fixed, mixed, seed)]
    assert delay(learned) <= 0.9 * delay(plain)
    assert polls(learned) <= 1.05 * polls(plain)  # what two histories of 300 jobs can tell


def test_a_job_of_fifteen_seconds_takes_six_polls() -> None:
    seen = [job for seed in SEEDS for job in warm(next_delay, lambda _: 15.0, seed)]
    assert max(job.polls for job in seen) <= 6
    assert delay(seen) <= 0.25


@pytest.mark.parametrize(("old", "new"), [(15, 5), (5, 40), (40, 2), (2, 15)])
def test_a_provider_that_changes_is_learned_anew_within_a_hundred_jobs(old: float, new: float) -> None:
    jobs = [around(old)] * WARM_UP + [around(new)] * 200
    learned = [job for seed in range(2) for job in provider(next_delay, jobs, seed)[WARM_UP + 100 :][:100]]
    settled = warm(next_delay, around(new))
    assert delay(learned) <= 0.1 + delay(settled)
    assert polls(learned) / len(learned) <= 1.35 * polls(settled) / len(settled)
