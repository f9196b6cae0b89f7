"""Every key and secret can be changed while people link, in the order that the README gives: no call fails."""

import asyncio
import base64
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import httpx
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs
from typing_extensions import override

from service.sandbox.server import SandboxServer
from service.sandbox.world import SECRET
from service.settings import Settings
from service.tenants import KeyRule
from tests.callers.provider import AUDIENCE, ISSUER, Provider, new_ec, running_provider
from tests.callers.sides import digest_of
from tests.callers.test_user_tokens import FastClock
from tests.conftest import Replica, make_settings, running_replica
from tests.walk import Walk

ROUNDS: Final = int(os.environ.get("ROTATION_ROUNDS", "0"))
"""Of the full size, eight people at a time; without it one of two people."""

PEOPLE: Final = 8 if ROUNDS else 2
NEXT_SECRET: Final = "sandbox-canary-of-the-next-secret"


class Balancer(httpx.AsyncBaseTransport):
    """A load balancer in front of two replicas that are replaced one after the other."""

    def __init__(self) -> None:
        self.pool: list[Replica] = []
        self._line = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))
        self._busy: Counter[str] = Counter()
        self._idle = asyncio.Event()

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        replica = random.choice(self.pool)  # noqa: S311 -- spreads load
        url = httpx.URL(replica.url)
        request.url = request.url.copy_with(host=url.host, port=url.port)
        self._busy[replica.url] += 1
        try:
            answer = await self._line.handle_async_request(request)
            await answer.aread()
            return answer
        finally:
            self._busy[replica.url] -= 1
            self._idle.set()

    @override
    async def aclose(self) -> None:
        await self._line.aclose()

    async def take_out(self, replica: Replica) -> None:
        """Send it nothing more, and wait for what it still has."""
        self.pool.remove(replica)
        while self._busy[replica.url]:
            self._idle.clear()
            await self._idle.wait()


class Fleet:
    """Two replicas on one store, people who walk through them without a break, and what they were told.

    Attributes:
        api_key: What the host's server opens sessions with.
        failed: Every call that did not work.
    """

    def __init__(self, given: dict[str, Any], provider: Provider, stack: AsyncExitStack) -> None:
        self.given = given
        self.api_key = "omk_first"
        self._provider = provider
        self.calls = 0
        self.failed: list[str] = []
        self.walks: Counter[int] = Counter()
        self.closing = False
        self._walked = asyncio.Condition()
        self._balancer = Balancer()
        self._slots: list[AsyncExitStack] = []
        self._stack = stack
        self.client = httpx.AsyncClient(
            transport=self._balancer, base_url="http://fleet", timeout=40, event_hooks={"response": [self._note]}
        )

    @property
    def replicas(self) -> list[Replica]:
        return list(self._balancer.pool)

    async def start(self) -> None:
        for _ in range(2):
            await self._add()

    async def _add(self) -> None:
        slot = await self._stack.enter_async_context(AsyncExitStack())
        self._slots.append(slot)
        self._balancer.pool.append(await slot.enter_async_context(running_replica(make_settings(**self.given))))

    async def roll(self, **changes: Any) -> None:
        """A rolling restart with other settings, under load throughout."""
        self.given |= changes
        for replica in self.replicas:
            slot = self._slots.pop(0)
            await self._balancer.take_out(replica)
            await slot.aclose()
            await self._add()
            await self._across()
            await self.walked()

    async def _across(self) -> None:
        """What one replica has sealed, the other opens, whichever of them is the newer one."""
        one, other = self.replicas
        for here, there in ((one, other), (other, one)):
            walk = Walk(here.client, api_key=self.api_key)
            chosen = await walk.ready("user_quick")
            linked = await walk.at(there.client).link(chosen)
            assert linked.status_code == 201, linked.text

    async def walked(self) -> None:
        """Return once everybody has been through a walk that began after this call."""
        until = {each: self.walks[each] + 2 for each in range(PEOPLE)}
        async with self._walked:
            await self._walked.wait_for(lambda: self.walks >= Counter(until) or self.failed)
        assert self.failed == []

    async def _note(self, answer: httpx.Response) -> None:
        self.calls += 1
        if answer.status_code not in {200, 201}:
            await answer.aread()
            await self._fail(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}")

    async def _fail(self, what: str) -> None:
        self.failed.append(what)
        async with self._walked:
            self._walked.notify_all()

    async def person(self, number: int) -> None:
        """One walk after the other, in sessions that the host's server opens, or the person by a token."""
        by_server = number % 2 == 0
        while not self.closing:
            walk = Walk(
                self.client, api_key=self.api_key if by_server else self._provider.token(f"person-{self.calls}")
            )
            await walk.open()
            await self.client.get("/v1/providers", headers=walk.server_headers)
            answer = await walk.validate("user_quick")
            if answer.json()["validation"]["state"] != "succeeded":
                await self._fail(answer.text)
            ids = await walk.account_ids()
            await walk.accounts(**{"Cache-Control": "no-cache"})
            await walk.link(ids)
            self.walks[number] += 1
            async with self._walked:
                self._walked.notify_all()


