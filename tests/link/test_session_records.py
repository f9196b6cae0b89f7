"""Two versions of the service share Redis during a deploy: what one writes, the other reads and does not destroy."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from service.stores.records import SCHEMA_VERSION
from tests.conftest import Replica
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
