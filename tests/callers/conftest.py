"""An instance with registered pages."""

from collections.abc import AsyncIterator

import pytest

from service.sandbox.server import SandboxServer
from tests.callers.pages import CLIENTS
from tests.conftest import MovableClock, Replica, make_settings, running_replica


@pytest.fixture
async def site(valkey: str, upstream: SandboxServer, prefix: str, clock: MovableClock) -> AsyncIterator[Replica]:
    """An instance that knows the pages of `CLIENTS`."""
    settings = make_settings(valkey, upstream.url, prefix, clients=CLIENTS)
    async with running_replica(settings, clock=clock) as started:
        yield started
