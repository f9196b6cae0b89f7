"""Instances that several tests share, for rules that need no fresh one."""

import uuid
from collections.abc import AsyncIterator

import pytest

from service.sandbox.server import SandboxServer
from service.upstream.limiter import LimiterRules
from service.upstream.transport import TransportLimits
from service.wiring import Timing
from tests.conftest import Replica, make_settings, running_replica

__all__ = ["HASTY", "NEVER_SHUT", "lasting", "shared", "vendor"]

NEVER_SHUT = LimiterRules(failures=10**9, success_share=0)
"""For a vendor that goes wrong more often than a breaker stands."""

HASTY = Timing(upstream=TransportLimits(connect_seconds=1.0, total_seconds=1.0), limiter=NEVER_SHUT)


@pytest.fixture(scope="module")
async def lasting(valkey: str, omniconnect_sandbox_server: SandboxServer) -> AsyncIterator[Replica]:
    settings = make_settings(valkey, omniconnect_sandbox_server.url, f"t{uuid.uuid4().hex[:12]}")
    async with running_replica(settings, timing=HASTY) as started:
        yield started


@pytest.fixture
async def shared(lasting: Replica, omniconnect_sandbox_server: SandboxServer) -> Replica:
    """An instance that waits a second for the vendor, holds a good token, and has asked for the providers."""
    world = omniconnect_sandbox_server.world
    world.faults.clear()
    token = await lasting.app.state.steps.validations._tokens.get()
    if not world.tokens.valid(token.value.get_secret_value()) or not lasting.app.state.steps.providers._list:
        walk = await lasting.walk().open()
        await walk.validate("user_quick")
    world.calls.clear()
    return lasting


@pytest.fixture
def vendor(shared: Replica, omniconnect_sandbox_server: SandboxServer) -> SandboxServer:  # noqa: ARG001 -- prepared by it
    """The vendor of `shared`, with an empty log and no faults."""
    return omniconnect_sandbox_server
