"""One upstream token for everybody: fetched once, refreshed ahead, healed once, never used past its end."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from service.clock import Millis
from service.errors import UpstreamError, UpstreamTimeout
from service.link.token import TokenSource
from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY, Settings
from service.stores.connection import Store
from service.stores.keys import Keys
from service.stores.sealing import KeyRing
from service.stores.tokens import TokenStore, UpstreamToken
from tests.conftest import LeapingClock, MovableClock, Replica, make_settings, running_replica
from tests.processes import eventually, serving
from tests.upstream.vendor import RawVendor, json_answer, raw

HEADERS = {"Authorization": f"Bearer {SANDBOX_API_KEY}"}


async def open_sessions(clients: list[httpx.AsyncClient], count: int) -> list[httpx.Response]:
    calls = (clients[number % len(clients)].post("/v1/sessions", headers=HEADERS, json={}) for number in range(count))
    return await asyncio.gather(*calls)


def fetches(upstream: SandboxServer) -> int:
    return len(upstream.world.calls.all("token"))


def source(replica: Replica) -> TokenSource:
    found: TokenSource = replica.app.state.steps.sessions._tokens
    return found


@pytest.fixture
async def store(valkey: str) -> AsyncIterator[Store]:
    async with Store(SecretStr(valkey), command_seconds=1) as opened:
        yield opened


def a_token(version: str, *, expires: int = 10**15) -> UpstreamToken:
    return UpstreamToken(version, "acc", SecretStr(f"value-{version}"), Millis(expires), Millis(expires))


async def test_500_cold_callers_on_three_replicas_cause_one_fetch(
    replicas: list[Replica], upstream: SandboxServer
) -> None:
    upstream.world.faults.add("token", "delay", value=0.3)
    tokens = await asyncio.gather(*(source(replicas[number % 3]).get() for number in range(500)))
    assert len({each.version for each in tokens}) == 1
    assert fetches(upstream) == 1


async def test_500_cold_callers_on_three_processes_cause_one_fetch(settings: Settings, upstream: SandboxServer) -> None:
    upstream.world.faults.add("token", "delay", value=0.3)
    async with AsyncExitStack() as stack:
        processes = await asyncio.gather(*(stack.enter_async_context(serving(settings)) for _ in range(3)))
        answers = await open_sessions([each.client for each in processes], 500)
    assert {each.status_code for each in answers} == {201}
    assert fetches(upstream) == 1


async def test_a_caller_who_leaves_does_not_take_the_fetch_along(replica: Replica, upstream: SandboxServer) -> None:
    upstream.world.faults.add("token", "delay", value=0.3)
    tokens = source(replica)
    leader = asyncio.create_task(tokens.get())
    await eventually(lambda: fetches(upstream))
    others = [asyncio.create_task(tokens.get()) for _ in range(20)]
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    assert len({token.version for token in await asyncio.gather(*others)}) == 1
    assert fetches(upstream) == 1


async def test_it_is_refreshed_in_the_background_at_80_percent_of_its_life(
    replicas: list[Replica], upstream: SandboxServer, clock: MovableClock
) -> None:
    first = await source(replicas[0]).get()
    clock.forward(2870)
    assert await source(replicas[0]).get() == first
    assert fetches(upstream) == 1
    clock.forward(20)
    upstream.world.faults.add("token", "delay", value=0.2)
    used = await asyncio.gather(*(source(replicas[0]).get() for _ in range(50)))
    assert {each.version for each in used} == {first.version}  # nobody waits
    held = source(replicas[0])
    await eventually(lambda: held._token is not None and held._token.version != first.version)
    assert fetches(upstream) == 2
    others = await asyncio.gather(*(source(each).get() for each in replicas))
    assert len({each.version for each in others}) == 1
    assert fetches(upstream) == 2


async def test_waiting_for_it_is_bounded_and_the_fetch_goes_on(
    replica: Replica, upstream: SandboxServer, clock: MovableClock
) -> None:
    upstream.world.faults.add("token", "delay", value=0.4)
    with pytest.raises(UpstreamTimeout):
        await source(replica).get(clock.monotonic() + 0.05)
    await source(replica).get()
    assert fetches(upstream) == 1


async def test_who_waits_for_anothers_fetch_does_not_keep_redis_busy(
    replicas: list[Replica], upstream: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.world.faults.add("token", "delay", value=0.5)
    first = asyncio.create_task(source(replicas[0]).get())
    await eventually(lambda: fetches(upstream) == 1)
    locks = source(replicas[1])._refresh._locks
    held, taken = locks.held, list[str]()

    def counted(key: str, *, lease_ms: int) -> Any:
        taken.append(key)
        return held(key, lease_ms=lease_ms)

    monkeypatch.setattr(locks, "held", counted)
    assert (await source(replicas[1]).get()).version == (await first).version
    assert 1 <= len(taken) < 8
    assert fetches(upstream) == 1


async def test_it_is_not_used_past_its_end(replica: Replica, upstream: SandboxServer, clock: MovableClock) -> None:
    upstream.world.settings.token_lifetime = 600
    first = await source(replica).get()
    clock.forward(601)
    upstream.world.faults.add("token", "status", value=500, times=2)
    for _ in range(2):
        with pytest.raises(UpstreamError):
            await source(replica).get()
    assert (await source(replica).get()).version != first.version


async def test_each_moment_of_its_life_begins_on_time(
    replica: Replica, upstream: SandboxServer, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = source(replica)
    first = await held.get()
    running = held._refresh._running
    monkeypatch.setattr(clock, "now", lambda: first.refresh_at - 1)
    assert await held.get() == first
    assert held._refresh._running is running  # nobody even looks
    monkeypatch.setattr(clock, "now", lambda: first.refresh_at)
    assert await held.get() == first
    await eventually(lambda: held._token != first)
    second = await held.get()
    assert fetches(upstream) == 2
    monkeypatch.setattr(clock, "now", lambda: second.expires_at)
    assert (await held.get()).version != second.version
    assert fetches(upstream) == 3


async def test_an_hour_is_the_most_whatever_it_claims(
    replica: Replica, upstream: SandboxServer, clock: MovableClock
) -> None:
    before = clock.now()
    token = await source(replica).get()  # claims 24 h
    assert before + 3_600_000 <= token.expires_at <= clock.now() + 3_600_000
    clock.forward(3601)
    assert (await source(replica).get()).version != token.version
    assert fetches(upstream) == 2


async def test_revoking_all_tokens_under_load_costs_one_fetch_and_no_call(
    replicas: list[Replica], upstream: SandboxServer
) -> None:
    walks = [await each.walk().open() for each in replicas for _ in range(2)]
    for walk in walks:
        assert (await walk.validate("user_quick")).json()["validation"]["state"] == "succeeded"
    before = fetches(upstream)
    upstream.world.calls.clear()

    async def read(walk: Any, times: int) -> list[httpx.Response]:
        return [await walk.accounts(**{"Cache-Control": "no-cache"}) for _ in range(times)]

    for revocations in range(1, 4):
        running = [asyncio.create_task(read(walk, 12)) for walk in walks]
        calls = len(upstream.world.calls.all("account"))
        await eventually(lambda: len(upstream.world.calls.all("account")) >= calls + 6)  # noqa: B023 -- awaited here
        upstream.world.tokens.revoke_all()
        answers = [each for answered in await asyncio.gather(*running) for each in answered]
        assert {each.status_code for each in answers} == {200}
        assert fetches(upstream) <= revocations
    assert before == 1
    assert fetches(upstream) == 3


async def test_a_refused_token_is_not_taken_from_redis_again(replica: Replica, upstream: SandboxServer) -> None:
    """Another caller's look at Redis may have been under way when it was dropped there."""
    tokens = source(replica)
    old = await tokens.get()
    await tokens.drop(old)
    await tokens._store.write(old, now=Millis(0))
    assert (await tokens.get()).version != old.version
    assert fetches(upstream) == 2


