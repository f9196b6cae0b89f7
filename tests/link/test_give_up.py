"""What a caller has waited is missing for what comes next: an answer in 25 s, whatever it takes together."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Final

import httpx
import pytest
from pydantic import SecretStr

from service.clock import LONGEST_WAIT_SECONDS
from service.errors import UpstreamTimeout
from service.link import attach, validate
from service.link.validate import Credentials
from service.settings import SANDBOX_API_KEY
from service.stores.records import SessionRecord
from service.wiring import Timing
from tests.conftest import LeapingClock, Replica, make_settings, running_replica
from tests.upstream.vendor import RawVendor, Script, json_answer, raw
from tests.walk import Walk

HEADERS: Final = {"Authorization": f"Bearer {SANDBOX_API_KEY}"}
ALMOST: Final = LONGEST_WAIT_SECONDS - 0.5
TOO_LONG: Final = LONGEST_WAIT_SECONDS + 1
PERSON: Final = Credentials(SecretStr("person"), SecretStr("pw"))


@pytest.fixture
def leaping() -> LeapingClock:
    return LeapingClock()


@pytest.fixture
async def vendor() -> AsyncIterator[RawVendor]:
    async with RawVendor() as running:
        yield running


@pytest.fixture
async def replica(vendor: RawVendor, valkey: str, prefix: str, leaping: LeapingClock) -> AsyncIterator[Replica]:
    settings = make_settings(valkey, vendor.url, prefix, poll_seconds=0.02)
    async with running_replica(settings, clock=leaping) as running:
        yield running


def taking(clock: LeapingClock, seconds: float, answer: Script) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    """An answer that comes so much later, by the clock."""
    assert isinstance(answer, bytes)

    async def script(writer: asyncio.StreamWriter) -> None:
        clock.forward(seconds)
        writer.write(answer)

    return script


def dripping(answer: Script, *, seconds: float = 4) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    """An answer that is complete, and good, after some seconds."""
    assert isinstance(answer, bytes)

    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(answer[:-20])
        for position in range(len(answer) - 20, len(answer)):
            await asyncio.sleep(seconds / 20)
            writer.write(answer[position : position + 1])

    return script


async def without_token(replica: Replica) -> None:
    """The vendor took it back."""
    tokens = replica.app.state.steps.sessions._tokens
    await tokens.drop(await tokens.get())
    tokens.accepted()


def is_late(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (504, "upstream_timeout"), answer.text
    assert (answer.json()["retryable"], "Retry-After" in answer.headers) == (True, False)


async def known(replica: Replica, walk: Walk) -> SessionRecord:
    session: SessionRecord | None = await replica.app.state.steps.hosted._sessions.read(walk.id)
    assert session is not None
    return session


async def signed_in(replica: Replica, vendor: RawVendor) -> Walk:
    """Somebody whose accounts have yet to be read, with a token that has yet to be fetched."""
    good, vendor.says["account"] = vendor.says["account"], raw(404, b"{}")
    walk = await replica.walk().open()
    assert (await walk.validate("person", "pw", provider="c1")).json()["validation"]["state"] == "succeeded"
    await without_token(replica)
    vendor.says["account"] = good
    vendor.seen.clear()
    return walk


async def test_a_read_has_the_time_that_the_token_has_left(
    replica: Replica, vendor: RawVendor, leaping: LeapingClock
) -> None:
    vendor.says |= {
        "token": taking(leaping, ALMOST, vendor.says["token"]),
        "companies": dripping(vendor.says["companies"]),
    }
    is_late(await replica.client.get("/v1/providers", headers=HEADERS))
    assert vendor.count("companies") == 1


async def test_accounts_that_were_read_in_time_are_kept(
    replica: Replica, vendor: RawVendor, leaping: LeapingClock
) -> None:
    accounts = [{"accountId": each, "serviceAccountId": "sa"} for each in ("quick", "slow")]
    vendor.says["job"] = json_answer(200, {"status": "success", "response": {"accounts": accounts}})
    walk = await signed_in(replica, vendor)
    good = vendor.says["account"]
    assert isinstance(good, bytes)
    drip = dripping(good)

    async def account(writer: asyncio.StreamWriter) -> None:
        if "slow" in vendor.seen[-1].line:
            await drip(writer)
        else:
            writer.write(good)

    vendor.says |= {"token": taking(leaping, ALMOST, vendor.says["token"]), "account": account}
    is_late(await walk.accounts())
    assert vendor.count("account") == 2
    vendor.says["account"] = good
    assert (await walk.accounts()).status_code == 200
    assert ["slow" in each.line for each in vendor.seen if each.route == "account"].count(False) == 1


async def test_nothing_is_read_for_who_has_been_answered(
    replica: Replica, vendor: RawVendor, leaping: LeapingClock
) -> None:
    walk = await signed_in(replica, vendor)
    vendor.says["token"] = taking(leaping, TOO_LONG, vendor.says["token"])
    is_late(await walk.accounts())
    assert (vendor.count("token"), vendor.count("account")) == (1, 0)
    assert (await walk.accounts()).status_code == 200
    assert (vendor.count("token"), vendor.count("account")) == (1, 1)


@pytest.mark.parametrize("late", ["companies", "jobs"])
@pytest.mark.parametrize("door", ["/v1", "/api"])
async def test_no_credentials_are_sent_for_who_has_been_answered(
    replica: Replica, vendor: RawVendor, leaping: LeapingClock, door: str, late: str
) -> None:
    walk = await replica.walk().open()
    vendor.says[late] = taking(leaping, TOO_LONG, vendor.says[late] if late == "companies" else raw(401, b"{}"))
    if door == "/v1":
        started = (await walk.validate("person", "pw", provider="c1")).json()["validation"]
        validation = (await walk.validation(started["id"], wait=20)).json()["validation"]
        assert (validation["state"], validation["reason"]) == ("failed", "utility_unavailable")
    else:
        body = {"username": "person", "password": "pw", "utilityCompanyId": "c1"}
        answer = await replica.client.post("/api/jobs", headers=walk.headers, json=body)
        assert (answer.status_code, answer.json()["code"]) == (503, "upstream_unavailable")
    assert vendor.count("jobs") == (late == "jobs")


@pytest.mark.parametrize("late", ["companies", "token"])
async def test_who_signs_in_waits_so_long_for_all_together(
    replica: Replica, vendor: RawVendor, leaping: LeapingClock, late: str
) -> None:
    session = await known(replica, await replica.walk().open())
    if late == "token":
        await replica.client.get("/v1/providers", headers=HEADERS)
        await without_token(replica)
    vendor.says[late] = dripping(vendor.says[late], seconds=1)
    validations = replica.app.state.steps.validations
    with pytest.raises(UpstreamTimeout):
        await validations.start(session, "c1", PERSON, address="203.0.113.7", give_up=leaping.monotonic() + 0.2)
    if late == "companies":
        with pytest.raises(UpstreamTimeout):
            await validations.signs_in_elsewhere("c1", leaping.monotonic() + 0.2)
    assert vendor.count("jobs") == 0


async def test_who_has_waited_long_enough_is_told_that_it_goes_on(
    replica: Replica, vendor: RawVendor, leaping: LeapingClock
) -> None:
    walk = await replica.walk().open()
    session = await known(replica, walk)
    await replica.client.get("/v1/providers", headers=HEADERS)
    vendor.says["jobs"] = dripping(vendor.says["jobs"], seconds=1)
    start = partial(replica.app.state.steps.validations.start, session, "c1", PERSON, address="203.0.113.7")
    started = await start(give_up=leaping.monotonic() + 0.6)
    assert (started.state, started.job_id) == ("pending", None)
    assert (await walk.validation(started.id, wait=20)).json()["validation"]["state"] == "succeeded"


async def test_credentials_that_were_sent_are_not_called_back(
    replica: Replica, vendor: RawVendor, leaping: LeapingClock
) -> None:
    walk = await replica.walk().open()
    vendor.says["jobs"] = taking(leaping, TOO_LONG, vendor.says["jobs"])
    started = (await walk.validate("person", "pw", provider="c1", wait=None)).json()["validation"]
    assert (await walk.validation(started["id"], wait=20)).json()["validation"]["state"] == "succeeded"
    assert vendor.count("jobs") == 1


async def test_a_validation_that_has_timed_out_does_not_succeed_later(
    replica: Replica, vendor: RawVendor, leaping: LeapingClock
) -> None:
    """The last poll meets a token that was taken back, and all of it takes longer than lookers wait for its end."""
    walk = await replica.walk().open()
    good = vendor.says["job"]
    polls = iter(
        [
            taking(leaping, 178, json_answer(200, {"status": "pending"})),
            taking(leaping, LONGEST_WAIT_SECONDS - 5, raw(401, b"{}")),
            taking(leaping, 5, good),
        ]
    )

    async def job(writer: asyncio.StreamWriter) -> None:
        await next(polls)(writer)
        vendor.says["token"] = late_token

    late_token = taking(leaping, 8, vendor.says["token"])
    vendor.says["job"] = job
    started = (await walk.validate("person", "pw", provider="c1", wait=None)).json()["validation"]
    ended = (await walk.validation(started["id"], wait=20)).json()["validation"]
    assert (ended["state"], ended["reason"]) == ("failed", "timed_out")
    await replica.app.state.steps.changes.tasks.drain(5)
    assert (await walk.validation(started["id"])).json()["validation"] == ended
    assert vendor.count("job") == 2


async def test_a_secret_that_is_refused_late_is_not_followed_by_the_other(
    replica: Replica, vendor: RawVendor, leaping: LeapingClock
) -> None:
    replica.app.state.steps.sessions._tokens._client._secrets.append(("next", SecretStr("next")))
    vendor.says["token"] = taking(leaping, TOO_LONG, raw(401, b"{}"))
    is_late(await replica.client.post("/v1/sessions", headers=HEADERS, json={}))
    assert vendor.count("token") == 1


async def test_accounts_that_cannot_be_read_keep_no_validation_pending(
    replica: Replica, vendor: RawVendor, leaping: LeapingClock
) -> None:
    good, vendor.says["account"] = vendor.says["account"], dripping(vendor.says["account"])
    vendor.says["job"] = taking(leaping, ALMOST, vendor.says["job"])
    walk = await replica.walk().open()
    started = (await walk.validate("person", "pw", provider="c1", wait=None)).json()["validation"]
    assert (await walk.validation(started["id"], wait=20)).json()["validation"]["state"] == "succeeded"
    vendor.says["account"] = good
    assert (await walk.accounts()).status_code == 200
    assert vendor.count("account") == 2, "the first one was given up"


def test_the_times_fit_together() -> None:
    timing = Timing()
    turn, call = timing.limiter.wait_seconds, timing.upstream.total_seconds
    # A mark and a turn fit before the call must have begun, and the call before the mark's lease ends.
    assert timing.patience.mark + turn <= timing.patience.send
    assert timing.patience.send + call < timing.sent_lease
    assert timing.patience.send + call < attach._CALL_SECONDS
    # A poll ends before those who look are told that its validation has timed out.
    assert LONGEST_WAIT_SECONDS + turn < validate._POLLER_GRACE_MS / 1000
