"""Redis late or gone: what needs none keeps serving, the rest says so in bounded time, and nothing it has is lost."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import httpx
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY
from service.stores import connection
from service.stores.connection import Store
from service.stores.embedded import EmbeddedStore
from service.stores.locks import Locks
from service.stores.notices import Notices
from service.wiring import Timing
from tests.conftest import Replica, make_settings, running_replica
from tests.faults.redis_line import RedisLine
from tests.processes import eventually as happens
from tests.walk import SRP

HEADERS: Final = {"Authorization": f"Bearer {SANDBOX_API_KEY}"}
COMMAND_SECONDS: Final = 0.1
GENEROUS_SECONDS: Final = 10.0


@pytest.fixture
async def line(valkey: str) -> AsyncIterator[RedisLine]:
    async with RedisLine(valkey) as running:
        yield running


@pytest.fixture
async def replica(line: RedisLine, upstream: SandboxServer, prefix: str) -> AsyncIterator[Replica]:
    settings = make_settings(line.url, upstream.url, prefix, redis_timeout=COMMAND_SECONDS)
    async with running_replica(settings) as running:
        yield running


@pytest.fixture
async def store(line: RedisLine) -> AsyncIterator[Store]:
    async with Store(SecretStr(line.url), command_seconds=COMMAND_SECONDS) as opened:
        yield opened


async def begin(line: RedisLine, trouble: str) -> None:
    if trouble == "refused":
        await line.cut()
    elif trouble == "slow":
        line.delay_seconds = 30
    else:
        line.trouble = trouble  # type: ignore[assignment]


async def providers(replica: Replica) -> httpx.Response:
    return await replica.client.get("/v1/providers", headers=HEADERS)


async def opened(replica: Replica) -> httpx.Response:
    return await replica.client.post("/v1/sessions", headers=HEADERS, json={})


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(GENEROUS_SECONDS):
        while not await check():  # noqa: ASYNC110 -- what happens elsewhere has no event
            await asyncio.sleep(0.02)


def says_so(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.json()["code"] == "store_unavailable"
    assert int(answer.headers["Retry-After"]) > 0


TROUBLES: Final = ["black_hole", "lost_replies", "refused", "slow"]


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_what_needs_no_redis_keeps_serving_and_the_rest_says_so_and_all_heals(
    replica: Replica, line: RedisLine, upstream: SandboxServer, trouble: str
) -> None:
    walk = replica.walk()
    ids = await walk.ready("user_quick")
    assert (await providers(replica)).status_code == 200
    before = len(upstream.world.calls.all())
    await begin(line, trouble)

    started = time.monotonic()
    assert {each.status_code for each in await asyncio.gather(*(providers(replica) for _ in range(50)))} == {200}
    token = await replica.app.state.steps.sessions._tokens.get()
    assert token.value
    refused = await asyncio.gather(
        *(opened(replica) for _ in range(20)),
        walk.show(),
        walk.show(by_server=True),
        walk.validate("user_quick", provider="5eedc0de0000000000000002", wait=5),
        walk.accounts(),
        walk.link(ids),
        walk.close(),
        replica.client.get("/v1/providers", headers=walk.headers),
    )
    for answer in refused:
        says_so(answer)
    assert (await replica.client.get("/livez")).status_code == 200
    assert time.monotonic() - started < GENEROUS_SECONDS
    assert len(upstream.world.calls.all()) == before  # the token and the list were there, and nothing else was sent

    await line.heal()

    async def works() -> bool:
        return (await opened(replica)).status_code == 201

    await eventually(works)
    shown = (await walk.show()).json()["session"]
    assert shown["state"] == "open"
    assert await walk.account_ids() == ids
    assert (await walk.link(ids)).status_code == 201


@pytest.mark.parametrize("trouble", ["black_hole", "refused"])
async def test_a_cold_process_without_redis_serves_providers_with_a_token_of_its_own(
    line: RedisLine, upstream: SandboxServer, replica: Replica, trouble: str
) -> None:
    await begin(line, trouble)
    answers = await asyncio.gather(*(providers(replica) for _ in range(30)))
    assert {each.status_code for each in answers} == {200}
    assert len(upstream.world.calls.all("token")) == 1
    assert len(upstream.world.calls.all("companies")) == 1


@pytest.mark.parametrize("trouble", ["black_hole", "refused"])
async def test_a_validation_in_flight_survives_an_outage(
    replica: Replica, line: RedisLine, upstream: SandboxServer, trouble: str
) -> None:
    upstream.world.settings.speed = 0.3  # 0.6 s
    walk = await replica.walk().open()
    started = await walk.validate("user_good", wait=None)
    validation = started.json()["validation"]
    await begin(line, trouble)
    jobs = len(upstream.world.calls.all("jobs"))
    await asyncio.sleep(1)  # longer than the job takes
    await line.heal()

    async def finished() -> bool:
        answer = await walk.validation(validation["id"], wait=5)
        return bool(answer.status_code == 200 and answer.json()["validation"]["state"] == "succeeded")

    await eventually(finished)
    assert len(upstream.world.calls.all("jobs")) == jobs == 1
    assert len(await walk.account_ids()) == 2


@pytest.mark.parametrize("trouble", ["black_hole", "refused"])
async def test_a_link_in_flight_survives_an_outage(
    replica: Replica, line: RedisLine, upstream: SandboxServer, trouble: str
) -> None:
    walk = replica.walk()
    ids = await walk.ready("user_quick")
    upstream.world.faults.add("batch", "delay", value=0.5)
    linking = asyncio.create_task(walk.link(ids))
    await happens(lambda: upstream.world.calls.all("batch"))
    await begin(line, trouble)
    await asyncio.sleep(0.7)
    await line.heal()
    answer = await linking
    assert (answer.status_code, answer.json()["status"]) == (201, "OM200")

    async def recorded() -> bool:
        shown = await walk.show()
        return bool(shown.status_code == 200 and shown.json()["session"]["state"] == "linked")

    await eventually(recorded)
    again = await walk.link(ids)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert len(upstream.world.links) == 1


async def test_a_lost_reply_to_taking_a_lease_does_not_look_like_anothers(
    store: Store, line: RedisLine, prefix: str
) -> None:
    locks = Locks(store=store, channel=f"{prefix}:notices")
    async with locks.held(f"{prefix}:warm", lease_ms=1000):
        pass  # Redis knows the script, so that the reply to the very first command is the one that counts
    line.lose = 1
    async with locks.held(f"{prefix}:x", lease_ms=10_000) as ours:
        assert line.lost.is_set()
        assert ours
        async with locks.held(f"{prefix}:x", lease_ms=10_000) as others:
            assert not others
    async with locks.held(f"{prefix}:x", lease_ms=10_000) as again:
        assert again


async def test_a_lease_that_nobody_heard_of_holds_nobody_up(
    line: RedisLine, upstream: SandboxServer, replica: Replica, valkey: str, prefix: str
) -> None:
    """All replies are lost while the lease is taken: the fetch goes on alone, and others find its result."""
    line.trouble = "lost_replies"
    first = await providers(replica)
    assert first.status_code == 200
    await line.heal()
    async with running_replica(make_settings(valkey, upstream.url, prefix)) as another:
        async with asyncio.timeout(20):
            assert (await providers(another)).status_code == 200


@pytest.mark.parametrize("breaks_after", [None, COMMAND_SECONDS / 2])
async def test_a_command_is_sent_twice_at_most(
    store: Store, line: RedisLine, valkey: str, prefix: str, breaks_after: float | None
) -> None:
    """Whether the server is silent, or breaks the connection and is silent then."""
    keys = [f"{prefix}:session", f"{prefix}:reads"]
    async with Redis.from_url(valkey) as redis:
        await redis.hset(keys[0], "token", "hash")
        await store.run("session_read", keys=keys, args=[60_000, ""])
        with line.losing_replies(each=10):
            reading = asyncio.create_task(store.run("session_read", keys=keys, args=[60_000, ""]))
            if breaks_after is not None:
                await asyncio.sleep(breaks_after)
                line.break_connections()
            with pytest.raises(StoreUnavailable):
                await reading
        assert await redis.get(keys[1]) == b"3"


async def test_after_a_standstill_a_command_is_not_sent_again(
    store: Store, line: RedisLine, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis may have forgotten by then that it ran."""
    await store.ping()
    monkeypatch.setattr(connection, "_LATEST_RETRY_SECONDS", -COMMAND_SECONDS)
    line.lose = 1
    with pytest.raises(StoreUnavailable):
        await store.get(prefix)


