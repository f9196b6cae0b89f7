"""What callers see of a vendor that fails: an answer at once, nothing sent, and all that needs no vendor as ever."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import orjson
import pytest

from service.settings import SANDBOX_API_KEY
from service.upstream import client
from service.upstream.limiter import LimiterRules
from service.upstream.transport import TransportLimits
from service.wiring import Timing
from tests.conftest import LeapingClock, Replica, make_settings, running_replica
from tests.processes import eventually
from tests.upstream.vendor import RawVendor, json_answer, raw
from tests.walk import Walk

HEADERS: Final = {"Authorization": f"Bearer {SANDBOX_API_KEY}"}
DOWN: Final = raw(503, b"{}")
PENDING: Final = json_answer(200, {"status": "pending"})
FAILURES: Final = LimiterRules().failures
AFTER_A_REST: Final = 1.3 * LimiterRules().rest_seconds


@pytest.fixture
def leaping() -> LeapingClock:
    return LeapingClock()


@pytest.fixture
async def vendor() -> AsyncIterator[RawVendor]:
    companies = json_answer(200, [{"id": "c1", "name": "One"}, {"id": "c2", "name": "Two"}])
    async with RawVendor(says={"companies": companies}) as running:
        yield running


@pytest.fixture
async def replica(vendor: RawVendor, valkey: str, prefix: str, leaping: LeapingClock) -> AsyncIterator[Replica]:
    timing = Timing(upstream=TransportLimits(total_seconds=2))
    settings = make_settings(valkey, vendor.url, prefix, poll_seconds=0.02)
    async with running_replica(settings, clock=leaping, timing=timing) as running:
        yield running


def give_each_their_own(vendor: RawVendor) -> None:
    """Jobs and accounts of people are different ones: one alone may be broken."""
    jobs = itertools.count(1)

    async def create(writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer(201, {"id": f"job{next(jobs)}"}))

    async def succeed(writer: asyncio.StreamWriter) -> None:
        person = vendor.seen[-1].line.split()[1].rpartition("job")[2]
        writer.write(json_answer(200, {"status": "success", "response": {"accountId": f"ua{person}"}}))

    vendor.says |= {"jobs": create, "job": succeed}


async def signed_in(replica: Replica) -> Walk:
    walk = await replica.walk().open()
    answer = await walk.validate(f"person {walk.id}", "pw", provider="c1")
    assert answer.json()["validation"]["state"] == "succeeded", answer.text
    return walk


def is_shut(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "upstream_unavailable"), answer.text
    assert answer.json()["retryable"] is True
    assert 1 <= int(answer.headers["Retry-After"]) <= 36


async def shut_breakers(replica: Replica, operation: str) -> float:
    told = (await replica.client.get("/metrics")).text
    found = re.search(rf'^omniconnect_upstream_shut{{operation="{operation}"}} (\S+)$', told, re.MULTILINE)
    return float(found[1]) if found else 0


async def reread(walk: Walk) -> httpx.Response:
    return await walk.accounts(**{"Cache-Control": "no-cache"})


@pytest.mark.parametrize(
    "broken", [DOWN, json_answer(200, {"id": "ua1", "serviceAccounts": [{}] * 2001})], ids=["503", "too large"]
)
async def test_one_persons_broken_account_is_nobody_elses(vendor: RawVendor, replica: Replica, broken: bytes) -> None:
    give_each_their_own(vendor)
    unlucky, other = await signed_in(replica), await signed_in(replica)
    shut_before = await shut_breakers(replica, "read_account")

    async def account(writer: asyncio.StreamWriter) -> None:
        writer.write(
            broken if "/ua1 " in vendor.seen[-1].line else json_answer(200, {"id": "ua", "serviceAccounts": []})
        )

    vendor.says["account"] = account
    answers = [await reread(unlucky) for _ in range(2 * FAILURES)]
    assert {each.status_code for each in answers} == {502}
    assert (await reread(other)).status_code == 200
    assert await shut_breakers(replica, "read_account") == shut_before


async def test_reads_are_refused_at_once_until_one_of_them_has_worked(
    vendor: RawVendor, replica: Replica, leaping: LeapingClock
) -> None:
    give_each_their_own(vendor)
    walks = [await signed_in(replica) for _ in range(4)]
    good = vendor.says["account"]
    shut_before = await shut_breakers(replica, "read_account")
    vendor.says["account"] = DOWN
    for walk in walks[:3]:
        assert (await reread(walk)).status_code in {502, 503}
    before = vendor.count("account")
    for walk in walks:
        is_shut(await reread(walk))
    assert vendor.count("account") == before
    assert await shut_breakers(replica, "read_account") == shut_before + 1

    # What was read before, and every other operation, is as it was.
    assert (await walks[0].accounts()).status_code == 200
    assert (await walks[0].link(["sa1"])).status_code == 201
    assert (await signed_in(replica)).id
    assert (await replica.client.get("/readyz")).status_code == 200

    answered = asyncio.Event()

    async def slowly(writer: asyncio.StreamWriter) -> None:
        await answered.wait()
        writer.write(good if isinstance(good, bytes) else b"")

    vendor.says["account"] = slowly
    leaping.forward(AFTER_A_REST)
    before = vendor.count("account")
    probe = asyncio.create_task(reread(walks[1]))
    await eventually(lambda: vendor.count("account") > before)
    waiting = [asyncio.create_task(reread(walk)) for walk in walks[2:]]
    await eventually(lambda: turns_taken(replica, "read_account") == 1 + len(waiting))
    assert vendor.count("account") == before + 1
    answered.set()
    assert {each.status_code for each in await asyncio.gather(probe, *waiting)} == {200}
    assert await shut_breakers(replica, "read_account") == shut_before


def turns_taken(replica: Replica, operation: str, of: str = "") -> int:
    limiter = replica.app.state.steps.validations._client._limiters[operation + of]
    return client._MOST_AT_ONCE[operation] - int(limiter._turns._value)  # type: ignore[index]


async def test_all_who_sign_in_right_after_a_rest_wait_for_the_one_that_is_let_in(
    vendor: RawVendor, replica: Replica, leaping: LeapingClock
) -> None:
    good = vendor.says["jobs"]
    vendor.says["jobs"] = DOWN
    walks = [await replica.walk().open() for _ in range(2 * FAILURES)]
    for number, walk in enumerate(walks[:FAILURES]):
        await walk.validate(f"person {number}", "pw", provider="c1")
    is_shut(await walks[0].validate("person", "pw", provider="c1"))
    answered = asyncio.Event()

    async def slowly(writer: asyncio.StreamWriter) -> None:
        await answered.wait()
        writer.write(good if isinstance(good, bytes) else b"")

    vendor.says["jobs"] = slowly
    leaping.forward(AFTER_A_REST)
    before = vendor.count("jobs")
    signing_in = [asyncio.create_task(each.validate(f"me {each.id}", "pw", provider="c1")) for each in walks]
    await eventually(lambda: turns_taken(replica, "create_job", "c1") == len(walks))
    assert vendor.count("jobs") == before + 1
    answered.set()
    answers = [each.json() for each in await asyncio.gather(*signing_in)]
    assert {each["validation"]["state"] for each in answers} == {"succeeded"}


async def test_links_are_refused_with_nothing_sent_and_none_is_ever_sent_twice(
    vendor: RawVendor, replica: Replica, leaping: LeapingClock
) -> None:
    names = [f"sa{number}" for number in range(FAILURES + 2)]
    vendor.says["account"] = json_answer(200, {"id": "ua1", "serviceAccounts": [{"id": each} for each in names]})
    walks = [await signed_in(replica) for _ in names]
    vendor.says["batch"] = raw(500, b"")
    for walk, name in list(zip(walks, names, strict=True))[:FAILURES]:
        answer = await walk.link([name])
        assert (answer.status_code, answer.json()["code"]) == (504, "outcome_unknown")

    for _ in range(3):
        is_shut(await walks[-1].link([names[-1]]))
    assert (await walks[-1].show()).json()["session"]["state"] == "open"
    assert vendor.count("batch") == FAILURES

    leaping.forward(AFTER_A_REST)
    assert (await walks[-2].link([names[-2]])).json()["code"] == "outcome_unknown"  # the one that is let in
    is_shut(await walks[-1].link([names[-1]]))
    vendor.says["batch"] = json_answer(201, {})
    leaping.forward(AFTER_A_REST)
    for walk, name in list(zip(walks, names, strict=True))[:-1]:
        assert (await walk.link([name])).json()["code"] == "outcome_unknown"
    assert (await walks[-1].link([names[-1]])).status_code == 201
    sent = [each for seen in vendor.seen if seen.route == "batch" for each in orjson.loads(seen.body)]
    assert sorted(sent) == sorted(names)


async def test_a_utility_that_hangs_shuts_its_own_door_and_no_attempt_is_counted_at_it(
    vendor: RawVendor, replica: Replica, leaping: LeapingClock
) -> None:
    good = vendor.says["jobs"]

    async def by_company(writer: asyncio.StreamWriter) -> None:
        if orjson.loads(vendor.seen[-1].body)["utilityCompanyId"] == "c1":
            await asyncio.Event().wait()
        writer.write(good if isinstance(good, bytes) else b"")

    vendor.says["jobs"] = by_company
    walks = [await replica.walk().open() for _ in range(FAILURES)]
    hung = await asyncio.gather(
        *(each.validate(f"person {number}", "pw", provider="c1") for number, each in enumerate(walks)),
    )
    assert {each.json()["validation"]["reason"] for each in hung} == {"outcome_unknown"}
    walk = await replica.walk().open()
    for _ in range(8):  # more than a session, or an account, may try passwords
        is_shut(await walk.validate("someone", "pw", provider="c1"))
    assert vendor.count("jobs") == FAILURES
    answer = await walk.validate("someone", "pw", provider="c2")
    assert answer.json()["validation"]["state"] == "succeeded"

    vendor.says["jobs"] = good
    leaping.forward(AFTER_A_REST)
    answer = await walk.validate("someone", "pw", provider="c1")
    assert answer.json()["validation"]["state"] == "succeeded"


async def test_polls_wait_for_better_times_and_no_validation_fails_of_them(
    vendor: RawVendor, replica: Replica, leaping: LeapingClock
) -> None:
    give_each_their_own(vendor)
    good = vendor.says["job"]
    vendor.says["job"] = DOWN
    walks = [await replica.walk().open() for _ in range(3)]
    answers = [await each.validate(f"person {each.id}", "pw", provider="c1", wait=None) for each in walks]
    started = [each.json()["validation"]["id"] for each in answers]
    polls = replica.app.state.steps.validations._watchers._client._limiters
    await eventually(lambda: "read_job" in polls and polls["read_job"]._opens_again is not None)
    vendor.says["job"] = good
    before = vendor.count("job")
    for walk, each in zip(walks, started, strict=True):
        assert (await walk.validation(each)).json()["validation"]["state"] == "pending"
    leaping.forward(AFTER_A_REST)
    for walk, each in zip(walks, started, strict=True):
        assert (await walk.validation(each, wait=20)).json()["validation"]["state"] == "succeeded"
    assert vendor.count("job") == before + len(walks)


async def test_providers_are_served_stale_and_a_dead_vendor_is_hardly_asked(
    vendor: RawVendor, replica: Replica, leaping: LeapingClock
) -> None:
    assert (await replica.client.get("/v1/providers", headers=HEADERS)).status_code == 200
    vendor.says["companies"] = DOWN
    leaping.forward(301)
    before = vendor.count("companies")
    for _ in range(10):
        answers = [await replica.client.get("/v1/providers", headers=HEADERS) for _ in range(5)]
        assert {each.status_code for each in answers} == {200}
        await asyncio.sleep(0)
        leaping.forward(6)  # past the pause of a refresh ahead of need
    assert before < vendor.count("companies") <= before + FAILURES + 3


async def test_4xx_never_open_it(vendor: RawVendor, replica: Replica) -> None:
    walks = [await signed_in(replica) for _ in range(3)]
    good = vendor.says["account"]
    for walk in walks:
        for status in (400, 403, 404, 429):
            vendor.says["account"] = raw(status, b"{}")
            answer = await reread(walk)
            assert (answer.status_code, answer.json()["code"]) == (502, "upstream_error")
    vendor.says["account"] = good
    assert (await reread(walks[0])).status_code == 200


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("retry-after: 7", "7"),
        ("retry-after: 100000", "30"),
        ("retry-after: 0", "1"),
        ("x-none: 1", None),
        ("retry-after: soon", None),
        ("retry-after: -5", None),
    ],
)
async def test_callers_are_told_how_long_the_vendor_wants_to_rest(
    vendor: RawVendor, replica: Replica, header: str, told: str | None
) -> None:
    walk = await signed_in(replica)
    vendor.says["account"] = raw(429, b"{}", header)
    before = vendor.count("account")
    answer = await reread(walk)
    assert (answer.status_code, answer.json()["code"]) == (502, "upstream_error")
    assert answer.headers.get("Retry-After") == told
    assert vendor.count("account") == before + 1


async def test_polls_rest_as_long_as_the_vendor_wants(
    vendor: RawVendor, replica: Replica, leaping: LeapingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    watchers: Any = replica.app.state.steps.validations._watchers
    wait = watchers._wait

    async def noted(job: Any, changed: Any, seconds: float) -> Any:
        waits.append(seconds)
        return await wait(job, changed, min(seconds, 0.01))

    monkeypatch.setattr(watchers, "_wait", noted)
    answers = [raw(429, b"{}", "retry-after: 9"), raw(429, b"{}"), PENDING, vendor.says["job"]]

    async def in_turn(writer: asyncio.StreamWriter) -> None:
        answer = answers.pop(0)
        writer.write(answer if isinstance(answer, bytes) else b"")

    vendor.says["job"] = in_turn
    walk = await replica.walk().open()
    answer = await walk.validate("someone", "pw", provider="c1")
    assert answer.json()["validation"]["state"] == "succeeded"
    assert waits[2] == 9
    assert max([*waits[:2], *waits[3:]]) < 1
    assert leaping.ahead_ms == 0
