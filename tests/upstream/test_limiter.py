"""Each operation of the vendor has a limiter: so many calls at once, and none for a while once it fails."""

import asyncio
import os
from dataclasses import dataclass
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from typing_extensions import override

from service.clock import SYSTEM_CLOCK, Millis
from service.errors import UpstreamBusy, UpstreamShut
from service.upstream.limiter import Limiter, LimiterRules

RULES: Final = LimiterRules(wait_seconds=0.05)
PATIENT: Final = LimiterRules(wait_seconds=3600)


class ManualClock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> Millis:
        return Millis(int(self.seconds * 1000))

    def monotonic(self) -> float:
        return self.seconds


def entered(limiter: Limiter) -> int:
    """A turn that is free, taken without an event loop."""
    coroutine = limiter.enter()
    try:
        coroutine.send(None)
    except StopIteration as done:
        era: int = done.value
        return era
    raise AssertionError("it had to wait")


@dataclass
class Call:
    era: int
    life: int


class Breaker(RuleBasedStateMachine):
    """Beside a model that keeps every result: time moves by whole parts of the window, so that the two must agree."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.drawn = 0.5
        self.limiter = Limiter("read_job", most=1000, rules=PATIENT, clock=self.clock, draw=lambda: self.drawn)
        self.loop = asyncio.new_event_loop()
        self.waiting: list[asyncio.Task[int]] = []
        self.calls: list[Call] = []
        self.results: list[tuple[float, bool]] = []
        self.opens_again: float | None = None
        self.probe: Call | None = None
        self.life = 0

    @rule(steps=st.sampled_from([1, 1, 2, 5, 6, 8]))
    def time_passes(self, steps: int) -> None:
        self.clock.seconds += 5 * steps

    @rule(drawn=st.sampled_from([0.0, 0.5, 1.0]))
    def draw(self, drawn: float) -> None:
        self.drawn = drawn

    @rule()
    def call(self) -> None:
        if self.probe is not None:
            self.waiting.append(self.loop.create_task(self.limiter.enter()))
            self._settle()
            assert not self.waiting[-1].done()
            return
        if self.opens_again is not None and self.clock.seconds < self.opens_again:
            with pytest.raises(UpstreamShut) as refused:
                entered(self.limiter)
            assert refused.value.retry_after is not None
            assert 1 <= refused.value.retry_after <= 36
            return
        self._let_in(entered(self.limiter))

    def _let_in(self, era: int) -> None:
        if self.opens_again is not None:
            self.life += 1
        call = Call(era, self.life)
        self.calls.append(call)
        if self.opens_again is not None:
            self.probe = call

    def _settle(self) -> None:
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave_before_it_is_decided(self, data: st.DataObject) -> None:
        self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1))).cancel()
        self._settle()

    @override
    def teardown(self) -> None:
        for each in self.waiting:
            each.cancel()
        self._settle()
        assert self.limiter._turns._value == 1000 - len(self.calls)
        self.loop.close()

    @rule(count=st.sampled_from([1, 4, 5, 40]), good=st.booleans())
    def calls_one_after_the_other(self, count: int, good: bool) -> None:  # noqa: FBT001 -- drawn
        """With many that go well, failures in a row are not too many of all."""
        for _ in range(count):
            waiting = len(self.calls)
            self.call()
            if len(self.calls) > waiting:
                self._end(self.calls.pop(), good=good)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), good=st.sampled_from([True, True, False, False, False, None]))
    def end(self, data: st.DataObject, good: bool | None) -> None:  # noqa: FBT001 -- drawn
        self._end(self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1))), good=good)

    def _end(self, call: Call, *, good: bool | None) -> None:
        now = self.clock.seconds
        self.limiter.leave(call.era, good=good, now=now)
        if call is self.probe:
            self.probe = None
            if good:
                self.opens_again, self.results = None, []
                self.life += 1
            elif good is False:
                self._opened(now)
            self._decided()
        elif call.life == self.life and good is not None and self.opens_again is None:
            self.results.append((now, good))
            last = [each for _, each in self.results[-RULES.failures :]]
            window = [each for moment, each in self.results if now - moment < RULES.window_seconds]
            few = len(window) >= RULES.least_calls and sum(window) < RULES.success_share * len(window)
            if not good and (few or (len(last) == RULES.failures and not any(last))):
                self._opened(now)

    def _decided(self) -> None:
        """All who waited pass, or none; where nothing was learned, the first of them is the next to decide."""
        self._settle()
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            if self.opens_again is not None and self.clock.seconds < self.opens_again:
                assert isinstance(each.exception(), UpstreamShut)
            elif self.probe is not None:
                assert not each.done()
                self.waiting.append(each)
            else:
                self._let_in(each.result())

    def _opened(self, now: float) -> None:
        self.opens_again = now + RULES.rest_seconds * (0.8 + 0.4 * self.drawn)
        self.life += 1


EXAMPLES: Final = 2000 if "FAULT_ROUNDS" in os.environ else 60
Breaker.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=50, deadline=None, derandomize=True)
TestBreaker = Breaker.TestCase


def limiter(most: int = 2) -> Limiter:
    return Limiter("link", most=most, rules=RULES, clock=SYSTEM_CLOCK)


def leave(of: Limiter, era: int, *, good: bool | None = True) -> None:
    of.leave(era, good=good, now=SYSTEM_CLOCK.monotonic())


async def test_no_more_than_so_many_are_let_in_and_the_rest_waits_in_turn() -> None:
    gate = limiter(2)
    inside = most = 0
    order: list[int] = []

    async def call(number: int) -> None:
        nonlocal inside, most
        era = await gate.enter()
        inside += 1
        most = max(most, inside)
        order.append(number)
        await asyncio.sleep(0)
        inside -= 1
        leave(gate, era)

    await asyncio.gather(*(call(number) for number in range(50)))
    assert most == 2
    assert order == list(range(50))


async def test_who_waits_in_vain_is_told_that_nothing_was_sent_and_costs_no_turn() -> None:
    gate = limiter(1)
    era = await gate.enter()
    with pytest.raises(UpstreamBusy) as told:
        await gate.enter()
    assert not isinstance(told.value, UpstreamShut)
    leaving = asyncio.create_task(gate.enter())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    leave(gate, era)
    leave(gate, await gate.enter())
    assert not gate._turns.locked()


async def test_who_waits_when_it_opens_is_not_let_in_and_nobody_waits_then() -> None:
    gate = limiter(RULES.failures)
    eras = [await gate.enter() for _ in range(RULES.failures)]
    waiting = asyncio.create_task(gate.enter())
    await asyncio.sleep(0)
    for era in eras:
        leave(gate, era, good=False)
    with pytest.raises(UpstreamShut):
        await waiting
    assert not gate._turns.locked()
    with pytest.raises(UpstreamShut):
        await gate.enter()


async def test_a_probe_that_is_left_alone_passes_its_turn_on() -> None:
    clock = ManualClock()
    gate = Limiter("link", most=9, rules=RULES, clock=clock)
    for _ in range(RULES.failures):
        gate.leave(await gate.enter(), good=False, now=clock.seconds)
    clock.seconds += 40
    era = await gate.enter()
    with pytest.raises(UpstreamShut):
        await gate.enter()
    gate.leave(era, good=None, now=clock.seconds)
    gate.leave(await gate.enter(), good=True, now=clock.seconds)
    await gate.enter()
    await gate.enter()


@pytest.mark.parametrize("good", [True, False])
async def test_who_meets_the_probe_waits_for_how_it_goes(*, good: bool) -> None:
    clock = ManualClock()
    gate = after(Limiter("link", most=9, rules=PATIENT, clock=clock), clock, "bbbbb")
    clock.seconds += 40
    probe = entered(gate)
    gate.check()
    waiting = [asyncio.create_task(gate.enter()) for _ in range(12)]  # some of them for a turn
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    gate.leave(probe, good=good, now=clock.seconds)
    for each in waiting:
        if good:
            gate.leave(await each, good=True, now=clock.seconds)
        else:
            with pytest.raises(UpstreamShut):
                await each
    assert gate._turns._value == 9


def after(gate: Limiter, clock: ManualClock, results: str) -> Limiter:
    """One call after the other: g for good, b for bad."""
    for each in results:
        gate.leave(entered(gate), good=each == "g", now=clock.seconds)
    return gate


@pytest.mark.parametrize(
    ("results", "opens"),
    [
        ("g" * 100 + "b" * 4, False),
        ("g" * 100 + "b" * 4 + "g" + "b" * 4, False),
        ("g" * 100 + "b" * 5, True),
        ("b" * 4, False),
        ("g" * 4 + "b", False),
        ("g" * 3 + "b" * 2, True),
    ],
)
def test_five_failures_in_a_row_or_less_than_80_percent_of_five_open_it(results: str, *, opens: bool) -> None:
    clock = ManualClock()
    gate = after(Limiter("link", most=9, rules=RULES, clock=clock), clock, results)
    if opens:
        with pytest.raises(UpstreamShut):
            entered(gate)
    else:
        entered(gate)


async def test_calls_that_began_before_it_opened_say_nothing_afterwards() -> None:
    clock = ManualClock()
    gate = Limiter("link", most=99, rules=RULES, clock=clock, draw=lambda: 0.5)
    late = [entered(gate) for _ in range(20)]
    after(gate, clock, "bbbbb")
    gate.leave(late.pop(), good=True, now=clock.seconds)
    with pytest.raises(UpstreamShut):
        entered(gate)
    clock.seconds += 29
    gate.leave(late.pop(), good=False, now=clock.seconds)
    clock.seconds += 2
    probe = entered(gate)
    gate.leave(late.pop(), good=True, now=clock.seconds)
    with pytest.raises(UpstreamShut):
        await gate.enter()
    gate.leave(probe, good=True, now=clock.seconds)
    while late:
        gate.leave(late.pop(), good=False, now=clock.seconds)
    entered(gate)


def test_what_is_older_than_the_window_is_forgotten() -> None:
    clock = ManualClock()
    gate = after(Limiter("link", most=9, rules=RULES, clock=clock), clock, "bbbb")
    after(gate, clock, "g")
    clock.seconds += 30
    after(gate, clock, "ggggb")
    entered(gate)


def test_who_is_refused_costs_no_turn() -> None:
    clock = ManualClock()
    gate = after(Limiter("link", most=1, rules=RULES, clock=clock), clock, "bbbbb")
    for _ in range(3):
        with pytest.raises(UpstreamShut):
            entered(gate)
    clock.seconds += 40
    entered(gate)


@pytest.mark.parametrize(("drawn", "rest"), [(0.0, 24), (0.5, 30), (1.0, 36)])
def test_it_rests_half_a_minute_more_or_less_and_then_begins_anew(drawn: float, rest: int) -> None:
    clock = ManualClock()
    gate = after(Limiter("link", most=9, rules=RULES, clock=clock, draw=lambda: drawn), clock, "bbbbb")
    clock.seconds += rest - 1
    with pytest.raises(UpstreamShut):
        entered(gate)
    clock.seconds += 1.5
    after(gate, clock, "ggb")  # the first of them is the one that decides
    entered(gate)