async def test_a_held_up_event_loop_is_no_fault_of_redis(valkey: str, prefix: str) -> None:
    """A process that stands still for longer than the time limit still takes the answer that was there in time."""

    async def hold_up() -> None:
        while True:
            time.sleep(0.06)  # noqa: ASYNC251 -- what is tested
            await asyncio.sleep(0)

    async with Store(SecretStr(valkey), command_seconds=0.02) as store:
        holding = asyncio.create_task(hold_up())
        try:
            for _ in range(3):
                await store.put(prefix, "up", keep_ms=1000)
        finally:
            holding.cancel()


@pytest.mark.parametrize("steps", range(12))
async def test_a_command_does_not_swallow_a_cancellation(valkey: str, steps: int) -> None:
    """A loop that was told to end, and has not heard it, keeps the process from ending."""
    async with Store(SecretStr(valkey), command_seconds=1) as store:

        async def work() -> None:
            await store.ping()
            await asyncio.Event().wait()

        for connected in (False, True):
            if connected:
                await store.ping()
            working = asyncio.create_task(work())
            for _ in range(steps):
                await asyncio.sleep(0)
            working.cancel()
            await asyncio.wait({working}, timeout=5)
            assert working.cancelled()
            assert await store.get("nobody-wrote-this") is None  # and not the reply that was left unread


