"""Pages that open sessions by themselves, with an id that is no secret."""

from typing import Any

import pytest

from service.errors import Forbidden
from service.link.access import Knock
from service.link.scopes import Scope
from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY, SANDBOX_PUBLISHABLE_CLIENT
from tests.callers.pages import HOST, OFF_HOST, OTHER_HOST, PAGE, open_by_page, page_headers, without_request_id
from tests.conftest import Replica
from tests.walk import APS, Walk

KEY = {"Authorization": f"Bearer {SANDBOX_API_KEY}"}

STRANGERS: dict[str, tuple[str, str | None]] = {
    "unknown client": ("nobody", HOST),
    "empty client": ("-", HOST),
    "client in another case": ("SHOP-WEB", HOST),
    "disabled": ("off-web", OFF_HOST),
    "no origin": (PAGE, None),
    "null": (PAGE, "null"),
    "empty origin": (PAGE, ""),
    "another client's origin": (PAGE, OTHER_HOST),
    "other port": (PAGE, f"{HOST}:8443"),
    "explicit default port": (PAGE, f"{HOST}:443"),
    "http": (PAGE, "http://shop.example"),
    "suffix": (PAGE, "https://shop.example.evil.example"),
    "prefix": (PAGE, "https://evilshop.example"),
    "subdomain": (PAGE, "https://a.shop.example"),
    "user": (PAGE, "https://shop.example@evil.example"),
    "path": (PAGE, f"{HOST}/"),
    "upper case": (PAGE, "https://SHOP.example"),
    "list": (PAGE, f"{HOST}, https://evil.example"),
    "star": (PAGE, "*"),
}


async def test_a_page_opens_an_anonymous_session_and_walks_it_to_the_end(site: Replica) -> None:
    opened = await open_by_page(site)
    assert opened.status_code == 201, opened.text
    session = opened.json()["session"]
    assert session["subject"] is None
    assert opened.headers["access-control-allow-origin"] == HOST
    walk = Walk(site.client, api_key="")
    walk.id, walk.token = session["id"], session["token"]
    answer = await walk.validate("user_quick")
    assert answer.json()["validation"]["state"] == "succeeded", answer.text
    linked = await walk.link(await walk.account_ids())
    assert linked.status_code == 201
    # The host's server verifies what its page was told.
    shown = await site.client.get(walk.path, headers=KEY)
    assert shown.json()["session"]["state"] == "linked"


@pytest.mark.parametrize(("client_id", "origin"), STRANGERS.values(), ids=STRANGERS)
async def test_every_other_page_gets_the_same_401(
    site: Replica, upstream: SandboxServer, client_id: str, origin: str | None
) -> None:
    nobody = await site.client.post("/v1/sessions", json={})
    refused = await open_by_page(site, client_id, origin=origin)
    listed = await site.client.get("/v1/providers", params={"clientId": client_id}, headers=page_headers(origin=origin))
    for answer in (refused, listed):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert without_request_id(answer) == without_request_id(nobody)
    assert upstream.world.calls.all() == []


@pytest.mark.parametrize("origins", [("https://evil.example", HOST), (HOST, "https://evil.example")], ids=str)
async def test_two_origin_headers_are_no_origin(site: Replica, origins: tuple[str, str]) -> None:
    headers = [("Origin", each) for each in origins]
    answer = await site.client.post("/v1/sessions", headers=headers, json={"clientId": PAGE})
    assert answer.status_code == 401


@pytest.mark.parametrize("body", [{"subject": "s"}, {"metadata": {"a": "b"}}, {"ttlSeconds": 60}], ids=str)
async def test_a_page_decides_nothing_of_its_session(
    site: Replica, upstream: SandboxServer, body: dict[str, Any]
) -> None:
    answer = await open_by_page(site, **body)
    assert answer.status_code == 403
    assert answer.json()["code"] == "forbidden"
    assert upstream.world.calls.all("token") == []


async def test_a_page_lists_providers(site: Replica) -> None:
    answer = await site.client.get("/v1/providers", params={"clientId": PAGE, "search": "ari"}, headers=page_headers())
    assert answer.status_code == 200
    assert [each["id"] for each in answer.json()["providers"]] == [APS]


async def test_a_page_can_do_nothing_else(site: Replica) -> None:
    walk = await site.walk().open()
    calls = [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/tokens"),
        ("POST", "/validations"),
        ("GET", "/validations/val_0"),
        ("DELETE", "/validations/val_0"),
        ("GET", "/service-accounts"),
        ("POST", "/links"),
    ]
    for method, path in calls:
        answer = await site.client.request(method, walk.path + path, params={"clientId": PAGE}, headers=page_headers())
        assert answer.status_code == 401, (method, path, answer.text)


async def test_a_page_that_named_its_client_could_read_no_session_either(site: Replica) -> None:
    """No route for sessions takes a client's id: this is the lock behind that door."""
    walk = await site.walk().open()
    access = site.app.state.steps.access
    page = await access.identify(Knock(None, PAGE, HOST, "192.0.2.1"))
    for scope in (Scope.SESSIONS_READ, Scope.SESSIONS_WRITE):
        with pytest.raises(Forbidden):
            await access.readable_session(walk.id, page, scope)
    with pytest.raises(Forbidden):
        access.own_session(walk.id, page)
    with pytest.raises(Forbidden):
        access.living_session(page)


async def test_a_session_token_opens_no_session(site: Replica) -> None:
    token = (await open_by_page(site)).json()["session"]["token"]
    for body in ({}, {"clientId": PAGE}):
        answer = await site.client.post("/v1/sessions", headers=page_headers(token), json=body)
        assert answer.status_code == 403


@pytest.mark.parametrize("client_id", [PAGE, "nobody"])
async def test_an_api_key_wins_over_a_publishable_id(site: Replica, client_id: str) -> None:
    body = {"clientId": client_id, "subject": "person", "ttlSeconds": 60}
    answer = await site.client.post("/v1/sessions", headers=KEY, json=body)
    assert answer.status_code == 201
    assert answer.json()["session"]["subject"] == "person"


async def test_a_bad_credential_does_not_fall_back_to_the_publishable_id(site: Replica) -> None:
    answer = await site.client.post("/v1/sessions", headers=page_headers("wrong"), json={"clientId": PAGE})
    assert answer.status_code == 401
    listed = await site.client.get("/v1/providers", params={"clientId": PAGE}, headers=page_headers("wrong"))
    assert listed.status_code == 401


@pytest.mark.parametrize("client_id", [1, "", ["shop-web"], "x" * 129])
async def test_an_id_of_another_shape_is_told(site: Replica, client_id: object) -> None:
    answer = await open_by_page(site, client_id)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "clientId"


async def test_the_sandbox_brings_a_client_of_its_own(replica: Replica) -> None:
    answer = await open_by_page(replica, SANDBOX_PUBLISHABLE_CLIENT, origin="http://localhost:8000")
    assert answer.status_code == 201
