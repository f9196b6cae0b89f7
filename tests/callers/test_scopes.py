"""API keys that may do some things and not others."""

from collections.abc import AsyncIterator
from typing import Final

import pytest

from service.link.scopes import Scope
from service.sandbox.server import SandboxServer
from service.tenants import KeyRule
from tests.api.calls import ENDPOINTS, Endpoint
from tests.callers.pages import without_request_id
from tests.callers.sides import digest_of
from tests.conftest import Replica, make_settings, running_replica
from tests.walk import Walk

NEEDED: Final = {
    "create_session": Scope.SESSIONS_WRITE,
    "replace_session_token": Scope.SESSIONS_TOKENS,
    "close_session": Scope.SESSIONS_WRITE,
    "get_session": Scope.SESSIONS_READ,
    "list_providers": Scope.PROVIDERS_READ,
}
UNKNOWN: Final = "ses_" + "0" * 32


@pytest.fixture
async def restricted(valkey: str, upstream: SandboxServer, prefix: str) -> AsyncIterator[Replica]:
    """An instance with a key for each scope, and one for all but that."""
    rules = {str(scope): frozenset({scope}) for scope in Scope}
    rules |= {f"all-but-{scope}": frozenset(Scope) - {scope} for scope in Scope}
    keys = {
        name.replace(":", "-"): KeyRule(digest=digest_of(f"omk_{name}"), scopes=scopes)
        for name, scopes in rules.items()
    }
    async with running_replica(make_settings(valkey, upstream.url, prefix, api_keys=keys)) as started:
        yield started


async def test_a_key_does_what_its_scopes_name_and_nothing_else(restricted: Replica, upstream: SandboxServer) -> None:
    async def called(endpoint: Endpoint, key: str, session: str) -> tuple[int, str | None, bytes]:
        path = endpoint.path.format(session=session, validation="val_0")
        headers = {"Authorization": f"Bearer omk_{key}"}
        answer = await restricted.client.request(endpoint.method, path, headers=headers, json=endpoint.body)
        return answer.status_code, answer.json().get("code"), without_request_id(answer)

    walk = Walk(restricted.client, api_key=f"omk_{Scope.SESSIONS_WRITE}")
    assert {each.name for each in ENDPOINTS} >= NEEDED.keys()
    for endpoint in ENDPOINTS:
        needed = NEEDED.get(endpoint.name)
        await walk.open()
        upstream.world.calls.clear()
        for scope in Scope:
            for key, may in ((str(scope), scope == needed), (f"all-but-{scope}", needed not in {scope, None})):
                status, code, body = await called(endpoint, key, walk.id)
                if may:
                    assert status in {200, 201}, (endpoint.name, key)
                    continue
                assert (status, code) == (403, "forbidden"), (endpoint.name, key)
                # Whether there is such a session is not told either.
                assert (await called(endpoint, key, UNKNOWN))[2] == body
        # One list for whoever may see it; else nothing reached the vendor.
        assert {call.route for call in upstream.world.calls.all()} <= {"companies"}
        if needed is None:
            assert upstream.world.calls.all() == []


async def test_a_key_without_scopes_has_all(valkey: str, upstream: SandboxServer, prefix: str) -> None:
    rules = {"plain": KeyRule(digest=digest_of("omk_plain"))}
    async with running_replica(make_settings(valkey, upstream.url, prefix, api_keys=rules)) as started:
        walk = await Walk(started.client, api_key="omk_plain").open()
        assert (await walk.show(by_server=True)).status_code == 200
        assert (await started.client.get("/v1/providers", headers=walk.server_headers)).status_code == 200
        assert (await started.client.delete(walk.path, headers=walk.server_headers)).status_code == 200