async def test_refusing_one_token_often_forgets_no_other_that_was_refused(
    replica: Replica, upstream: SandboxServer
) -> None:
    tokens = source(replica)
    first = await tokens.get()
    tokens.accepted()
    await tokens.drop(first)
    second = await tokens.get()
    tokens.accepted()
    for _ in range(16):
        await tokens.drop(second)
    await tokens._store.write(first, now=Millis(0))
    assert (await tokens.get()).version not in {first.version, second.version}
    assert fetches(upstream) == 3


async def test_one_refusal_after_a_token_was_taken_is_no_reason_to_pause(
    replica: Replica, upstream: SandboxServer
) -> None:
    tokens = source(replica)
    taken = await tokens.get()
    tokens.accepted()
    await tokens.drop(taken)
    await tokens.drop(await tokens.get())
    await tokens.get()
    assert fetches(upstream) == 3


async def test_a_token_that_was_refused_before_it_could_be_taken_up_is_not(
    replica: Replica, clock: MovableClock
) -> None:
    tokens = source(replica)
    first = await tokens.get()
    clock.forward(3000)
    fetching = tokens._refresh.start()
    second = await fetching
    await tokens.drop(second)
    tokens._adopt(fetching)
    assert tokens._token == first != second


async def test_a_newer_token_is_never_dropped(store: Store, prefix: str) -> None:
    tokens = TokenStore(store=store, keys=Keys(prefix, "default"), key_ring=KeyRing({"a": b"1" * 32}))
    await tokens.write(a_token("new"), now=Millis(0))
    await tokens.drop(a_token("old"))
    found = await tokens.read()
    assert found is not None
    assert found.version == "new"
    await tokens.drop(found)
    assert await tokens.read() is None


