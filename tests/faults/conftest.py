"""Processes that are struck down or stand still, and one that goes on."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from service.link import refresh
from service.sandbox.server import SandboxServer
from service.settings import Settings
from service.stores import scripts
from tests.conftest import MovableClock, Replica, make_settings, running_replica
from tests.faults.flows import FULL
from tests.faults.victims import LEASE_SECONDS, TIMING
from tests.shared import lasting, shared, vendor

__all__ = ["collect_ignore", "lasting", "redis", "shared", "struck", "survivor", "vendor"]

collect_ignore = [] if FULL else ["test_standstill.py"]
"""It takes minutes, since its leases are real; the strikes try the same with short ones."""


@pytest.fixture
async def redis(valkey: str) -> AsyncIterator[Redis]:
    """A client that has loaded all scripts, so that each takes one command from the first time on."""
    async with Redis.from_url(valkey, decode_responses=True) as client:
        for name in scripts.names():
            await client.script_load(scripts.load(name).text)
        yield client


@pytest.fixture
def struck(valkey: str, upstream: SandboxServer, prefix: str) -> Settings:
    """Settings of all processes: leases are short."""
    return make_settings(valkey, upstream.url, prefix, poll_lease_seconds=LEASE_SECONDS, account_attempts=1000)


@pytest.fixture
async def survivor(
    struck: Settings,
    clock: MovableClock,
    redis: Redis,  # noqa: ARG001 -- it has loaded the scripts
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Replica]:
    """The process that goes on."""
    monkeypatch.setattr(refresh, "_LEASE_MS", int(LEASE_SECONDS * 1000))
    async with running_replica(struck, clock=clock, timing=TIMING) as replica:
        yield replica
