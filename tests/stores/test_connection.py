"""How the store speaks to Redis."""

from service.sandbox.server import SandboxServer
from tests.conftest import make_settings, running_replica


async def test_redis_may_be_spoken_to_in_the_older_protocol(valkey: str, upstream: SandboxServer, prefix: str) -> None:
    settings = make_settings(f"{valkey}?protocol=2", upstream.url, prefix)
    async with running_replica(settings) as replica:
        walk = replica.walk()
        linked = await walk.link(await walk.ready("user_quick"))
    assert linked.status_code == 201
