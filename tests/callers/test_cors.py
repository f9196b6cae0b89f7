"""What browsers may read from other origins: answers to registered pages, and their errors as well."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY
from tests.callers.pages import CLIENTS, HOST, OFF_HOST, OTHER_HOST, open_by_page, page_headers
from tests.conftest import Replica, make_settings, running_replica

EXPOSED = {
    "ETag",
    "Idempotency-Replayed",
    "Location",
    "Preference-Applied",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "X-Request-Id",
}
PATHS = ["/v1/sessions", "/v1/sessions/ses_1/links", "/v1/none", "/api/access-token", "/api/jobs/1", "/api/none"]
NEEDED = ["authorization", "content-type", "type", "prefer", "idempotency-key", "if-none-match", "x-request-id"]


async def preflight(replica: Replica, path: str, origin: str, **headers: str) -> httpx.Response:
    given = {"Origin": origin, "Access-Control-Request-Method": "POST"} | headers
    return await replica.client.options(path, headers=given)


def assert_readable(answer: httpx.Response, origin: str = HOST) -> None:
    assert answer.headers["access-control-allow-origin"] == origin
    assert "access-control-allow-credentials" not in answer.headers
    assert "Origin" in answer.headers["vary"]
    assert set(answer.headers["access-control-expose-headers"].split(", ")) >= EXPOSED


def assert_hidden(answer: httpx.Response) -> None:
    assert not [name for name in answer.headers if name.startswith("access-control-allow-origin")]
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("origin", [HOST, OTHER_HOST, "https://www.shop.example"])
async def test_a_preflight_is_answered_for_the_origins_of_all_clients(site: Replica, path: str, origin: str) -> None:
    answer = await preflight(site, path, origin, **{"Access-Control-Request-Headers": ",".join(NEEDED)})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "access-control-allow-credentials" not in answer.headers
    assert {each.lower() for each in answer.headers["access-control-allow-headers"].split(", ")} >= set(NEEDED)
    assert {"GET", "POST", "DELETE"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize("origin", [OFF_HOST, "https://evil.example", "null", f"{HOST}:1", f"{HOST}.evil.example"])
async def test_no_other_origin_is_let_in(site: Replica, origin: str) -> None:
    asked = await preflight(site, "/v1/sessions", origin)
    assert asked.status_code == 400
    assert_hidden(asked)
    for answer in (
        await open_by_page(site, origin=origin),
        await site.client.get("/v1/none", headers={"Origin": origin}),
    ):
        assert_hidden(answer)


@pytest.mark.parametrize("name", ["cookie", "x-secret"])
async def test_a_preflight_for_a_header_that_nothing_needs_is_refused(site: Replica, name: str) -> None:
    answer = await preflight(site, "/v1/sessions", HOST, **{"Access-Control-Request-Headers": name})
    assert answer.status_code == 400


async def test_answers_can_be_read(site: Replica) -> None:
    opened = await open_by_page(site)
    assert opened.status_code == 201
    assert_readable(opened)
    session = opened.json()["session"]
    shown = await site.client.get(f"/v1/sessions/{session['id']}", headers=page_headers(session["token"]))
    assert_readable(shown)


async def test_errors_can_be_read_too(site: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError

    answers = {
        401: await open_by_page(site, "nobody"),
        403: await open_by_page(site, subject="s"),
        404: await site.client.get("/v1/none", headers=page_headers()),
        405: await site.client.put("/v1/sessions", headers=page_headers()),
        406: await site.client.get("/v1/providers", headers=page_headers() | {"Accept": "text/html"}),
        413: await site.client.post("/v1/sessions", headers=page_headers(), content=b"x" * 70_000),
        415: await site.client.post("/v1/sessions", headers=page_headers(), content=b"{}"),
        422: await open_by_page(site, 1),
    }
    for status, answer in answers.items():
        assert answer.status_code == status, answer.text
        assert_readable(answer)
    monkeypatch.setattr(site.app.state.steps.sessions, "open", broken)
    answer = await open_by_page(site)
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal_error"
    assert_readable(answer)


@pytest.fixture
async def lost(upstream: SandboxServer, valkey: str, prefix: str) -> AsyncIterator[Replica]:
    async with AsyncExitStack() as stack:
        settings = make_settings(valkey, upstream.url, prefix, clients=CLIENTS)
        replica = await stack.enter_async_context(running_replica(settings))
        upstream.stop()
        try:
            yield replica
        finally:
            upstream.start()


async def test_outages_can_be_read_too(lost: Replica) -> None:
    answer = await open_by_page(lost)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert_readable(answer)


@pytest.mark.parametrize("path", ["/v1/providers", "/api/utility-companies"])
async def test_caches_are_told_that_the_origin_matters_even_without_one(site: Replica, path: str) -> None:
    answer = await site.client.get(path, headers={"Authorization": f"Bearer {SANDBOX_API_KEY}"})
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize("path", ["/livez", "/openapi.json", "/metrics"])
async def test_operations_are_not_for_other_origins(site: Replica, path: str) -> None:
    answer = await site.client.get(path, headers={"Origin": HOST})
    assert "access-control-allow-origin" not in answer.headers


async def test_no_cookie_is_ever_set(site: Replica) -> None:
    answer = await open_by_page(site)
    assert "set-cookie" not in answer.headers