async def test_the_vendors_401_to_our_credentials_is_om410_and_makes_no_session(
    replica: Replica, upstream: SandboxServer, store: Store, prefix: str
) -> None:
    upstream.world.faults.add("token", "status", value=401, times=None)
    answer = await replica.client.post("/v1/sessions", headers=HEADERS, json={})
    assert answer.status_code == 502
    body = answer.json()
    assert (body["status"], body["code"]) == ("OM410", "upstream_credentials_rejected")
    assert body["message"] == "Rejected: Incorrect secret or client id"
    assert body["retryable"] is False
    assert "session" not in body
    keys = [key async for key in store._client.scan_iter(match=f"{prefix}:*s:*")]
    assert keys == []


async def test_a_401_that_stays_ends_after_one_repetition(replica: Replica, upstream: SandboxServer) -> None:
    upstream.world.faults.add("companies", "status", value=401, times=None)
    answer = await replica.client.get("/v1/providers", headers=HEADERS)
    assert (answer.status_code, answer.json()["code"]) == (502, "upstream_credentials_rejected")
    assert len(upstream.world.calls.all("companies")) == 2
    assert fetches(upstream) == 2


@pytest.fixture
async def leaping(settings: Settings) -> AsyncIterator[tuple[list[Replica], LeapingClock]]:
    """Two replicas whose time can be pushed forward, pauses included."""
    clock = LeapingClock()
    async with running_replica(settings, clock=clock) as one, running_replica(settings, clock=clock) as other:
        yield [one, other], clock


