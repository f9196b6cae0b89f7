"""What jobs take is learned by all processes together, and decides when the next ones are asked for."""

from typing import Any

import redis.asyncio as redis

from service.link.cadence import histogram_of
from service.sandbox.server import SandboxServer
from tests.conftest import Replica
from tests.walk import APS


async def test_a_finished_job_is_counted_for_its_provider(replica: Replica, valkey: str, prefix: str) -> None:
    walk = await replica.walk().open()
    await walk.validate("user_good")
    await walk.validate("user_one", "wrong")
    async with redis.from_url(valkey, decode_responses=True) as store:
        (key,) = [each async for each in store.scan_iter(f"{prefix}:*d:*")]
        assert APS in key
        fields: Any = store.hgetall(key)
        assert sum(histogram_of(await fields)) == 2
        assert await store.pttl(key) > 0


async def test_what_was_learned_at_one_replica_spares_polls_at_another(
    replicas: list[Replica], upstream: SandboxServer
) -> None:
    store = replicas[0].app.state.steps.validations._watchers._durations
    cadence = replicas[0].app.state.steps.validations._watchers._cadence
    for _ in range(150):
        await store.count(APS, cadence.bucket(15 * cadence.poll), most=192)
    upstream.world.settings.speed = cadence.poll
    walk = await replicas[1].walk().open()
    answer = await walk.validate("user_slow")
    assert answer.json()["validation"]["state"] == "succeeded"
    assert len(upstream.world.calls.all("job")) <= 8
