"""Fixtures of the steps. Tests try the same few accounts: how often one may be tried is no subject of most of them."""

import uuid
from collections.abc import AsyncIterator

import pytest

from service.sandbox.server import SandboxServer
from service.settings import Settings
from tests.conftest import Replica, make_settings, running_replica
from tests.shared import HASTY, shared, vendor

__all__ = ["shared", "vendor"]

PLENTY = 1000


@pytest.fixture
def settings(valkey: str, upstream: SandboxServer, prefix: str) -> Settings:
    return make_settings(valkey, upstream.url, prefix, account_attempts=PLENTY)


@pytest.fixture(scope="module")
async def lasting(valkey: str, omniconnect_sandbox_server: SandboxServer) -> AsyncIterator[Replica]:
    prefix = f"t{uuid.uuid4().hex[:12]}"
    settings = make_settings(valkey, omniconnect_sandbox_server.url, prefix, account_attempts=PLENTY)
    async with running_replica(settings, timing=HASTY) as started:
        yield started
