"""A read ends when its caller waits no longer; what acts is begun in time or not at all, and never cut."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

import pytest
from pydantic import SecretStr

from service.clock import SYSTEM_CLOCK
from service.errors import UpstreamBusy, UpstreamLate, UpstreamMalformed, UpstreamShut, UpstreamTimeout
from service.upstream import client
from service.upstream.client import UpstreamClient
from service.upstream.limiter import LimiterRules
from service.upstream.transport import Transport, TransportLimits
from tests.processes import eventually
from tests.upstream.vendor import RawVendor, Script, raw

TOKEN: Final = SecretStr("tok")
READS: Final[Mapping[str, Callable[[UpstreamClient, float], Awaitable[object]]]] = {
    "companies": lambda to, give_up: to.list_companies(TOKEN, give_up),
    "job": lambda to, give_up: to.read_job(TOKEN, "job1", give_up),
    "account": lambda to, give_up: to.read_utility_account(TOKEN, "ua1", give_up),
}
ACTS: Final[Mapping[str, Callable[[UpstreamClient, float], Awaitable[object]]]] = {
    "token": lambda to, give_up: to.fetch_token(give_up),
    "jobs": lambda to, give_up: to.create_job(
        TOKEN, company_id="c", job_type=None, username=TOKEN, password=TOKEN, give_up=give_up
    ),
    "batch": lambda to, give_up: to.link(TOKEN, account_id="acc", service_account_ids=["sa1"], give_up=give_up),
}
CALLS: Final = {**READS, **ACTS}


@pytest.fixture
async def vendor() -> AsyncIterator[RawVendor]:
    async with RawVendor() as running:
        yield running


@pytest.fixture
async def over() -> AsyncIterator[Transport]:
    async with Transport(limits=TransportLimits(), user_agent="test", https_only=False) as opened:
        yield opened


def client_of(vendor: RawVendor, over: Transport, rules: LimiterRules | None = None) -> UpstreamClient:
    return UpstreamClient(
        transport=over, base_url=vendor.url, credentials_url=vendor.url, client_id="id", secret=TOKEN, rules=rules
    )


def soon(seconds: float) -> float:
    return SYSTEM_CLOCK.monotonic() + seconds


def after(seconds: float, answer: Script) -> Script:
    """A drip, so that no wait for a single byte is long, that ends in a good answer."""
    assert isinstance(answer, bytes)
    start = answer.index(b"\r\n\r\n")

    async def script(writer: asyncio.StreamWriter) -> None:
        for position in range(start):
            writer.write(answer[position : position + 1])
            await asyncio.sleep(seconds / start)
        writer.write(answer[start:])

    return script


async def test_a_read_ends_when_nobody_waits(vendor: RawVendor, over: Transport) -> None:
    vendor.says |= {route: after(3, vendor.says[route]) for route in READS}
    calls, give_up = client_of(vendor, over), soon(0.5)
    told = await asyncio.gather(*(read(calls, give_up) for read in READS.values()), return_exceptions=True)
    assert [type(each) for each in told] == [UpstreamTimeout] * len(READS)
    assert [vendor.count(route) for route in READS] == [1] * len(READS)


@pytest.mark.parametrize("seconds", [0.0, -0.001])
async def test_a_read_whose_time_ran_out_just_before_is_not_begun(
    vendor: RawVendor, over: Transport, seconds: float
) -> None:
    """As in a process that stood still between the last look at the clock and the call."""
    with pytest.raises(UpstreamTimeout):
        await over.read(f"{vendor.url}/utility-companies", token=TOKEN, seconds=seconds)
    assert not vendor.seen


async def test_what_acts_is_not_cut(vendor: RawVendor, over: Transport) -> None:
    vendor.says |= {route: after(0.8, vendor.says[route]) for route in ACTS}
    calls, give_up = client_of(vendor, over), soon(0.5)
    await asyncio.gather(*(act(calls, give_up) for act in ACTS.values()))
    assert SYSTEM_CLOCK.monotonic() > give_up


@pytest.mark.parametrize("route", CALLS)
async def test_what_comes_too_late_is_not_begun(vendor: RawVendor, over: Transport, route: str) -> None:
    calls = client_of(vendor, over, LimiterRules(failures=1))
    for _ in range(4):
        with pytest.raises(UpstreamLate):
            await CALLS[route](calls, soon(0))
    assert vendor.seen == []
    await CALLS[route](calls, soon(5))  # nothing was held against the vendor


async def test_waiting_for_a_turn_counts(vendor: RawVendor, over: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MOST_AT_ONCE", {"create_job": 1, "link": 1, "read_account": 1})
    routes = ("jobs", "batch", "account")
    vendor.says |= {route: after(0.5, vendor.says[route]) for route in routes}
    calls = client_of(vendor, over)
    first = asyncio.gather(*(CALLS[route](calls, soon(5)) for route in routes))
    await eventually(lambda: len(vendor.seen) == len(routes))
    told = await asyncio.gather(*(CALLS[route](calls, soon(0.1)) for route in routes), return_exceptions=True)
    assert [type(each) for each in told] == [UpstreamBusy] * len(routes)
    assert not first.done()
    await first
    assert len(vendor.seen) == len(routes)


async def test_a_vendor_that_was_given_little_time_is_not_held_to_be_broken(vendor: RawVendor, over: Transport) -> None:
    good, vendor.says["account"] = vendor.says["account"], after(3, vendor.says["account"])
    calls = client_of(vendor, over)
    told = await asyncio.gather(
        *(calls.read_utility_account(TOKEN, f"ua{number}", soon(0.3)) for number in range(20)), return_exceptions=True
    )
    assert {type(each) for each in told} == {UpstreamTimeout}
    assert calls.reachable is None
    vendor.says["account"] = good
    assert (await calls.read_utility_account(TOKEN, "ua1")).id == "ua1"


async def test_one_that_makes_no_sense_is_however_little_time_it_had(vendor: RawVendor, over: Transport) -> None:
    vendor.says["account"] = raw(200, b"no JSON")
    calls = client_of(vendor, over)
    for number in range(LimiterRules().failures):
        with pytest.raises(UpstreamMalformed):
            await calls.read_utility_account(TOKEN, f"ua{number}", soon(5))
    with pytest.raises(UpstreamShut):
        await calls.read_utility_account(TOKEN, "ua9", soon(5))
