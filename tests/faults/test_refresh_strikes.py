"""A process stands still while it fetches the token for all: another fetches, and its token stays."""

import asyncio
import signal

import pytest
from redis.asyncio import Redis

from service.sandbox.server import SandboxServer
from service.settings import Settings
from tests.conftest import Replica, running_replica
from tests.faults.flows import forget_shared, sent
from tests.faults.victims import TIMING, Point, victim

pytestmark = pytest.mark.xdist_group("forks")


async def test_a_token_that_was_fetched_before_a_pause_does_not_replace_the_one_fetched_meanwhile(
    struck: Settings, survivor: Replica, upstream: SandboxServer, redis: Redis
) -> None:
    walk = await survivor.walk().open()
    await forget_shared(redis, struck)
    upstream.world.calls.clear()
    point = Point("POST access-token", 1, "after")
    async with victim(struck, strike=point, number=signal.SIGSTOP) as paused:
        asking = asyncio.create_task(walk.at(paused.client).validate("user_quick", wait=None))
        await paused.struck()
        async with running_replica(struck, timing=TIMING) as newcomer:
            await newcomer.walk().open()
        [key] = [key async for key in redis.scan_iter(f"{struck.redis_prefix}:{{t:*:token")]
        kept = await redis.hget(key, "version")
        paused.go_on()
        assert (await asking).status_code == 202
        assert await redis.hget(key, "version") == kept
    assert sent(upstream, "token") == 2
