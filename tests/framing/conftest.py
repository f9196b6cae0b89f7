"""One served process for all cases, as a deployment runs it."""

import uuid
from collections.abc import AsyncIterator

import httpx
import pytest

from service.sandbox.server import SandboxServer
from tests.conftest import make_settings
from tests.framing.served import Canary, Service
from tests.processes import serving


@pytest.fixture(scope="session")
async def service(
    valkey: str, omniconnect_sandbox_server: SandboxServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    """Believes `X-Forwarded-For`, and refuses an address after twenty bad credentials."""
    settings = make_settings(valkey, omniconnect_sandbox_server.url, f"t{uuid.uuid4().hex[:12]}")
    log = tmp_path_factory.mktemp("framing") / "log"
    environ = {"OMNICONNECT_TRUSTED_PROXIES": "127.0.0.1", "OMNICONNECT_REFUSALS_PER_MINUTE": "20"}
    async with serving(settings, log, **environ) as started:
        port = httpx.URL(started.client.base_url).port
        assert port is not None
        yield Service(port, started.pid, log)


@pytest.fixture
def canary(service: Service) -> Canary:
    return Canary.open(service)
