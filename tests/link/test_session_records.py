"""Two versions of the service share Redis during a deploy: what one writes, the other reads and does not destroy."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from service.sandbox.server import SandboxServer
from service.sandbox.world import ACCOUNT_ID
from service.settings import Settings
from service.stores.records import SCHEMA_VERSION
from tests.conftest import Replica, running_replica
from tests.events.sse import listening
from tests.walk import Walk


@pytest.fixture
async def redis(valkey: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(valkey, decode_responses=True) as client:
        yield client


def key(prefix: str, walk: Walk) -> str:
    return f"{prefix}:{{s:{walk.id}}}"


async def test_fields_of_a_newer_version_survive_every_change(replica: Replica, redis: Redis, prefix: str) -> None:
    walk = await replica.walk().open()
    newer: dict[Any, Any] = {"colour": "blue", "val:val_x:colour": "red", "odd:shape": "{}"}
    await redis.hset(key(prefix, walk), mapping=newer)
    started = (await walk.validate("user_never", wait=None)).json()["validation"]
    await redis.hset(key(prefix, walk), f"val:{started['id']}:colour", "green")
    await replica.client.delete(f"{walk.path}/validations/{started['id']}", headers=walk.headers)
    await walk.validate("user_quick")
    replaced = await replica.client.post(f"{walk.path}/tokens", headers=walk.server_headers)
    walk.token = replaced.json()["session"]["token"]
    assert (await walk.link(await walk.account_ids())).status_code == 201
    stored = await redis.hgetall(key(prefix, walk))
    assert newer.items() <= stored.items()
    assert stored[f"val:{started['id']}:colour"] == "green"


@pytest.mark.parametrize("version", [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1])
async def test_neighbouring_schema_versions_are_readable(
    replica: Replica, redis: Redis, prefix: str, version: int
) -> None:
    walk = await replica.walk().open()
    await redis.hset(key(prefix, walk), "v", str(version))
    assert (await walk.show()).json()["session"]["state"] == "open"
    assert (await walk.validate("user_quick")).json()["validation"]["state"] == "succeeded"
    assert await redis.hget(key(prefix, walk), "v") == str(version)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("state", "paused"),
        ("created", "yesterday"),
        ("metadata", "{"),
        ("v", "one"),
        ("val:val_x:state", "on hold"),
        ("intent:att_x", "broken"),
        ("link", "{}"),
    ],
)
async def test_a_record_that_cannot_be_read_is_neither_missing_nor_a_bug(
    replica: Replica, redis: Redis, prefix: str, field: str, value: str
) -> None:
    walk = await replica.walk().open()
    await redis.hset(key(prefix, walk), field, value)
    for answer in (await walk.show(), await walk.show(by_server=True), await walk.validate("user_quick")):
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable"), answer.text
    assert await redis.hget(key(prefix, walk), field) == value


async def test_guards_of_a_newer_version_serve_and_keep_what_is_new_in_them(
    replica: Replica, upstream: SandboxServer, redis: Redis, prefix: str
) -> None:
    walk, other = replica.walk(), replica.walk()
    ids = await walk.ready("user_link_lost")
    guards = [f"{prefix}:{{g:{replica_tenant(replica)}}}:{ACCOUNT_ID}:{each}" for each in ids]
    for guard in guards:
        await redis.hset(guard, "colour", "blue")
    told = (await walk.link(ids)).json()["attempts"]
    for guard in guards:
        assert await redis.hgetall(guard) == {"colour": "blue", "unk": f"{told[0]},"}
        await redis.hset(guard, mapping={"done": told[0], "shape": "round"})  # the newer version has cleared it up
    await other.ready("user_link_lost")
    assert (await other.link(ids)).status_code == 201
    assert (await walk.show()).json()["session"]["state"] == "linked"
    for guard in guards:
        assert {"colour": "blue", "shape": "round"}.items() <= (await redis.hgetall(guard)).items()
    assert len(upstream.world.calls.all("batch")) == 1


async def test_a_link_of_a_newer_version_is_shown_and_stays_as_it_is(
    replica: Replica, redis: Redis, prefix: str
) -> None:
    walk = replica.walk()
    ids = await walk.ready("user_quick")
    linked = (await walk.link(ids)).json()["link"]
    stored = (await redis.hgetall(key(prefix, walk)))["link"]
    newer = orjson.dumps(orjson.loads(stored) | {"colour": "blue"}).decode()
    await redis.hset(key(prefix, walk), "link", newer)
    assert (await walk.show()).json()["session"]["link"] == linked
    assert (await walk.link(ids)).json()["link"] == linked
    assert await redis.hget(key(prefix, walk), "link") == newer


async def test_reasons_and_events_that_only_a_newer_version_knows_are_passed_on(
    replica: Replica, redis: Redis, prefix: str
) -> None:
    walk = await replica.walk().open()
    failed = (await walk.validate("user_server_error")).json()["validation"]["id"]
    number = int((await redis.hgetall(key(prefix, walk)))["events"])
    newer: dict[Any, Any] = {
        f"val:{failed}:reason": "moved_away",
        "events": number + 1,
        f"ev:{number + 1:04d}": "1700000000000:session.renamed:",
    }
    await redis.hset(key(prefix, walk), mapping=newer)
    shown = (await walk.validation(failed)).json()
    assert (shown["status"], shown["validation"]["reason"]) == ("OM500", "moved_away")
    async with listening(walk) as stream:
        told = await stream.next()
        assert told is not None
        assert told.name == "session.renamed"
        await walk.close()
        assert [each.name for each in await stream.rest()] == ["session.closed"]


async def test_a_token_of_a_newer_version_is_used(settings: Settings, upstream: SandboxServer, redis: Redis) -> None:
    async with running_replica(settings) as newer:
        await newer.walk().open()
    [token] = [name async for name in redis.scan_iter(f"{settings.redis_prefix}:{{t:*:token")]
    await redis.hset(token, "colour", "blue")
    async with running_replica(settings) as older:
        await older.walk().open()
    assert len(upstream.world.calls.all("token")) == 1
    assert await redis.hget(token, "colour") == "blue"


def replica_tenant(replica: Replica) -> str:
    tenant: str = next(iter(replica.app.state.steps.access._tenants))
    return tenant
