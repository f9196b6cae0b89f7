"""Two tenants of one deployment, each with a vendor, callers and an identity provider of its own."""

import hashlib
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from service.sandbox.pytest_plugin import TEST_SPEED
from service.sandbox.server import SandboxServer
from service.sandbox.world import ACCOUNT_ID, CLIENT_ID, SECRET, World
from service.sandbox.world import Settings as WorldSettings
from service.settings import SANDBOX_API_KEY, Settings
from tests.callers.pages import CLIENTS, HOST, PAGE
from tests.callers.provider import AUDIENCE, ISSUER, Provider, new_ec, running_provider
from tests.conftest import Replica, make_settings, running_replica
from tests.walk import Walk

__all__ = ["NORTH_ID", "NORTH_KEY", "NORTH_SECRET", "Both", "Side", "digest_of", "running_both"]

NORTH_ID: Final = "sandbox-north"
NORTH_SECRET: Final = "sandbox-north-canary"
NORTH_KEY: Final = "omk_north"
NORTH_PAGE: Final = "north-web"
NORTH_HOST: Final = "https://north.example"
NORTH_ISSUER: Final = "https://id.north.example/"


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass
class Side:
    """One tenant, as its callers and its vendor know it."""

    vendor: SandboxServer
    provider: Provider
    issuer: str
    api_key: str
    page: str
    origin: str

    @property
    def secrets(self) -> dict[str, str]:
        """What the other side's vendor must never see."""
        world = self.vendor.world
        return {"client id": world.client_id, "account": world.account_id} | {
            f"secret {number}": each for number, each in enumerate(world.secrets)
        }

    def key(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}

    def user(self, subject: str = "person-1", **changes: Any) -> dict[str, str]:
        claims = self.provider.claims(subject, **({"iss": self.issuer} | changes))
        return {"Authorization": f"Bearer {self.provider.keys[0].sign(claims)}"}

    def walk(self, replica: Replica) -> Walk:
        return Walk(replica.client, api_key=self.api_key)


@dataclass
class Both:
    """The deployment."""

    replicas: list[Replica]
    south: Side
    north: Side
    settings: Settings

    def upstream_calls(self) -> list[str]:
        """All but the polls: those of jobs that an earlier test has left go on."""
        sides = (self.south, self.north)
        return [call.path for side in sides for call in side.vendor.world.calls.all() if call.route != "job"]

    def forget_calls(self) -> None:
        for side in (self.south, self.north):
            side.vendor.world.calls.clear()


@asynccontextmanager
async def running_both(valkey: str, directory: Path) -> AsyncIterator[Both]:
    """South is the first tenant, north the further one; keys of both identity providers have the same id."""
    async with AsyncExitStack() as stack:
        worlds = [
            World(settings=WorldSettings(speed=TEST_SPEED), client_id=client_id, secret=secret, account_id=account)
            for client_id, secret, account in (
                (CLIENT_ID, SECRET, ACCOUNT_ID),
                (NORTH_ID, NORTH_SECRET, "5eedc0de00000000000acc02"),
            )
        ]
        vendors = [stack.enter_context(SandboxServer(world=world)) for world in worlds]
        providers = [await stack.enter_async_context(running_provider(new_ec("same-id"))) for _ in worlds]
        south = Side(vendors[0], providers[0], ISSUER, SANDBOX_API_KEY, PAGE, HOST)
        north = Side(vendors[1], providers[1], NORTH_ISSUER, NORTH_KEY, NORTH_PAGE, NORTH_HOST)
        file = directory / "tenants.json"
        file.write_text(json.dumps({"north": north_rule(north)}))
        settings = make_settings(
            valkey,
            vendors[0].url,
            f"t{uuid.uuid4().hex[:12]}",
            clients=CLIENTS,
            jwt_issuer=ISSUER,
            jwt_audience=AUDIENCE,
            jwt_jwks_url=providers[0].url,
            return_urls=frozenset({"https://south.example/linked"}),
            tenants_file=file,
        )
        replicas = [await stack.enter_async_context(running_replica(settings)) for _ in range(2)]
        yield Both(replicas, south, north, settings)


def north_rule(north: Side) -> dict[str, Any]:
    return {
        "clientId": NORTH_ID,
        "secret": NORTH_SECRET,
        "upstreamUrl": north.vendor.url,
        "apiKeys": [f"north:{digest_of(NORTH_KEY)}"],
        "clients": {NORTH_PAGE: {"origins": [NORTH_HOST]}},
        "jwtIssuer": NORTH_ISSUER,
        "jwtAudience": AUDIENCE,
        "jwtJwksUrl": north.provider.url,
        "returnUrls": ["https://north.example/linked"],
    }
