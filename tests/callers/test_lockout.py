"""Utilities lock accounts after wrong passwords, so attempts are counted per account, wherever they are made."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from service.errors import StoreUnavailable, TooManyAttempts
from service.link import limits as figures
from service.link.limits import Lockout
from service.sandbox.server import SandboxServer
from service.settings import Settings
from service.stores.connection import Store
from service.stores.keys import Keys
from service.stores.limits import Limit, LimitStore
from service.upstream.limiter import LimiterRules
from service.wiring import Timing
from tests.callers.pages import CLIENTS, HOST, PAGE, open_by_page, page_headers
from tests.conftest import Replica, make_settings, running_replica
from tests.walk import APS, PGE, SRP, sign_in

WRONG = "pass_wrong"


async def attempt(replica: Replica, username: str, password: str = WRONG, provider: str = APS) -> httpx.Response:
    """In a session of its own."""
    walk = await replica.walk().open()
    return await walk.validate(username, password, provider=provider)


def left(answer: httpx.Response) -> Any:
    assert answer.status_code == 201, answer.text
    validation = answer.json()["validation"]
    assert validation["state"] == "rejected"
    return validation["attemptsLeft"]


async def test_five_attempts_over_sessions_and_replicas(replicas: list[Replica], upstream: SandboxServer) -> None:
    assert [left(await attempt(replicas[each % 3], "person")) for each in range(5)] == [4, 3, 2, 1, 0]
    calls = len(upstream.world.calls.all("jobs"))
    refused = await attempt(replicas[0], "person", "pass_good")
    assert refused.status_code == 429
    assert refused.json()["code"] == "too_many_attempts"
    assert refused.json()["displayMessage"]
    assert refused.headers["ratelimit-policy"] == '"account";q=5;w=900'
    assert 1 <= int(refused.headers["retry-after"]) <= 900
    assert len(upstream.world.calls.all("jobs")) == calls == 5
    # Another account, and the same name at another utility, are others.
    assert left(await attempt(replicas[0], "person-2")) == 4
    assert left(await attempt(replicas[0], "person", provider=SRP)) == 4


async def test_a_session_has_five_attempts_as_well(replica: Replica) -> None:
    walk = await replica.walk().open()
    assert [left(await walk.validate(f"person-{each}", WRONG)) for each in range(5)] == [4, 3, 2, 1, 0]
    assert (await walk.validate("person-6", WRONG)).status_code == 429


async def test_one_account_however_its_name_is_written(replica: Replica) -> None:
    names = ["Person", " person", "PERSON ", "person"]
    assert [left(await attempt(replica, name)) for name in names] == [4, 3, 2, 1]


@pytest.mark.parametrize(
    "name",
    [
        *("person\ufeff", "\u200bperson", "per\nson", "per\u00adson", "\x01person", "\uff50erson", "pe\u0301rson"),
        *("person\u3164", "per\u115fson", "\u1160person", "person\uffa0", "person\u2800", "person\ufffc"),
        *("person\U0001d159", "person\U00013441", "person\u2065", "person\ufff0", "person\U000e0fff", "person\u17b4"),
        *("person\u0345", "person\ud800", "person\ue000"),
    ],
)
async def test_what_nobody_sees_in_a_name_makes_no_new_account(lockout: Lockout, name: str) -> None:
    assert lockout.counted_by(APS, SecretStr(name), address=None) == lockout.counted_by(
        APS, SecretStr("person"), address=None
    )
    assert lockout.counted_by(APS, SecretStr("persona"), address=None) != lockout.counted_by(
        APS, SecretStr("person"), address=None
    )


async def test_a_success_forgets_the_attempts(replica: Replica) -> None:
    assert [left(await attempt(replica, "user_quick")) for _ in range(4)] == [4, 3, 2, 1]
    assert (await attempt(replica, "user_quick", "pass_good")).json()["validation"]["state"] == "succeeded"
    assert left(await attempt(replica, "user_quick")) == 4


async def by_stranger(site: Replica, username: str, password: str = WRONG, **changes: str) -> httpx.Response:
    """In a session that a page has opened by itself."""
    session = (await open_by_page(site)).json()["session"]
    headers = page_headers(session["token"]) | {"Prefer": "wait=5"} | changes
    body = {"providerId": APS, "username": username, "password": password}
    return await site.client.post(f"/v1/sessions/{session['id']}/validations", headers=headers, json=body)


@pytest.fixture
async def doorstep(valkey: str, upstream: SandboxServer, prefix: str) -> AsyncIterator[list[Replica]]:
    """Two instances behind a proxy, from each address three wrong passwords."""
    settings = make_settings(
        valkey,
        upstream.url,
        prefix,
        clients=CLIENTS,
        address_attempts=3,
        trusted_proxies=frozenset({"127.0.0.1"}),
    )
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running_replica(settings)) for _ in range(2)]


HERE = {"X-Forwarded-For": "203.0.113.7"}
THERE = {"X-Forwarded-For": "203.0.113.8"}


async def test_stolen_passwords_cannot_be_tried_one_account_after_the_other(
    doorstep: list[Replica], upstream: SandboxServer
) -> None:
    assert Settings.model_fields["address_attempts"].default == 30
    tried = [await by_stranger(doorstep[each % 2], f"person-{each}", **HERE) for each in range(3)]
    assert [left(each) for each in tried] == [4, 4, 4]
    refused = await by_stranger(doorstep[0], "person-3", **HERE)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_attempts")
    assert refused.json()["displayMessage"]
    assert refused.headers["ratelimit-policy"] == '"address-attempts";q=3;w=900'
    assert 1 <= int(refused.headers["retry-after"]) <= 900
    assert len(upstream.world.calls.all("jobs")) == 3
    # Nor did the refused try cost the account any of its own.
    assert left(await by_stranger(doorstep[0], "person-3", **THERE)) == 4


async def test_right_passwords_are_not_held_against_an_address(doorstep: list[Replica]) -> None:
    for _ in range(5):
        assert (await by_stranger(doorstep[0], "user_quick", "pass_good", **HERE)).json()["status"] == "OM200"
    assert left(await by_stranger(doorstep[0], "person", **HERE)) == 4


async def test_tries_that_an_account_has_no_room_for_are_not_held_against_an_address(doorstep: list[Replica]) -> None:
    for _ in range(5):
        left(await attempt(doorstep[0], "person"))
    for _ in range(4):
        refused = await by_stranger(doorstep[0], "person", **HERE)
        assert refused.headers["ratelimit-policy"] == '"account";q=5;w=900'
    assert left(await by_stranger(doorstep[0], "person-2", **HERE)) == 4


async def test_a_server_vouches_for_its_people_wherever_they_come_from(doorstep: list[Replica]) -> None:
    tried = [await attempt(doorstep[0], f"person-{each}") for each in range(5)]
    assert [left(each) for each in tried] == [4] * 5


async def test_a_page_begins_so_many_validations_whatever_the_address(
    doorstep: list[Replica], upstream: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (figures.SIGN_INS_BY_CLIENT.most, figures.SIGN_INS_BY_CLIENT.window_seconds) == (300, 60)
    monkeypatch.setattr(figures, "SIGN_INS_BY_CLIENT", Limit("client-validations", 4, 60))
    statuses = [
        (await by_stranger(doorstep[each % 2], "user_quick", "pass_good", **{"X-Forwarded-For": f"203.0.113.{each}"}))
        for each in range(5)
    ]
    assert [each.status_code for each in statuses] == [201, 201, 201, 201, 429]
    assert statuses[-1].json()["code"] == "rate_limited"
    assert len(upstream.world.calls.all("jobs")) == 4
    assert (await attempt(doorstep[0], "user_quick", "pass_good")).status_code == 201


async def test_an_address_cannot_use_up_what_a_page_may_begin(
    doorstep: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (figures.SIGN_INS_BY_ADDRESS.most, figures.SIGN_INS_BY_ADDRESS.window_seconds) == (60, 60)
    monkeypatch.setattr(figures, "SIGN_INS_BY_ADDRESS", Limit("address-validations", 2, 60))
    monkeypatch.setattr(figures, "SIGN_INS_BY_CLIENT", Limit("client-validations", 4, 60))
    greedy = {"X-Forwarded-For": "203.0.113.66"}
    answers = [await by_stranger(doorstep[0], "user_quick", "pass_good", **greedy) for _ in range(6)]
    assert [each.status_code for each in answers] == [201, 201, 429, 429, 429, 429]
    other = await by_stranger(doorstep[0], "user_quick", "pass_good", **{"X-Forwarded-For": "203.0.113.67"})
    assert other.status_code == 201


async def test_a_success_tells_no_attempts(replica: Replica) -> None:
    answer = await attempt(replica, "user_quick", "pass_good")
    assert "attemptsLeft" not in answer.json()["validation"]


async def test_oauth_never_counts(replica: Replica) -> None:
    for _ in range(7):
        walk = await replica.walk().open()
        begun = (await walk.validate(None, provider=PGE, wait=None)).json()["validation"]
        await sign_in(replica.client, begun["authorizeUrl"], approve=False)
        denied = (await walk.validation(begun["id"], wait=10)).json()["validation"]
        assert denied["state"] == "rejected"
        assert "attemptsLeft" not in denied


async def test_a_session_begins_twenty_validations_however_they_end(replica: Replica, upstream: SandboxServer) -> None:
    walk = await replica.walk().open()
    for _ in range(20):
        begun = (await walk.validate(None, provider=PGE, wait=None)).json()["validation"]
        await replica.client.delete(f"{walk.path}/validations/{begun['id']}", headers=walk.headers)
    refused = await walk.validate(None, provider=PGE, wait=None)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_attempts")
    assert refused.headers["ratelimit-policy"].startswith('"validations";q=20;')
    assert len(upstream.world.calls.all("jobs")) == 20


async def test_what_was_not_sent_is_not_counted(replica: Replica) -> None:
    walk = await replica.walk().open()
    await walk.validate("user_never", wait=None)
    for _ in range(6):
        assert (await walk.validate("person", WRONG)).status_code == 409  # this provider is pending
    assert left(await attempt(replica, "person")) == 4
    closed = await replica.walk().open()
    await closed.close()
    assert (await closed.validate("person", WRONG)).status_code == 409
    assert left(await attempt(replica, "person")) == 3


@pytest.mark.parametrize("lost", ["claim", "_add"])
async def test_what_redis_lost_before_it_was_sent_is_not_counted(
    replica: Replica, upstream: SandboxServer, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    validations = replica.app.state.steps.validations

    async def fail(*_: Any, **__: Any) -> None:
        raise StoreUnavailable

    with monkeypatch.context() as away:
        away.setattr(validations._watchers if lost == "claim" else validations, lost, fail)
        for _ in range(6):  # more than an account may try
            assert (await attempt(replica, "person")).status_code == 503
    assert upstream.world.calls.all("jobs") == []
    assert left(await attempt(replica, "person")) == 4


@pytest.fixture
async def crowded(
    valkey: str, upstream: SandboxServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Replica]:
    """One call at a time starts a job, and nobody waits long for a turn; from each address two passwords."""
    at_once = {"token": 8, "companies": 8, "create_job": 1, "read_job": 8, "read_account": 8, "link": 8}
    monkeypatch.setattr("service.upstream.client._MOST_AT_ONCE", at_once)
    settings = make_settings(valkey, upstream.url, prefix, clients=CLIENTS, address_attempts=2)
    timing = Timing(limiter=LimiterRules(wait_seconds=0.02))
    async with running_replica(settings, timing=timing) as running:
        yield running


async def test_passwords_that_had_no_turn_are_not_counted(crowded: Replica, upstream: SandboxServer) -> None:
    walk = await crowded.walk().open()
    assert left(await walk.validate("person", WRONG)) == 4
    limiters = crowded.app.state.steps.validations._client._limiters
    [company] = [each for name, each in limiters.items() if name.startswith("create_job")]
    await company._turns.acquire()
    for _ in range(6):  # more than a session, or an account, may try
        for answer in (await walk.validate("person", WRONG), await by_stranger(crowded, "person")):
            assert answer.json()["validation"]["reason"] == "utility_unavailable"
    company._turns.release()
    assert len(upstream.world.calls.all("jobs")) == 1
    assert left(await walk.validate("person", WRONG)) == 3
    assert [left(await by_stranger(crowded, "person")) for _ in range(2)] == [2, 1]


async def test_a_password_that_was_given_up_before_it_was_sent_is_not_counted(
    replica: Replica, upstream: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process stood still, and another has ended the validation meanwhile."""
    validations = replica.app.state.steps.validations
    tokens = validations._tokens
    authorized = tokens.authorized
    walk = await replica.walk().open()
    await replica.client.get("/v1/providers", headers=walk.headers)

    async def late(call: Any, **rest: Any) -> Any:
        [validation] = (await walk.show()).json()["session"]["validations"]
        await walk.client.delete(f"{walk.path}/validations/{validation['id']}", headers=walk.headers)
        return await authorized(call, **rest)

    with monkeypatch.context() as still:
        still.setattr(tokens, "authorized", late)
        still.setattr(validations._watchers, "holds", lambda _: False)
        stopped = (await walk.validate("person", WRONG)).json()["validation"]["reason"]
    assert stopped == "canceled"
    [validation] = (await walk.show()).json()["session"]["validations"]
    await validations._sessions.take_back_attempt(walk.id, validation["id"])  # it was; once more changes nothing
    assert upstream.world.calls.all("jobs") == []
    assert [left(await walk.validate("person", WRONG)) for _ in range(5)] == [4, 3, 2, 1, 0]