def is_credentials_fault(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (502, "upstream_credentials_rejected"), answer.text
    assert (answer.json()["status"], "Retry-After" in answer.headers) == ("OM410", False)


async def test_a_vendor_that_takes_no_token_is_asked_for_one_in_half_a_minute(
    leaping: tuple[list[Replica], LeapingClock], upstream: SandboxServer
) -> None:
    (replica, _), clock = leaping
    upstream.world.faults.add("companies", "status", value=401, times=None)
    for pauses in range(3):
        for _ in range(10):
            is_credentials_fault(await replica.client.get("/v1/providers", headers=HEADERS))
        assert fetches(upstream) == 2 + pauses
        assert len(upstream.world.calls.all("companies")) == 2 + pauses
        clock.forward(31)
    upstream.world.faults.clear()
    assert (await replica.client.get("/v1/providers", headers=HEADERS)).status_code == 200
    upstream.world.tokens.revoke_all()
    assert await source(replica).authorized(source(replica)._client.list_companies)  # heals at once, as ever
    assert fetches(upstream) == 6


async def test_a_vendor_that_takes_no_secret_is_asked_once_in_half_a_minute(
    leaping: tuple[list[Replica], LeapingClock], upstream: SandboxServer
) -> None:
    (replica, _), clock = leaping
    upstream.world.faults.add("token", "status", value=401, times=None)
    for pauses in range(3):
        for answer in await open_sessions([replica.client], 10):
            is_credentials_fault(answer)
        for _ in range(5):
            is_credentials_fault(await replica.client.post("/v1/sessions", headers=HEADERS, json={}))
        assert fetches(upstream) == 2 + pauses
        clock.forward(31)
    upstream.world.faults.clear()
    assert (await replica.client.post("/v1/sessions", headers=HEADERS, json={})).status_code == 201


async def test_a_replica_that_pauses_takes_a_token_of_another_one(
    leaping: tuple[list[Replica], LeapingClock], upstream: SandboxServer
) -> None:
    (pausing, other), _ = leaping
    upstream.world.faults.add("companies", "status", value=401, times=2)
    is_credentials_fault(await pausing.client.get("/v1/providers", headers=HEADERS))
    is_credentials_fault(await pausing.client.get("/v1/providers", headers=HEADERS))
    assert fetches(upstream) == 2
    token = await source(other).get()
    assert (await pausing.client.get("/v1/providers", headers=HEADERS)).status_code == 200
    assert await source(pausing).get() == token
    assert fetches(upstream) == 3


async def test_tokens_revoked_behind_a_replicas_back_are_no_reason_to_pause(
    leaping: tuple[list[Replica], LeapingClock], upstream: SandboxServer
) -> None:
    """It meets dead tokens only: each is another replica's, which the vendor took, and revoked before this one came."""
    (unlucky, other), _ = leaping

    async def use(at: Replica) -> None:
        assert await source(at).authorized(source(at)._client.list_companies)

    calls = 0
    for _ in range(4):
        await use(other)
        token = await source(unlucky).get()
        upstream.world.tokens.revoke_all()
        await use(other)
        await source(unlucky).drop(token)
        assert (await source(unlucky).get()).version != token.version
        upstream.world.tokens.revoke_all()
        await use(unlucky)
        calls += 1
    assert fetches(upstream) <= 1 + 2 * calls


async def test_tokens_revoked_between_their_uses_are_no_reason_to_pause(
    replica: Replica, upstream: SandboxServer
) -> None:
    tokens = source(replica)
    for number in range(1, 6):
        assert await tokens.authorized(tokens._client.list_companies)
        assert fetches(upstream) == number
        upstream.world.tokens.revoke_all()


@pytest.fixture
async def refusing() -> AsyncIterator[RawVendor]:
    """Answers 401 to all that is asked of the account or job `bad`."""
    async with RawVendor() as vendor:
        for route in ("account", "job"):
            vendor.says[route] = _but_for_the_bad(vendor, vendor.says[route])
        yield vendor


def _but_for_the_bad(vendor: RawVendor, well: Any) -> Any:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(raw(401, b"{}") if "/bad " in vendor.seen[-1].line else well)

    return answer


@pytest.fixture
async def beside(refusing: RawVendor, valkey: str, prefix: str) -> AsyncIterator[tuple[Replica, LeapingClock]]:
    clock = LeapingClock()
    settings = make_settings(valkey, refusing.url, prefix, poll_seconds=0.02)
    async with running_replica(settings, clock=clock) as replica:
        yield replica, clock


async def read(at: Replica, account: str) -> object:
    tokens = source(at)
    return await tokens.authorized(
        lambda token, give_up: tokens._client.read_utility_account(token, account, give_up), of=f"account {account}"
    )


async def test_an_account_that_takes_no_token_takes_nobody_elses(
    refusing: RawVendor, beside: tuple[Replica, LeapingClock]
) -> None:
    replica, clock = beside
    for pauses in range(1, 4):
        for _ in range(6):
            with pytest.raises(UpstreamError) as refused:
                await read(replica, "bad")
            assert refused.value.status == 401
            assert (await replica.client.post("/v1/sessions", headers=HEADERS, json={})).status_code == 201
        assert refusing.count("token") <= 1 + 2 * pauses
        assert refusing.count("account") == 7 * pauses  # only the first is repeated
        clock.forward(31)
    await read(replica, "ua1")
    assert len(source(replica)._refusers) == 1


async def test_callers_are_told_that_the_account_was_refused_and_not_our_credentials(
    refusing: RawVendor, beside: tuple[Replica, LeapingClock]
) -> None:
    replica, _ = beside
    refusing.says["job"] = json_answer(200, {"status": "success", "response": {"accountId": "bad"}})
    walk = await replica.walk().open()
    assert (await walk.validate("person", provider="c1")).json()["validation"]["state"] == "succeeded"
    for _ in range(3):
        answer = await walk.accounts()
        assert (answer.status_code, answer.json()["code"], answer.json()["status"]) == (502, "upstream_error", "OM500")
    assert (await replica.client.post("/v1/sessions", headers=HEADERS, json={})).status_code == 201
    assert refusing.count("token") == 3


async def test_a_job_that_takes_no_token_is_polled_on_and_takes_nobody_elses(
    refusing: RawVendor, beside: tuple[Replica, LeapingClock]
) -> None:
    replica, _ = beside
    refusing.says["jobs"] = json_answer(201, {"id": "bad"})
    walk = await replica.walk().open()
    started = (await walk.validate("person", provider="c1", wait=None)).json()["validation"]
    await eventually(lambda: refusing.count("job") >= 6)
    assert (await replica.client.post("/v1/sessions", headers=HEADERS, json={})).status_code == 201
    assert refusing.count("token") <= 3
    refusing.says["job"] = json_answer(200, {"status": "success", "response": {"accountId": "ua1"}})
    assert (await walk.validation(started["id"], wait=20)).json()["validation"]["state"] == "succeeded"


async def test_an_account_that_refused_is_believed_again_once_it_takes_a_token(
    replica: Replica, upstream: SandboxServer
) -> None:
    walk = await replica.walk().open()
    await walk.validate("user_quick")
    upstream.world.faults.add("account", "status", value=401, times=2)
    again = {"Cache-Control": "no-cache"}
    assert (await walk.accounts(**again)).status_code == 502
    assert (await walk.accounts(**again)).status_code == 200
    for _ in range(3):
        upstream.world.tokens.revoke_all()
        assert (await walk.accounts(**again)).status_code == 200  # heals at once, as ever


async def test_an_account_that_refuses_hides_no_revoked_token_from_others(
    replica: Replica, upstream: SandboxServer
) -> None:
    walk = await replica.walk().open()
    await walk.validate("user_quick")
    upstream.world.faults.add("account", "status", value=401, times=3)
    again = {"Cache-Control": "no-cache"}
    for _ in range(2):
        assert (await walk.accounts(**again)).status_code == 502
    upstream.world.tokens.revoke_all()
    assert await source(replica).authorized(source(replica)._client.list_companies)
    assert (await walk.accounts(**again)).status_code == 200


async def test_no_more_than_so_many_accounts_that_refuse_are_remembered(
    beside: tuple[Replica, LeapingClock], monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, _ = beside
    monkeypatch.setattr("service.link.token._REFUSERS_REMEMBERED", 3)
    tokens = source(replica)
    for number in range(5):
        tokens._remember(str(number))
    assert list(tokens._refusers) == ["2", "3", "4"]
    for refused_again in ("2", "5"):
        tokens._remember(refused_again)
    assert list(tokens._refusers) == ["4", "2", "5"]


async def test_redis_cannot_read_it(replica: Replica, upstream: SandboxServer, store: Store) -> None:
    token = await source(replica).get()
    stored = await store.hash(source(replica)._store._key)
    assert stored
    assert 3_590_000 < await store._client.pttl(source(replica)._store._key) <= 3_600_000
    assert token.value.get_secret_value() not in str(stored)
    assert token.value.get_secret_value() not in repr(token)
    sealed = base64.b64decode(stored["sealed"].partition(".")[2])
    assert token.value.get_secret_value().encode() not in sealed
    assert fetches(upstream) == 1


def ring(**keys: bytes) -> dict[str, SecretStr]:
    return {name: SecretStr(base64.b64encode(key * 32).decode()) for name, key in keys.items()}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [(ring(new=b"n", old=b"o"), 1), (ring(new=b"n"), 2), (ring(old=b"x"), 2)],
    ids=["rotated", "unknown", "same name, another key"],
)
async def test_a_key_of_the_ring_opens_it_and_without_one_it_is_fetched_anew(
    valkey: str, upstream: SandboxServer, prefix: str, keys: dict[str, SecretStr], expected: int
) -> None:
    async with running_replica(make_settings(valkey, upstream.url, prefix, encryption_keys=ring(old=b"o"))) as old:
        await source(old).get()
    async with running_replica(make_settings(valkey, upstream.url, prefix, encryption_keys=keys)) as new:
        answer = await new.client.post("/v1/sessions", headers=HEADERS, json={})
        assert answer.status_code == 201
    assert fetches(upstream) == expected


async def test_while_the_token_endpoint_is_down_the_token_still_serves_and_the_endpoint_is_left_alone(
    replica: Replica, upstream: SandboxServer, clock: MovableClock, caplog: pytest.LogCaptureFixture
) -> None:
    first = await source(replica).get()
    clock.forward(3000)
    upstream.world.faults.add("token", "status", value=503, times=None)
    for _ in range(20):
        answers = await open_sessions([replica.client], 5)
        assert {each.status_code for each in answers} == {201}
    assert (await source(replica).get()).version == first.version
    assert fetches(upstream) == 2  # the first, and one that failed; the next waits a few seconds
    assert "asyncio" not in {record.name for record in caplog.records}


async def test_it_serves_replicas_that_start_later(settings: Settings, upstream: SandboxServer) -> None:
    for _ in range(3):
        async with running_replica(settings) as replica:
            assert (await replica.client.get("/v1/providers", headers=HEADERS)).status_code == 200
    assert fetches(upstream) == 1
