"""The demo's host application: in the sandbox alone, and its API key stays with it."""

from dataclasses import fields
from html import unescape

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from service.api.demo import what_happens
from service.app import create_app
from service.sandbox.people import PASSWORD, PEOPLE, Person
from service.settings import SANDBOX_API_KEY, SANDBOX_SECRET, Settings
from tests.conftest import ENCRYPTION_KEYS, Replica

PATHS = ["/", "/demo/assets/demo.js", "/demo/sessions", "/demo/sessions/ses_0"]


@pytest.fixture
def production(valkey: str, prefix: str) -> FastAPI:
    return create_app(
        Settings(
            client_id="client",
            secret=SecretStr("a real secret"),
            redis_url=SecretStr(valkey),
            redis_prefix=prefix,
            encryption_keys=ENCRYPTION_KEYS,
        )
    )


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", PATHS)
async def test_in_production_there_is_no_demo(production: FastAPI, path: str, method: str) -> None:
    transport = httpx.ASGITransport(app=production)
    async with httpx.AsyncClient(transport=transport, base_url="https://bff.example") as client:
        answer = await client.request(method, path)
        unknown = await client.request(method, "/nothing/here")
    assert answer.status_code == 404
    told = answer.json() | {"requestId": ""}
    assert told == unknown.json() | {"requestId": ""}
    assert told["code"] == "not_found"


async def test_the_page_runs_only_what_comes_from_here(shared: Replica) -> None:
    answer = await shared.client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(each.strip().partition(" ")[::2] for each in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "style=" not in answer.text
    assert "<script>" not in answer.text
    assert SANDBOX_API_KEY not in answer.text
    assert SANDBOX_SECRET not in answer.text


async def test_all_people_are_on_the_page(shared: Replica) -> None:
    page = unescape((await shared.client.get("/")).text)
    for person in PEOPLE.values():
        assert f">{person.username}</button> <span>{what_happens(person)}</span>" in page
    assert PASSWORD in page


def test_whatever_distinguishes_people_is_told() -> None:
    assert {each.name for each in fields(Person)} == {
        "username",
        *("accounts", "seconds", "outcome", "linking", "loses_token"),
    }
    told = [what_happens(person) for person in PEOPLE.values()]
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("name", ["calls.js", "demo.css", "demo.js", "icon.svg", "widget-stand-in.js"])
async def test_assets_are_served_and_told_apart_by_their_tags(shared: Replica, name: str) -> None:
    answer = await shared.client.get(f"/demo/assets/{name}")
    assert answer.status_code == 200
    known = {"If-None-Match": answer.headers["etag"]}
    assert (await shared.client.get(f"/demo/assets/{name}", headers=known)).status_code == 304


@pytest.mark.parametrize("name", ["index.html", "..%2fclient.js", "nothing"])
async def test_no_other_file_is_served(shared: Replica, name: str) -> None:
    assert (await shared.client.get(f"/demo/assets/{name}")).status_code == 404


async def test_the_host_makes_a_session_and_tells_no_credential(shared: Replica) -> None:
    answer = await shared.client.post("/demo/sessions")
    assert answer.status_code == 201, answer.text
    session = answer.json()["session"]
    assert set(session) == {"id", "url", "expiresAt", "state"}
    assert session["url"].startswith(f"{shared.url}/link/{session['id']}")
    assert [(each["method"], each["path"], each["status"]) for each in answer.json()["serverCalls"]] == [
        ("POST", "/v1/sessions", 201)
    ]
    found = await shared.client.get(f"/demo/sessions/{session['id']}")
    assert found.status_code == 200
    assert found.json()["session"]["state"] == "open"
    assert "outcome" not in found.json()["session"]
    for each in (answer, found):
        assert SANDBOX_API_KEY not in each.text
        assert "oms_" not in each.text


async def test_the_host_verifies_its_own_sessions_alone(shared: Replica) -> None:
    foreign = await shared.walk().open()
    answers = [await shared.client.get(f"/demo/sessions/{each}") for each in (foreign.id, f"ses_{'0' * 32}", "nothing")]
    assert [each.status_code for each in answers] == [404, 404, 404]
    assert len({str(each.json() | {"requestId": ""}) for each in answers}) == 1