async def test_a_password_that_the_vendor_has_seen_stays_counted(replica: Replica, upstream: SandboxServer) -> None:
    for number, status in enumerate((400, 500)):
        upstream.world.faults.add("jobs", "status", value=status)
        assert (await attempt(replica, "seen")).json()["validation"]["reason"] == "utility_unavailable"
        assert left(await attempt(replica, "seen")) == 3 - 2 * number


async def test_the_widget_is_counted_as_well(site: Replica) -> None:
    for _ in range(5):
        left(await attempt(site, "person"))
    token = (await site.client.post("/api/access-token", headers=page_headers(), json={"clientId": PAGE})).json()[
        "token"
    ]
    body = {"username": "person", "password": WRONG, "utilityCompanyId": APS}
    answer = await site.client.post("/api/jobs", headers=page_headers(token), json=body)
    assert answer.status_code == 429
    assert answer.headers["access-control-allow-origin"] == HOST


async def test_redis_does_not_know_whose_account_it_is(replica: Replica, valkey: str, prefix: str) -> None:
    name = "somebody.known@mail.example"
    await attempt(replica, name)
    dump = []
    async with Redis.from_url(valkey, decode_responses=True) as redis:
        async for key in redis.scan_iter(f"{prefix}:*"):
            kind = await redis.type(key)
            value = await (
                redis.hgetall(key) if kind == "hash" else redis.get(key) if kind == "string" else redis.dump(key)
            )
            dump.append(f"{key} {value!r}")
            assert kind in {"set", "zset"} or await redis.pttl(key) > 0, key
    text = " ".join(dump)
    assert "account" in text
    assert name not in text
    assert "somebody" not in text
    assert WRONG not in text