async def test_500_sessions_at_once_find_a_healthy_redis_healthy(
    valkey: str, upstream: SandboxServer, prefix: str
) -> None:
    async with running_replica(make_settings(valkey, upstream.url, prefix, redis_timeout=0.25)) as replica:
        answers = await asyncio.gather(*(opened(replica) for _ in range(500)))
        steps = replica.app.state.steps
        more = await asyncio.gather(
            *(steps.sessions._sessions.read(each.json()["session"]["id"]) for each in answers for _ in range(10)),
            return_exceptions=True,
        )
    assert {each.status_code for each in answers} == {201}
    assert [each for each in more if isinstance(each, BaseException)] == []


async def test_scripts_that_redis_has_forgotten_are_sent_again(replica: Replica, valkey: str) -> None:
    async with Redis.from_url(valkey) as direct:
        walk = replica.walk()
        ids = await walk.ready("user_quick")
        await direct.script_flush()
        assert (await walk.link(ids)).status_code == 201


async def test_a_notice_is_heard_again_after_an_outage(store: Store, line: RedisLine, prefix: str) -> None:
    notices = Notices(store=store, channel=prefix)
    listening = asyncio.create_task(notices.listen())
    try:
        async with asyncio.timeout(GENEROUS_SECONDS):
            await notices.subscribed.wait()
            await line.cut()
            with notices.watch("topic") as watch:
                await watch.changed(GENEROUS_SECONDS)  # losing the line is a change: something may have been missed
            await line.heal()
            await notices.subscribed.wait()
            with notices.watch("topic") as watch:
                waiting = asyncio.create_task(watch.changed(GENEROUS_SECONDS))
                while not waiting.done():
                    await store._client.publish(prefix, "topic")
                    await asyncio.sleep(0.01)
                assert notices.subscribed.is_set()
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


# A server of its own


async def test_a_full_redis_is_store_unavailable_and_nothing_is_half_done(upstream: SandboxServer, prefix: str) -> None:
    with EmbeddedStore() as full:
        async with (
            running_replica(make_settings(full.url, upstream.url, prefix)) as replica,
            Redis.from_url(full.url) as direct,
        ):
            walk = replica.walk()
            ids = await walk.ready("user_quick")
            await direct.config_set("maxmemory", 1)
            before = len(upstream.world.calls.all())
            says_so(await opened(replica))
            says_so(await walk.validate("user_quick", provider=SRP))
            says_so(await walk.link(ids))
            says_so(await walk.close())
            assert len(upstream.world.calls.all()) == before
            assert (await providers(replica)).status_code == 200
            await direct.config_set("maxmemory", 0)
            assert (await walk.link(ids)).status_code == 201
            assert len(upstream.world.links) == 1


