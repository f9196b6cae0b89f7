"""What a link call hangs on is with a replica before the call is made, and nothing is sent where none has it."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from service.errors import StoreUnavailable
from service.sandbox.server import SandboxServer
from service.stores import connection
from service.stores.connection import Store
from tests.conftest import Replica, make_settings, running_replica
from tests.faults.servers import Fleet, Node, sentinel_with_replicas
from tests.link.waiting import until
from tests.processes import eventually as happens
from tests.walk import Walk


@pytest.fixture(scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with sentinel_with_replicas(tmp_path_factory.mktemp("servers"), replicas=1) as running:
        yield running


@pytest.fixture
async def follower(fleet: Fleet) -> AsyncIterator[Node]:
    """The only replica, which stands still and goes on."""
    node = fleet.shards[0][1]
    yield node
    node.go_on()
    await fleet.caught_up()


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_REPLICA_MS", 1000)  # a busy machine's replica is no lost one


@pytest.fixture
async def replica(fleet: Fleet, upstream: SandboxServer, prefix: str) -> AsyncIterator[Replica]:
    async with running_replica(make_settings(fleet.url, upstream.url, prefix)) as running:
        yield running


async def _state(walk: Walk) -> str:
    state: str = (await walk.show()).json()["session"]["state"]
    return state


async def _links(walk: Walk, ids: list[str]) -> None:
    """It links as soon as the replica has come after."""

    async def is_linked() -> bool:
        answer = await walk.link(ids)
        assert answer.status_code in {201, 503}
        return answer.status_code == 201

    await until(is_linked)


async def test_nothing_is_sent_where_no_replica_has_the_intent_and_a_later_try_goes_on(
    replica: Replica, follower: Node, upstream: SandboxServer
) -> None:
    walk, other = replica.walk(), replica.walk()
    ids = await walk.ready("user_quick")
    assert await other.ready("user_quick") == ids
    follower.stop()
    refused = await walk.link(ids)
    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    assert (await replica.walk().open()).id, "what hangs on no replica goes on"
    assert upstream.world.calls.all("batch") == []
    follower.go_on()

    async def is_open() -> bool:
        return await _state(walk) == "open"

    await until(is_open)
    await _links(other, ids)
    await _links(walk, ids)
    assert len(upstream.world.calls.all("batch")) == 1


async def test_the_mark_is_given_back_when_no_replica_has_it(
    replica: Replica, follower: Node, upstream: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk, other = replica.walk(), replica.walk()
    ids = await walk.ready("user_quick")
    assert await other.ready("user_quick") == ids
    run = Store.run

    async def stop_before_the_mark(self: Store, script: str, **rest: object) -> object:
        if script == "guard_mark":
            follower.stop()
        return await run(self, script, **rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Store, "run", stop_before_the_mark)
        refused = await walk.link(ids)
    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    assert upstream.world.calls.all("batch") == []
    follower.go_on()
    await _links(other, ids)
    assert len(upstream.world.calls.all("batch")) == 1


async def test_a_result_is_told_under_the_name_that_is_kept_once_a_replica_has_it(
    replica: Replica, follower: Node, upstream: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_REPLICA_MS", 10_000)
    walk = replica.walk()
    ids = await walk.ready("user_quick")
    upstream.world.faults.add("batch", "delay", value=0.2)
    linking = asyncio.create_task(walk.link(ids))
    await happens(lambda: upstream.world.calls.all("batch"))
    follower.stop()
    linked = await linking
    assert linked.status_code == 201

    async def is_linked() -> bool:
        return await _state(walk) == "linked"  # whoever reads writes it down, should the attempt still wait

    await until(is_linked)
    follower.go_on()
    assert (await walk.show()).json()["session"]["link"]["id"] == linked.json()["link"]["id"]
    assert (await walk.link(ids)).json()["link"]["id"] == linked.json()["link"]["id"]
    assert len(upstream.world.calls.all("batch")) == 1


async def test_a_script_that_finds_its_work_done_is_not_taken_for_kept(
    fleet: Fleet, follower: Node, prefix: str
) -> None:
    async with Store(SecretStr(fleet.url), command_seconds=1, replicas=1) as store:
        await store.run("unlock", keys=[prefix], args=["me", prefix, "topic"], kept=True)
        follower.stop()
        with pytest.raises(StoreUnavailable) as raised:
            await store.run("session_read", keys=[prefix, f"{prefix}:reads"], args=[1000, ""], kept=True)
        assert raised.value.done
        assert await store.run("session_read", keys=[prefix, f"{prefix}:reads"], args=[1000, ""]) == []
        follower.go_on()

        async def kept() -> bool:
            try:
                await store.run("token_drop", keys=[prefix], args=["version"], kept=True)
            except StoreUnavailable:
                return False
            return True

        await until(kept)


async def test_a_command_that_waits_for_replicas_holds_up_no_other(
    fleet: Fleet, follower: Node, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_REPLICA_MS", 10_000)
    async with Store(SecretStr(fleet.url), command_seconds=1, replicas=1) as store:
        follower.stop()
        waiting = asyncio.create_task(store.run("token_drop", keys=[prefix], args=["version"], kept=True))
        for _ in range(20):
            await store.ping()
        assert not waiting.done()
        follower.go_on()
        assert await waiting == 0
