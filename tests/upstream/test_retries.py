"""Reads are tried again a few times, spread out, in their own time, and on a budget; what acts never is."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from service.clock import SYSTEM_CLOCK
from service.errors import (
    ServiceError,
    UpstreamBusy,
    UpstreamError,
    UpstreamMalformed,
    UpstreamShut,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.upstream.client import UpstreamClient
from service.upstream.limiter import LimiterRules
from service.upstream.retries import Retries
from service.upstream.transport import Transport, TransportLimits
from tests.shared import NEVER_SHUT
from tests.upstream.test_limiter import ManualClock
from tests.upstream.vendor import RawVendor, raw

TOKEN: Final = SecretStr("tok")


@pytest.fixture
async def vendor() -> AsyncIterator[RawVendor]:
    async with RawVendor() as running:
        yield running


def client(vendor: RawVendor, over: Transport, rules: LimiterRules) -> UpstreamClient:
    return UpstreamClient(
        transport=over, base_url=vendor.url, credentials_url=vendor.url, client_id="", secret=TOKEN, rules=rules
    )


def transport(seconds: float = 10) -> Transport:
    return Transport(limits=TransportLimits(total_seconds=seconds), user_agent="test", https_only=False)


def test_a_vendor_that_fails_always_is_asked_a_tenth_more_and_once_a_second() -> None:
    clock = ManualClock()
    retries = Retries(clock=clock)
    rate, seconds = 200, 60
    calls = 0
    for _ in range(rate * seconds):
        clock.seconds += 1 / rate
        retries.earn()
        calls += 1
        again = 0
        while retries.delay(UpstreamError(503), retries=again, left=10) is not None:
            again += 1
            calls += 1
    assert calls <= rate * seconds * 1.1 + seconds + 10
    assert calls > rate * seconds * 1.1


async def test_the_budget_holds_at_the_vendor(vendor: RawVendor) -> None:
    vendor.says["account"] = raw(503, b"{}")
    reads = 300
    started = SYSTEM_CLOCK.monotonic()
    async with transport() as over:
        calls = client(vendor, over, NEVER_SHUT)
        told = await asyncio.gather(
            *(calls.read_utility_account(TOKEN, "ua1") for _ in range(reads)), return_exceptions=True
        )
    assert {type(each) for each in told} == {UpstreamError}
    spent = SYSTEM_CLOCK.monotonic() - started
    assert reads < vendor.count("account") <= reads * 1.1 + 10 + spent + 1


async def test_the_breaker_ends_it_sooner(vendor: RawVendor) -> None:
    vendor.says["account"] = raw(503, b"{}")
    rules = LimiterRules()
    async with transport() as over:
        calls = client(vendor, over, rules)
        for number in range(50):
            with pytest.raises((UpstreamError, UpstreamShut)):
                await calls.read_utility_account(TOKEN, f"ua{number}")
    assert vendor.count("account") <= 3 * rules.failures


@given(st.floats(0, 1), st.integers(0, 1))
def test_it_waits_with_full_jitter(drawn: float, retries: int) -> None:
    delay = Retries(clock=ManualClock(), draw=lambda: drawn).delay(UpstreamUnavailable(), retries=retries, left=10)
    assert delay == pytest.approx(drawn * 0.1 * 2**retries)


@pytest.mark.parametrize(
    "error", [UpstreamBusy(), UpstreamShut(), UpstreamTimeout(), UpstreamMalformed(), UpstreamError(404)]
)
def test_what_would_go_no_better_is_not_tried_again(error: ServiceError) -> None:
    assert Retries(clock=ManualClock()).delay(error, retries=0, left=10) is None


def test_the_third_attempt_is_the_last() -> None:
    retries = Retries(clock=ManualClock())
    assert retries.delay(UpstreamUnavailable(), retries=1, left=10) is not None
    assert retries.delay(UpstreamUnavailable(), retries=2, left=10) is None


@pytest.mark.parametrize(("left", "delay"), [(10.0, 4.0), (3.9, None)])
def test_the_vendors_wish_is_obeyed_if_there_is_time(left: float, delay: float | None) -> None:
    retries = Retries(clock=ManualClock(), draw=lambda: 0)
    assert retries.delay(UpstreamError(503, retry_after=4), retries=0, left=left) == delay


async def test_all_attempts_together_have_the_time_of_one_call(vendor: RawVendor) -> None:
    """The second attempt hangs: what is left for it is what the first has not used."""
    given_seconds: list[float] = []

    async def hang(writer: asyncio.StreamWriter) -> None:
        if vendor.count("account") == 1:
            await asyncio.sleep(0.3)
            writer.write(raw(503, b"{}"))
        else:
            await asyncio.Event().wait()

    vendor.says["account"] = hang
    async with transport(0.8) as over:
        read = over.read

        async def noted(url: str, *, seconds: float, **rest: bool) -> object:
            given_seconds.append(seconds)
            return await read(url, token=TOKEN, fresh=rest["fresh"], seconds=seconds)

        over.read = noted  # type: ignore[method-assign, assignment]
        with pytest.raises(UpstreamTimeout):
            await client(vendor, over, LimiterRules()).read_utility_account(TOKEN, "ua1")
    assert len(given_seconds) == 2
    assert 0.5 < given_seconds[0] <= 0.8
    assert 0 < given_seconds[1] <= 0.5


async def test_a_retry_that_wakes_too_late_is_left(vendor: RawVendor, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor.says["job"] = raw(503, b"{}")
    clock = ManualClock()

    async def stand_still(_: float) -> None:
        clock.seconds += 11

    async with transport() as over:
        of = client(vendor, over, NEVER_SHUT)
        of._clock = clock
        monkeypatch.setattr("service.upstream.client.asyncio.sleep", stand_still)
        with pytest.raises(UpstreamError):
            await of.read_job(TOKEN, "job1")
    assert vendor.count("job") == 1
