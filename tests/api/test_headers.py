"""Every route, every method and every error carries the headers that keep an answer where it belongs."""

import re
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest
from fastapi.routing import APIRoute

from service.api.caller import policies_of
from service.api.routing import ApiRoute
from service.app import create_app
from service.link.access import Access
from service.link.hosted import HostedPages
from service.settings import SANDBOX_API_KEY
from tests.conftest import Replica, make_settings

ORIGIN: Final = {"Origin": "http://localhost:8000"}
"""Where the sandbox's publishable client is at home."""

KEY: Final = {"Authorization": f"Bearer {SANDBOX_API_KEY}"}
ROUTES: Final = create_app(make_settings("redis://127.0.0.1:1", "http://127.0.0.1:1/api", "t")).routes
KEPT: Final = re.compile(r"/(sdk|logos|demo/assets|v1/providers)\b")
"""What may be kept by caches: pictures, scripts, and the list of utilities."""


def calls() -> Iterator[tuple[str, str]]:
    """Each route with its own methods, and with one that none has."""
    for route in ROUTES:
        assert isinstance(route, ApiRoute)
        name = "swagger-ui.css" if route.path.startswith("/docs/") else "omniconnect.js"
        path = route.path.format_map(Filled(name=name))
        yield from ((method, path) for method in {*route.methods, "PATCH"})
    for path in ("/none", "/v1/none", "/api/none", "/v1/sessions/", "//", "/%00"):
        yield from ((method, path) for method in ("GET", "HEAD", "POST", "OPTIONS"))


class Filled(dict[str, str]):
    """Something for each parameter that has no value."""

    def __missing__(self, name: str) -> str:
        return {"session_id": "ses_" + "0" * 32}.get(name, "x")


def assert_kept_in(answer: httpx.Response) -> None:
    asked = f"{answer.request.method} {answer.request.url.path} {answer.status_code}"
    headers = answer.headers
    assert headers["x-content-type-options"] == "nosniff", asked
    assert headers["strict-transport-security"] == "max-age=31536000; includeSubDomains", asked
    assert headers["referrer-policy"] == "no-referrer", asked
    assert headers["content-security-policy"].startswith("default-src 'none'"), asked
    assert re.search(r"frame-ancestors '|sandbox", headers["content-security-policy"]), asked
    if answer.status_code >= 400 or not KEPT.match(answer.request.url.path):
        assert headers["cache-control"] == "no-store", asked
    if headers.get("content-type", "").startswith("text/"):
        assert "charset=utf-8" in headers["content-type"], asked


async def test_every_route_and_method(shared: Replica) -> None:
    statuses = set()
    for method, path in calls():
        answer = await shared.client.request(method, path, headers=KEY)
        assert_kept_in(answer)
        statuses.add(answer.status_code)
    assert statuses >= {200, 201, 403, 404, 405}


@pytest.mark.parametrize(
    ("status", "given"),
    [
        (400, {"content": b"{", "headers": {"Content-Type": "application/json"}}),
        (406, {"headers": {"Accept": "text/html"}}),
        (413, {"content": b"x" * 70_000, "headers": {"Content-Type": "application/json"}}),
        (415, {"content": b"{}", "headers": {"Content-Type": "text/plain"}}),
        (422, {"json": {"unknown": 1}}),
    ],
)
async def test_bodies_that_are_refused(shared: Replica, status: int, given: dict[str, Any]) -> None:
    given = given | {"headers": KEY | given.get("headers", {})}
    answer = await shared.client.post("/v1/sessions", **given)
    assert answer.status_code == status
    assert_kept_in(answer)


async def test_a_bug_in_any_route(shared: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError

    for kind, name in ((Access, "identify"), (HostedPages, "enter")):
        monkeypatch.setattr(kind, name, broken)
    guarded = [each for each in ROUTES if isinstance(each, APIRoute) and policies_of(each)]
    for route in guarded:
        method = next(iter(route.methods or ()))
        path = route.path.format_map(Filled())
        body = {"clientId": "sandbox-web"} if path == "/api/access-token" else None
        answer = await shared.client.request(method, path, json=body, headers=KEY | ORIGIN)
        assert answer.status_code == 500, (route.path, answer.text)
        assert answer.json()["code"] == "internal_error"
        assert_kept_in(answer)
        if not path.startswith("/link/"):
            assert answer.headers["access-control-allow-origin"] == ORIGIN["Origin"]
    assert len(guarded) > 15


@pytest.mark.parametrize(("origin", "status"), [(ORIGIN["Origin"], 200), ("https://evil.example", 400)])
@pytest.mark.parametrize("path", ["/v1/sessions", "/api/jobs"])
async def test_preflights(shared: Replica, path: str, origin: str, status: int) -> None:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answer = await shared.client.options(path, headers=asked)
    assert answer.status_code == status
    assert_kept_in(answer)