@asynccontextmanager
async def under_load(given: dict[str, Any], provider: Provider) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        fleet = Fleet(given, provider, stack)
        await fleet.start()
        await stack.enter_async_context(fleet.client)
        people = [asyncio.create_task(fleet.person(each)) for each in range(PEOPLE)]
        try:
            await fleet.walked()
            yield fleet
        finally:
            fleet.closing = True
            ended = await asyncio.gather(*people, return_exceptions=True)
        assert fleet.failed == []
        assert [each for each in ended if each is not None] == []


def ring(*names: str) -> dict[str, SecretStr]:
    return {name: SecretStr(base64.b64encode(name[0].encode() * 32).decode()) for name in names}


def api_keys(*names: str) -> dict[str, KeyRule]:
    return {name: KeyRule(digest=digest_of(f"omk_{name}")) for name in names}


def secrets_sent(vendor: SandboxServer) -> Counter[str]:
    return Counter(json.loads(call.body)["secret"] for call in vendor.world.calls.all("token"))


async def test_the_secret_that_was_accepted_is_the_first_to_be_tried(
    settings: Settings, upstream: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = settings.model_copy(update={"next_secret": SecretStr(NEXT_SECRET)})
    with capture_logs() as logs:
        async with running_replica(both) as replica:

            async def tried() -> dict[str, int]:
                upstream.world.calls.clear()
                upstream.world.tokens.revoke_all()
                walk = await replica.walk().open()
                answer = await walk.validate("user_quick")
                assert answer.json()["validation"]["state"] == "succeeded", answer.text
                return dict(secrets_sent(upstream))

            assert await tried() == {SECRET: 1}
            monkeypatch.setattr(upstream.world, "secrets", frozenset({NEXT_SECRET}))
            assert await tried() == {SECRET: 1, NEXT_SECRET: 1}
            assert await tried() == {NEXT_SECRET: 1}
            # Omnimetic may take it back.
            monkeypatch.setattr(upstream.world, "secrets", frozenset({SECRET}))
            assert await tried() == {NEXT_SECRET: 1, SECRET: 1}
            assert await tried() == {SECRET: 1}
    assert [each["accepted"] for each in logs if each["event"] == "upstream_secret_changed"] == ["next", "active"]


@pytest.mark.parametrize("_round", range(ROUNDS or 1))
async def test_every_key_and_secret_changes_without_a_failed_call(
    valkey: str, upstream: SandboxServer, prefix: str, monkeypatch: pytest.MonkeyPatch, _round: int
) -> None:
    def sent() -> Counter[str]:
        return secrets_sent(upstream)

    old, new = new_ec("old"), new_ec("new")
    async with running_provider(old) as provider:
        given = {
            "redis_url": valkey,
            "upstream_url": upstream.url,
            "prefix": prefix,
            "account_attempts": 1_000_000,  # all of these people have one account
            "api_keys": api_keys("first"),
            "encryption_keys": ring("old"),
            "jwt_issuer": ISSUER,
            "jwt_audience": AUDIENCE,
            "jwt_jwks_url": provider.url,
        }
        with capture_logs() as logs:
            async with under_load(given, provider) as fleet:
                # What is to come is known everywhere before anybody uses it.
                await fleet.roll(
                    api_keys=api_keys("first", "second"),
                    encryption_keys=ring("old", "new"),
                    next_secret=SecretStr(NEXT_SECRET),
                )
                provider.keys = [old, new]
                clock = FastClock()
                for replica in fleet.replicas:
                    replica.app.state.steps.access._users[ISSUER]._keys._clock = clock
                clock.forward(30.1)
                # It is used: by the host, by its identity provider, by the vendor.
                fleet.api_key = "omk_second"
                provider.keys = [new, old]
                assert sent().keys() == {SECRET}
                monkeypatch.setattr(upstream.world, "secrets", frozenset({NEXT_SECRET}))
                upstream.world.tokens.revoke_all()
                await fleet.walked()
                assert sent()[NEXT_SECRET] == 1
                refused = sent()[SECRET]
                upstream.world.tokens.revoke_all()
                await fleet.walked()
                assert sent()[NEXT_SECRET] == 2
                assert sent()[SECRET] - refused <= 1  # by the replica that had not met it yet
                await fleet.roll(
                    api_keys=api_keys("second"),
                    encryption_keys=ring("new", "old"),
                    secret=SecretStr(NEXT_SECRET),
                    next_secret=None,
                )
                # Once everything that was made with the old ones is gone, they go.
                await fleet.walked()
                provider.keys = [new]
                upstream.world.calls.clear()
                await fleet.roll(encryption_keys=ring("new"))
                for replica in fleet.replicas:
                    answer = await replica.client.get("/v1/providers", headers={"Authorization": "Bearer omk_first"})
                    assert answer.status_code == 401
                assert sent().keys() <= {NEXT_SECRET}
    async with Redis.from_url(valkey, decode_responses=True) as store:
        (token,) = {each async for each in store.scan_iter(f"{prefix}:{{t:*:token")}
        assert str(await store.hget(token, "sealed")).startswith("new.")
    told = [each["accepted"] for each in logs if each["event"] == "upstream_secret_changed"]
    assert told in (["next"], ["next", "next"])  # once by each replica that met it
    assert NEXT_SECRET not in str(logs)
    assert SECRET not in str(logs)