async def test_what_the_vendor_confirms_is_recorded_even_in_a_redis_that_is_full_by_then(
    upstream: SandboxServer, prefix: str
) -> None:
    with EmbeddedStore() as full:
        async with (
            running_replica(make_settings(full.url, upstream.url, prefix)) as replica,
            Redis.from_url(full.url) as direct,
        ):
            walk, other = replica.walk(), replica.walk()
            ids = await walk.ready("user_quick")
            assert await other.ready("user_quick") == ids
            upstream.world.faults.add("batch", "delay", value=0.2)
            linking = asyncio.create_task(walk.link(ids))
            await happens(lambda: upstream.world.calls.all("batch"))
            await direct.config_set("maxmemory", 1)
            assert (await linking).status_code == 201
            await direct.config_set("maxmemory", 0)

            async def is_linked() -> bool:
                return bool((await other.link(ids)).status_code == 201)

            await eventually(is_linked)
            assert (await walk.show()).json()["session"]["state"] == "linked"
            assert len(upstream.world.links) == 1


async def test_a_wrong_password_is_store_unavailable(upstream: SandboxServer, prefix: str) -> None:
    with EmbeddedStore() as locked:
        async with (
            running_replica(make_settings(locked.url, upstream.url, prefix)) as replica,
            Redis.from_url(locked.url) as direct,
        ):
            await direct.config_set("requirepass", "another")
            await direct.client_kill_filter(_type="normal", skipme=True)
            await direct.client_kill_filter(_type="pubsub", skipme=True)
            says_so(await opened(replica))
            assert (await providers(replica)).status_code == 200
            await direct.config_set("requirepass", "")
            assert (await opened(replica)).status_code == 201


async def test_a_redis_that_restarted_empty_knows_no_session_and_takes_new_ones(
    upstream: SandboxServer, prefix: str
) -> None:
    with EmbeddedStore() as forgetful:
        async with (
            running_replica(make_settings(forgetful.url, upstream.url, prefix)) as replica,
            Redis.from_url(forgetful.url) as direct,
        ):
            walk = replica.walk()
            await walk.ready("user_quick")
            await direct.flushall()
            await direct.script_flush()
            await direct.client_kill_filter(_type="normal", skipme=True)
            assert (await walk.show()).status_code == 401
            fresh = replica.walk()
            ids = await fresh.ready("user_one")
            assert (await fresh.link(ids)).status_code == 201


async def test_a_link_whose_redis_restarts_empty_is_not_sent_again(upstream: SandboxServer, prefix: str) -> None:
    with EmbeddedStore() as forgetful:
        async with (
            running_replica(make_settings(forgetful.url, upstream.url, prefix)) as replica,
            Redis.from_url(forgetful.url) as direct,
        ):
            walk = replica.walk()
            ids = await walk.ready("user_quick")
            upstream.world.faults.add("batch", "delay", value=0.2)
            linking = asyncio.create_task(walk.link(ids))
            await happens(lambda: upstream.world.calls.all("batch"))
            await direct.flushall()
            assert (await linking).status_code == 201
            for gone in (await walk.show(), await walk.link(ids), await walk.close()):
                assert gone.status_code == 401
            fresh = replica.walk()
            assert await fresh.ready("user_quick") == ids
            assert (await fresh.link(ids)).status_code == 201
            assert len(upstream.world.links) == 1


async def test_starting_without_redis_is_not_ready_but_alive(
    line: RedisLine, upstream: SandboxServer, prefix: str
) -> None:
    await line.cut()
    settings = make_settings(line.url, upstream.url, prefix, redis_timeout=COMMAND_SECONDS)
    starting = asyncio.create_task(_first_ready(settings))
    await asyncio.sleep(0.5)
    assert not starting.done()
    await line.heal()
    assert (await starting)["status"] == "ready"


async def _first_ready(settings: Any) -> dict[str, Any]:
    async with running_replica(settings, timing=Timing()) as replica:
        found: dict[str, Any] = (await replica.client.get("/readyz")).json()
        return found


async def test_a_store_error_of_any_kind_is_one_error(store: Store, prefix: str) -> None:
    await store.put(prefix, "text", keep_ms=1000)
    with pytest.raises(StoreUnavailable):
        await store.hash(prefix)  # WRONGTYPE
    await store._client.set(prefix, b"\xff")
    with pytest.raises(StoreUnavailable):
        await store.get(prefix)
