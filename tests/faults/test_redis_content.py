"""Redis holds what nobody of us wrote: what reads it says that the store is of no use, and nothing else suffers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.sandbox.server import SandboxServer
from service.sandbox.world import ACCOUNT_ID
from service.settings import SANDBOX_API_KEY
from service.stores.connection import Store
from service.stores.keys import Keys
from service.wiring import _tenant_id
from tests.conftest import Replica, make_settings, running_replica
from tests.faults.redis_line import RedisLine
from tests.walk import SRP

NO_TEXT: Final = b"\xff\xfe"
HEADERS: Final = {"Authorization": f"Bearer {SANDBOX_API_KEY}"}

GARBAGE: Final[dict[str, bytes]] = {
    "v": b"one",
    "state": b"half-linked",
    "created": b"yesterday",
    "expires": b"",
    "ended": b"{}",
    "metadata": b"[1",
    "link": b"[]",
    "hosted": b"7",
    "owner": NO_TEXT,
    "subject": NO_TEXT,
    "intent:att_1": b"what",
    "val:val_1:state": b"dreaming",
    "val:val_2:deadline": NO_TEXT,
    "account": b"x/../../access-token?",
    "nobody": NO_TEXT,
}


@pytest.fixture
async def direct(valkey: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(valkey) as opened:
        yield opened


@pytest.fixture
def keys(prefix: str, valkey: str, upstream: SandboxServer) -> Keys:
    settings = make_settings(valkey, upstream.url, prefix)
    return Keys(prefix, _tenant_id(settings, settings.client_id))


async def test_what_is_no_text_fails_the_command_that_read_it_and_nothing_else(
    valkey: str, direct: Redis, prefix: str
) -> None:
    await direct.set(f"{prefix}:broken", NO_TEXT)
    await direct.hset(f"{prefix}:hash", mapping={"good": "1", "bad": NO_TEXT})
    async with RedisLine(valkey) as line, Store(SecretStr(line.url), command_seconds=1) as store:
        await store.put(f"{prefix}:good", "text", keep_ms=60_000)
        connected = line.accepted
        found = await asyncio.gather(
            *(store.get(f"{prefix}:{name}") for name in ("good", "broken", "good", "none")),
            store.hash(f"{prefix}:hash"),
            store.get(f"{prefix}:good"),
            return_exceptions=True,
        )
        kinds = [each if isinstance(each, str | None) else type(each) for each in found]
        assert kinds == ["text", StoreUnavailable, "text", None, StoreUnavailable, "text"]
        assert await store.get(f"{prefix}:good") == "text"
        assert line.accepted == connected, "its connection is as good as before"


@pytest.mark.parametrize("field", GARBAGE)
async def test_a_session_of_garbage_is_no_session_that_anybody_is_let_into(
    shared: Replica, direct: Redis, field: str
) -> None:
    walk, other = await shared.walk().open(), await shared.walk().open()
    name = shared.app.state.steps.sessions._sessions._keys.session(walk.id)
    await direct.hset(name, field, GARBAGE[field])
    answers = await asyncio.gather(
        walk.show(), walk.show(by_server=True), walk.accounts(), walk.link(["a"]), walk.close()
    )
    assert {each.status_code for each in answers} == {503}, [each.text for each in answers]
    assert {each.json()["code"] for each in answers} == {"store_unavailable"}
    assert (await other.show()).status_code == 200


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("accounts", "../utility-companies"),
        ("services", "a/../b"),
        ("job", "../access-token"),
        ("authorize", "javascript:alert(1)"),
    ],
)
async def test_what_somebody_writes_there_leads_no_call_and_no_browser_elsewhere(
    shared: Replica, omniconnect_sandbox_server: SandboxServer, direct: Redis, part: str, value: str
) -> None:
    walk = shared.walk()
    ids = await walk.ready("user_quick")
    [validation] = (await walk.show()).json()["session"]["validations"]
    name = shared.app.state.steps.sessions._sessions._keys.session(walk.id)
    await direct.hset(name, f"val:{validation['id']}:{part}", value)
    calls = len(omniconnect_sandbox_server.world.calls.all())
    answers = await asyncio.gather(walk.show(), walk.accounts(**{"Cache-Control": "no-cache"}), walk.link(ids))
    assert {each.status_code for each in answers} == {503}, [each.text for each in answers]
    assert len(omniconnect_sandbox_server.world.calls.all()) == calls


async def test_a_token_for_an_account_that_is_no_id_is_fetched_anew(
    valkey: str, upstream: SandboxServer, direct: Redis, keys: Keys, prefix: str
) -> None:
    settings = make_settings(valkey, upstream.url, prefix)
    async with running_replica(settings) as replica:
        await replica.walk().open()
    await direct.hset(keys.token, "account", "x/../../access-token?")
    async with running_replica(settings) as replica:
        assert (await replica.walk().ready("user_quick")) != []
    assert len(upstream.world.calls.all("token")) == 2


async def test_keys_of_another_type_close_what_needs_them_and_nothing_is_sent(
    replica: Replica, upstream: SandboxServer, direct: Redis, keys: Keys
) -> None:
    walk = replica.walk()
    ids = await walk.ready("user_quick")
    for each in ids:
        await direct.set(keys.guard(ACCOUNT_ID, each), "text", px=60_000)
    await direct.delete(keys.job_leases)
    await direct.set(keys.job_leases, "text", px=60_000)
    jobs = len(upstream.world.calls.all("jobs"))
    for answer in (await walk.validate("user_quick", provider=SRP), await walk.link(ids)):
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert upstream.world.calls.all("batch") == []
    assert len(upstream.world.calls.all("jobs")) == jobs
    await direct.delete(keys.job_leases, *(keys.guard(ACCOUNT_ID, each) for each in ids))
    assert (await walk.link(ids)).status_code == 201


async def test_a_token_and_a_list_of_another_type_are_fetched_anew(
    valkey: str, upstream: SandboxServer, direct: Redis, keys: Keys, prefix: str
) -> None:
    await direct.set(keys.token, NO_TEXT, px=60_000)
    await direct.hset(keys.providers, "a", "b")
    await direct.pexpire(keys.providers, 60_000)
    async with running_replica(make_settings(valkey, upstream.url, prefix)) as replica:
        assert (await replica.client.get("/v1/providers", headers=HEADERS)).status_code == 200
        await replica.walk().open()
    assert len(upstream.world.calls.all("token")) == 1