async def test_giving_back_what_nobody_took_makes_no_room(replica: Replica) -> None:
    lockout = replica.app.state.steps.validations._lockout
    await lockout.give_back("nobody", "none")
    await lockout.give_back("nobody", "none")
    assert [await lockout.spend("nobody", f"val_{each}") for each in range(5)] == [4, 3, 2, 1, 0]
    with pytest.raises(Exception, match="Too many attempts"):
        await lockout.spend("nobody", "val_5")


@pytest.fixture
async def lockout(valkey: str, prefix: str) -> AsyncIterator[Lockout]:
    """Two attempts for each account, three for each address."""
    async with Store(SecretStr(valkey), command_seconds=5) as store:
        limits = LimitStore(store=store, keys=Keys(prefix, "default"))
        yield Lockout(limits=limits, by_account=2, by_address=3, key=b"k" * 32, tenant="default")


async def test_what_is_refused_or_given_back_counts_neither_for_account_nor_address(lockout: Lockout) -> None:
    a, b, c = (lockout.counted_by(APS, SecretStr(name), address="192.0.2.1") for name in "abc")

    async def refused(account: str, attempt: str) -> str:
        with pytest.raises(TooManyAttempts) as raised:
            await lockout.spend(account, attempt)
        return raised.value.policy

    assert [await lockout.spend(a, each) for each in ("a1", "a2")] == [1, 0]
    await lockout.give_back(a, "a1")
    assert await lockout.spend(a, "a3") == 0
    assert [await refused(a, each) for each in ("a4", "a5")] == ["account"] * 2
    assert await lockout.spend(b, "b1") == 1
    assert [await refused(c, each) for each in ("c1", "c2")] == ["address-attempts"] * 2
    await lockout.give_back(b, "b1")
    assert await lockout.spend(c, "c3") == 1
    assert await refused(b, "b2") == "address-attempts"
    await lockout.forget(a, "a3")
    assert await lockout.spend(a, "a6") == 1


async def test_whoever_is_vouched_for_shares_no_address(lockout: Lockout) -> None:
    accounts = [lockout.counted_by(APS, SecretStr(name), address=None) for name in "abcde"]
    assert [await lockout.spend(account, "one") for account in accounts] == [1] * 5


async def test_no_two_windows_meet_at_an_account(lockout: Lockout, valkey: str, prefix: str) -> None:
    """One try, and a moment before its window ends another: the next window must not let two more in at once."""
    name = lockout.counted_by(APS, SecretStr("person"), address=None)
    key = Keys(prefix, "default").attempts("account", name)
    async with Redis.from_url(valkey) as redis:
        await lockout.spend(name, "first")
        await redis.pexpire(key, 1000)
        assert await lockout.spend(name, "second") == 0
        assert await redis.pttl(key) > 800_000
        await redis.pexpire(key, 1000)
        with pytest.raises(TooManyAttempts):
            await lockout.spend(name, "third")
        assert await redis.pttl(key) <= 1000  # who was refused has tried nothing
