"""What those who run the service ask it."""

import logging
import re
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from service import process
from service.app import create_app
from service.sandbox.server import SandboxServer
from service.settings import Settings
from service.stores.embedded import EmbeddedStore
from tests.conftest import Replica, make_settings, running_replica
from tests.processes import eventually


async def test_an_instance_that_serves_says_so(shared: Replica) -> None:
    alive = await shared.client.get("/livez")
    assert (alive.status_code, alive.json()) == (200, {"status": "alive"})
    ready = await shared.client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"status": "ready", "mode": "sandbox", "store": "ok", "upstream": "ok"}
    assert ready.headers["Cache-Control"] == "no-store"


async def test_an_instance_that_starts_is_alive_and_not_ready(settings: Settings) -> None:
    transport = httpx.ASGITransport(app=create_app(settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/livez")).status_code == 200
        ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "starting")


async def test_an_instance_that_drains_takes_no_new_work(replica: Replica, upstream: SandboxServer) -> None:
    walk = await replica.walk().open()
    upstream.world.calls.clear()
    replica.app.state.health.draining = True
    ready = await replica.client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    # Load balancers have not noticed yet: what they send is served until the process closes.
    await replica.walk().open()
    upstream.world.calls.clear()
    replica.app.state.health.closing = True
    for refused in (await walk.validate(), await walk.link(["a"])):
        assert (refused.status_code, refused.json()["code"]) == (503, "shutting_down")
        assert refused.json()["message"] == "Rejected: Internal server error"
        assert refused.headers["Retry-After"] == "1"
    assert (await walk.show()).status_code == 200
    assert (await replica.client.get("/livez")).status_code == 200
    assert upstream.world.calls.all() == []


async def test_a_store_that_is_lost_is_told_and_no_reason_to_send_nobody(
    upstream: SandboxServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_PING_SECONDS", 0.1)
    with ExitStack() as stack:
        store = stack.enter_context(EmbeddedStore())
        async with running_replica(make_settings(store.url, upstream.url, prefix)) as replica:
            walk = await replica.walk().open()
            await replica.client.get("/v1/providers", headers=walk.server_headers)
            stack.close()
            await eventually(lambda: not replica.app.state.health.store_answers)
            ready = await replica.client.get("/readyz")
            assert ready.status_code == 200
            assert (ready.json()["status"], ready.json()["store"]) == ("ready", "unavailable")
            # What needs no store goes on, the rest says what is wrong.
            assert (await replica.client.get("/v1/providers", headers=walk.server_headers)).status_code == 200
            refused = await walk.show()
            assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
            assert refused.headers["Retry-After"] == "5"


async def test_an_upstream_that_is_gone_is_told_and_no_reason_either(replica: Replica, upstream: SandboxServer) -> None:
    upstream.world.faults.add("token", "reset", times=None)
    refused = await replica.client.post("/v1/sessions", headers=replica.walk().server_headers)
    assert (refused.status_code, refused.json()["code"]) == (503, "upstream_unavailable")
    ready = await replica.client.get("/readyz")
    assert (ready.status_code, ready.json()["upstream"]) == (200, "unreachable")


async def test_metrics_name_routes_by_template_never_by_what_was_asked_for(shared: Replica) -> None:
    walk = await shared.walk().open()
    await walk.show()
    await shared.client.get("/v1/canary_path", params={"canary_query": "1"})
    answer = await shared.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert 'omniconnect_requests_total{method="GET",route="/v1/sessions/{session_id}",status="200"}' in answer.text
    assert 'omniconnect_upstream_calls_total{operation="token",outcome="200"}' in answer.text
    for text in (walk.id, walk.token, "canary", "sandbox-secret", "user_"):
        assert text not in answer.text


@pytest.mark.parametrize(
    ("path", "level"), [("/livez", logging.DEBUG), ("/readyz", logging.DEBUG), ("/x", logging.INFO)]
)
async def test_the_log_is_not_filled_by_probes(
    shared: Replica, caplog: pytest.LogCaptureFixture, path: str, level: int
) -> None:
    caplog.clear()
    request_id = f"probe-{path[1:]}"
    await shared.client.get(path, headers={"X-Request-Id": request_id})
    assert [record.levelno for record in caplog.records if request_id in str(record.msg)] == [level]


async def test_the_documentation_comes_from_here_alone(shared: Replica) -> None:
    page = await shared.client.get("/docs")
    assert page.status_code == 200
    script = await shared.client.get("/docs/start.js")
    assert "javascript" in script.headers["Content-Type"]
    for text in (page.text, script.text):
        assert re.findall(r"(?:https?:)?//[a-z]", text) == []
    assert "http" not in page.headers["Content-Security-Policy"]
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert "<script>" not in page.text
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        asset = await shared.client.get(address)
        assert asset.status_code == 200, address
        assert asset.headers["X-Content-Type-Options"] == "nosniff"


def production(**changes: Any) -> Settings:
    given = {"sandbox": False, "client_id": "real", "secret": SecretStr("real-secret"), "clients": {}}
    return make_settings("redis://127.0.0.1:1", "https://vendor.example/api", "t", **(given | changes))


async def statuses(settings: Settings, *, port: int, paths: tuple[str, ...]) -> list[int]:
    """What a listener on a port answers."""
    transport = httpx.ASGITransport(app=create_app(settings))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://test:{port}") as client:
        # What the request says of itself opens nothing.
        return [(await client.get(path, headers={"Host": "127.0.0.1:9000"})).status_code for path in paths]


OPERATIONS = ("/metrics", "/livez", "/readyz")
PUBLIC = ("/openapi.json", "/sdk/omniconnect.js", "/v1/providers")


async def test_production_shows_neither_metrics_nor_documentation() -> None:
    paths = (*OPERATIONS, "/docs", "/docs/start.js", "/docs/assets/swagger-ui.css", *PUBLIC)
    assert await statuses(production(), port=8000, paths=paths) == [404, 200, 503, 404, 404, 404, 200, 200, 401]
    assert await statuses(production(docs=True), port=8000, paths=("/docs",)) == [200]


SANDBOX = make_settings("redis://127.0.0.1:1", "http://127.0.0.1:1/api", "t", metrics_port=9000)


@pytest.mark.parametrize("given", [SANDBOX, production(metrics_port=9000)], ids=["sandbox", "production"])
async def test_operations_have_a_listener_of_their_own(given: Settings) -> None:
    assert await statuses(given, port=8000, paths=(*OPERATIONS, *PUBLIC)) == [404, 200, 503, 200, 200, 401]
    assert await statuses(given, port=9000, paths=(*OPERATIONS, *PUBLIC)) == [200, 200, 503, 404, 404, 404]


async def test_the_documentation_can_be_switched_off(valkey: str, upstream: SandboxServer, prefix: str) -> None:
    transport = httpx.ASGITransport(app=create_app(make_settings(valkey, upstream.url, prefix, docs=False)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/docs")).status_code == 404
        assert (await client.get("/docs/assets/swagger-ui.css")).status_code == 404
        assert (await client.get("/openapi.json")).status_code == 200


@pytest.mark.parametrize(
    "path", ["/docs/assets/../../settings.py", "/docs/assets/%2e%2e/__init__.py", "/docs/assets/no"]
)
async def test_no_other_files_are_served(shared: Replica, path: str) -> None:
    answer = await shared.client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
