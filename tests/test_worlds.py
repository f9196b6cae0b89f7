"""The sandbox and the real thing never meet, even in one Redis."""

import pytest
from pydantic import SecretStr

from service.errors import ServiceError
from service.sandbox.server import SandboxServer
from service.settings import ProviderRule, Settings
from service.wiring import _rules, wire
from tests.conftest import ENCRYPTION_KEYS, Replica

REAL = "https://127.0.0.1:9/api"


@pytest.fixture
def production(valkey: str, prefix: str) -> Settings:
    """Real-looking settings on the very Redis of the sandbox."""
    return Settings(
        client_id="0b0f6a3e-real",
        secret=SecretStr("a-real-looking-secret"),
        upstream_url=REAL,
        redis_url=SecretStr(valkey),
        redis_prefix=prefix,
        encryption_keys=ENCRYPTION_KEYS,
    )


async def test_what_the_sandbox_has_cached_is_not_taken_for_the_vendors(
    replica: Replica, production: Settings, upstream: SandboxServer
) -> None:
    await replica.walk().ready()
    upstream.world.calls.clear()
    process = wire(production)
    async with process.running():
        with pytest.raises(ServiceError):
            await process.steps.providers.get()


async def test_a_session_of_the_sandbox_opens_nothing_in_production(replica: Replica, production: Settings) -> None:
    walk = await replica.walk().open()
    process = wire(production)
    async with process.running():
        with pytest.raises(ServiceError, match="credential"):
            await process.steps.access.session_of(walk.token)


def test_an_address_for_signing_in_never_makes_a_utility_ask_for_passwords(production: Settings) -> None:
    name = "San Diego Gas & Electric"
    table = {name: ProviderRule(authorizeUrl="https://sdge.example/authorize", clientId="public")}
    rule = _rules(production.model_copy(update={"provider_table": table}))[name]
    assert rule.sign_in == "oauth"
    assert rule.authorize_url == "https://sdge.example/authorize"


def test_what_a_rule_leaves_out_stays_as_it_is_known(production: Settings) -> None:
    table = {"pacific gas and electric company": ProviderRule(clientId="another")}
    rule = _rules(production.model_copy(update={"provider_table": table}))["pacific gas and electric company"]
    assert (rule.job_type, rule.sign_in, rule.client_id) == ("PGELogin", "oauth", "another")
