"""The same walk on a Cluster, behind Sentinels, and over the network with a password."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.sandbox.server import SandboxServer
from service.stores.connection import Store
from service.stores.locks import Locks
from service.stores.notices import Notices
from tests.conftest import make_settings, running_replica
from tests.faults.servers import START_SECONDS, answers, cluster, free_port, running


@asynccontextmanager
async def sentinels(tmp_path: Path) -> AsyncIterator[str]:
    """A master with a password, and a Sentinel; another Sentinel of the URL is silent."""
    port, sentinel_port = free_port(), free_port()
    file = tmp_path / "sentinel.conf"
    file.write_text(
        f"port {sentinel_port}\nbind 127.0.0.1\n"
        f"sentinel monitor main 127.0.0.1 {port} 1\nsentinel auth-pass main p@ss:w/rd\n",
        encoding="ascii",
    )
    with (
        running(tmp_path, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--requirepass", "p@ss:w/rd"),
        running(tmp_path, str(file), "--sentinel"),
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        async with Redis(port=port, password="p@ss:w/rd") as master, Redis(port=sentinel_port) as sentinel:
            await answers(master)
            await answers(sentinel)
            silent_port = silent.getsockname()[1]
            yield f"redis+sentinel://:p%40ss%3Aw%2Frd@127.0.0.1:{silent_port},127.0.0.1:{sentinel_port}/main/2"


@asynccontextmanager
async def single(tmp_path: Path) -> AsyncIterator[str]:
    """A server over TCP, with a user and a password."""
    port = free_port()
    file = tmp_path / "valkey.conf"
    file.write_text(f'port {port}\nbind 127.0.0.1\nsave ""\nuser bff on >p@ss ~* &* +@all\n', encoding="ascii")
    with running(tmp_path, str(file)):
        async with Redis(port=port, username="bff", password="p@ss") as server:
            await answers(server)
        yield f"redis://bff:p%40ss@127.0.0.1:{port}/1"


@pytest.mark.parametrize("topology", [single, cluster, sentinels])
async def test_notices_are_heard(
    topology: Callable[[Path], AbstractAsyncContextManager[str]], tmp_path: Path, prefix: str
) -> None:
    async with topology(tmp_path) as url, Store(SecretStr(url), command_seconds=1) as store:
        notices = Notices(store=store, channel=prefix)
        listening = asyncio.create_task(notices.listen())
        async with asyncio.timeout(START_SECONDS):
            await notices.subscribed.wait()
            with notices.watch(f"{prefix}:{{x}}") as watch:
                await watch.changed(0)
                async with Locks(store=store, channel=prefix).held(f"{prefix}:{{x}}", lease_ms=1000):
                    pass
                await watch._changed.wait()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


@pytest.mark.parametrize("topology", [single, cluster, sentinels])
async def test_the_whole_walk_works(
    topology: Callable[[Path], AbstractAsyncContextManager[str]], tmp_path: Path, upstream: SandboxServer, prefix: str
) -> None:
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(topology(tmp_path))
        settings = make_settings(url, upstream.url, prefix, redis_replicas=0)
        first, second = [await stack.enter_async_context(running_replica(settings)) for _ in range(2)]
        walk = first.walk()
        ids = await walk.ready("user_quick")
        linked = await walk.at(second.client).link(ids)
        assert (linked.status_code, linked.json()["status"]) == (201, "OM200")
        assert (await walk.at(second.client).show()).json()["session"]["state"] == "linked"
        assert (await second.client.get("/v1/providers", headers=walk.server_headers)).status_code == 200
    assert len(upstream.world.calls.all("token")) == 1
    assert len(upstream.world.calls.all("companies")) == 1
    assert len(upstream.world.links) == 1


async def test_a_cluster_without_slots_is_store_unavailable(tmp_path: Path, prefix: str) -> None:
    port = free_port()
    options = ("--port", str(port), "--bind", "127.0.0.1", "--cluster-enabled", "yes", "--save", "")
    with running(tmp_path, *options):
        async with Redis(port=port) as node:
            await answers(node)
        async with Store(SecretStr(f"redis+cluster://127.0.0.1:{port}"), command_seconds=0.25) as store:
            with pytest.raises(StoreUnavailable):
                await store.get(prefix)
