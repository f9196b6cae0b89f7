"""`/api`: what the vendor's own widget sends and expects, through the very same steps as `/v1`."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY, SANDBOX_SECRET
from tests.callers.pages import HOST, PAGE, page_headers
from tests.conftest import MovableClock, Replica, make_settings, running_replica
from tests.walk import APS, PASSWORD, PGE, SCE, sign_in

PLACEHOLDER = "placeholder"
ACCOUNT = "5eedc0de00000000000acc01"
CONTENT = {"Content-Type": "application/json;charset=UTF-8"}
KEY = {"Authorization": f"Bearer {SANDBOX_API_KEY}"}


class Widget:
    """The vendor's calls, from the page of a registered client."""

    def __init__(self, replica: Replica, *, origin: str | None = HOST) -> None:
        self.replica = replica
        self.origin = origin
        self.token: str | None = None

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        content = None if body is None else json.dumps(body)
        given = page_headers(self.token, origin=self.origin) | CONTENT | headers
        return await self.replica.client.request(method, f"/api{path}", headers=given, content=content)

    async def ask(self, client_id: Any = PAGE, secret: Any = PLACEHOLDER, **more: Any) -> httpx.Response:
        body = {"clientId": client_id, "secret": secret, "name": "Omnimetic"} | more
        return await self.call("POST", "/access-token", body)

    async def open(self, **more: Any) -> "Widget":
        answer = await self.ask(**more)
        assert answer.status_code == 200, answer.text
        assert set(answer.json()) == {"id", "token"}
        assert answer.json()["id"] == ACCOUNT
        self.token = answer.json()["token"]
        return self

    async def sign_in(self, username: str = "user_quick", password: str = PASSWORD, **more: Any) -> httpx.Response:
        body = {"username": username, "password": password, "utilityCompanyId": APS} | more
        return await self.call("POST", "/jobs", body, type="APSLogin")

    async def job(self, job_id: str) -> Any:
        """Polls as the widget does, only faster."""
        for _ in range(500):
            answer = await self.call("GET", f"/jobs/{job_id}")
            assert answer.status_code == 200, answer.text
            if answer.json() != {"status": "pending"}:
                return answer.json()
            await asyncio.sleep(0.02)
        raise AssertionError("it would poll for ever")

    async def accounts(self, username: str = "user_quick") -> list[str]:
        started = await self.sign_in(username)
        assert started.status_code == 201, started.text
        done = await self.job(started.json()["id"])
        found = await self.call("GET", f"/utility-user-account/{done['response']['accountId']}")
        assert found.status_code == 200, found.text
        return [each["id"] for each in found.json()["serviceAccounts"]]

    async def link(self, ids: Any, account: str = ACCOUNT) -> httpx.Response:
        return await self.call("POST", f"/{account}/utility-service-accounts/batch", ids)


async def test_the_whole_walk(site: Replica, upstream: SandboxServer) -> None:
    widget = await Widget(site).open()
    companies = await widget.call("GET", "/utility-companies")
    assert companies.status_code == 200
    vendors = upstream.world.calls.all("companies")
    assert len(vendors) == 1
    first = companies.json()[0]
    assert set(first) <= {"id", "name", "url", "logo", "loginUrl"}
    assert len(companies.json()) == 18
    assert "/sign-in/" in next(each for each in companies.json() if each["id"] == PGE)["loginUrl"]
    started = await widget.sign_in()
    assert started.status_code == 201
    assert set(started.json()) == {"id"}
    job = await widget.job(started.json()["id"])
    assert job["status"] == "success"
    account = await widget.call("GET", f"/utility-user-account/{job['response']['accountId']}")
    assert set(account.json()) == {"id", "name", "serviceAccounts"}
    assert account.json()["serviceAccounts"][0]["address"]["city"] == "Tempe"
    ids = [each["id"] for each in account.json()["serviceAccounts"]]
    linked = await widget.link(ids)
    assert linked.status_code == 201
    assert linked.json()["message"] == "Resolved: User account(s) successfully linked"
    assert linked.json()["status"] == "OM200"
    assert {each["id"] for each in linked.json()["serviceAccounts"]} == set(ids)
    assert len(upstream.world.calls.all("batch")) == 1
    assert len(upstream.world.calls.all("jobs")) == 1
    for answer in (companies, started, account, linked):
        assert answer.headers["access-control-allow-origin"] == HOST


async def test_the_job_id_is_the_vendors_own(site: Replica, upstream: SandboxServer) -> None:
    widget = await Widget(site).open()
    job_id = (await widget.sign_in()).json()["id"]
    await widget.job(job_id)
    assert any(call.path.endswith(f"/jobs/{job_id}") for call in upstream.world.calls.all("job"))


@pytest.mark.parametrize(
    ("client_id", "origin"),
    [("nobody", HOST), ("", HOST), ("x" * 500, HOST), ("off-web", HOST), (PAGE, "https://evil.example"), (PAGE, None)],
)
async def test_a_wrong_client_is_401(
    site: Replica, upstream: SandboxServer, client_id: str, origin: str | None
) -> None:
    answer = await Widget(site, origin=origin).ask(client_id)
    assert answer.status_code == 401
    assert answer.json()["status"] == "OM400"
    assert upstream.world.calls.all() == []


async def test_a_missing_client_is_401(site: Replica) -> None:
    assert (await Widget(site).call("POST", "/access-token", {})).status_code == 401


async def test_a_missing_secret_is_as_good_as_any(site: Replica) -> None:
    assert (await Widget(site).call("POST", "/access-token", {"clientId": PAGE})).status_code == 200


async def test_the_vendors_refusal_is_401_as_the_widget_knows_it(upstream: SandboxServer, site: Replica) -> None:
    upstream.world.faults.add("token", "status", value=401, times=None)
    answer = await Widget(site).ask()
    assert answer.status_code == 401
    assert answer.json()["status"] == "OM410"
    assert answer.json()["code"] == "upstream_credentials_rejected"
    # Natively it is none of the caller's business.
    assert (await site.client.post("/v1/sessions", headers=KEY)).status_code == 502


async def test_an_outage_of_the_vendor_is_503(site: Replica, upstream: SandboxServer) -> None:
    upstream.stop()
    try:
        answer = await Widget(site).ask()
    finally:
        upstream.start()
    assert answer.status_code == 503
    assert answer.json()["status"] == "OM500"


async def test_unknown_fields_and_the_type_header_are_ignored(site: Replica, upstream: SandboxServer) -> None:
    widget = await Widget(site).open(extra={"a": [1]}, environment="production")
    body = {"username": "user_quick", "password": PASSWORD, "utilityCompanyId": APS, "clientId": PAGE, "mfa": None}
    assert (await widget.call("POST", "/jobs", body, type="SomethingElse")).status_code == 201
    assert upstream.world.calls.all("jobs")[0].headers["type"] == "APSLogin"


@pytest.mark.parametrize(
    ("username", "password", "told"),
    [
        ("user_quick", "wrong", {"status": "success", "response": {"status": "incorrect-credential"}}),
        ("user_server_error", PASSWORD, {"status": "success", "response": {"status": "server-error"}}),
        ("user_job_error", PASSWORD, {"status": "success", "response": {"status": "server-error"}}),
    ],
)
async def test_how_a_job_ended_is_told_in_the_vendors_words(
    site: Replica, username: str, password: str, told: object
) -> None:
    widget = await Widget(site).open()
    assert await widget.job((await widget.sign_in(username, password)).json()["id"]) == told


async def test_a_job_that_timed_out_ends_for_the_widget(site: Replica, clock: MovableClock) -> None:
    widget = await Widget(site).open()
    job_id = (await widget.sign_in("user_never")).json()["id"]
    assert (await widget.call("GET", f"/jobs/{job_id}")).json() == {"status": "pending"}
    clock.forward(181)
    assert await widget.job(job_id) == {"status": "error"}


async def test_polls_are_answered_from_our_own_state(site: Replica, upstream: SandboxServer) -> None:
    widget = await Widget(site).open()
    job_id = (await widget.sign_in()).json()["id"]
    await widget.job(job_id)
    upstream.world.calls.clear()
    for _ in range(20):
        assert (await widget.call("GET", f"/jobs/{job_id}")).json()["status"] == "success"
        await widget.call("GET", "/utility-companies")
    assert upstream.world.calls.all() == []


async def test_a_job_stays_pending_while_our_own_polls_fail(site: Replica, upstream: SandboxServer) -> None:
    widget = await Widget(site).open()
    job_id = (await widget.sign_in("user_good")).json()["id"]
    upstream.world.faults.add("job", "status", value=503, times=3)
    assert (await widget.call("GET", f"/jobs/{job_id}")).json() == {"status": "pending"}
    assert (await widget.job(job_id))["response"]["accountId"]


async def test_a_utility_that_fails_the_job_call_breaks_the_widget(site: Replica, upstream: SandboxServer) -> None:
    widget = await Widget(site).open()
    upstream.world.faults.add("jobs", "status", value=500)
    answer = await widget.sign_in()
    assert answer.status_code in {503, 504}
    assert answer.json()["status"] == "OM500"
    assert len(upstream.world.calls.all("jobs")) == 1


@pytest.mark.parametrize("given", [{"username": "username", "password": "password"}, {"username": None}, {}], ids=str)
async def test_at_the_companys_own_page_nothing_typed_is_sent(
    site: Replica, upstream: SandboxServer, given: dict[str, Any]
) -> None:
    widget = await Widget(site).open()
    companies = (await widget.call("GET", "/utility-companies")).json()
    page = next(each["loginUrl"] for each in companies if each["id"] == PGE)
    started = await widget.call("POST", "/jobs", given | {"utilityCompanyId": PGE})
    assert started.status_code == 201, started.text
    job_id = started.json()["id"]
    sent = json.loads(upstream.world.calls.all("jobs")[0].body)
    assert (sent["username"], sent["password"]) == ("username", "password")
    state = httpx.QueryParams(
        {
            "client_id": "494ee81b3ca1470babfb6bb59ee64e07",
            "redirect_uri": "https://app.omnimetic.com/oauth2/pge/authorize",
            "response_type": "code",
            "state": f"jobId={job_id}",
        }
    )
    await sign_in(site.client, f"{page}?{state}")
    accounts = (await widget.job(job_id))["response"]["accounts"]
    assert len(accounts) == 3
    linked = await widget.link([each["serviceAccountId"] for each in accounts])
    assert linked.status_code == 201, linked.text


async def test_a_real_password_for_a_companys_own_page_goes_nowhere(site: Replica, upstream: SandboxServer) -> None:
    widget = await Widget(site).open()
    await widget.sign_in("somebody", "hunter2hunter2", utilityCompanyId=PGE)
    assert not any("hunter2" in call.body or "somebody" in call.body for call in upstream.world.calls.all())


async def test_a_company_without_a_sign_in_page_is_refused(site: Replica, upstream: SandboxServer) -> None:
    widget = await Widget(site).open()
    assert (await widget.sign_in(utilityCompanyId=SCE)).status_code == 422
    assert upstream.world.calls.all("jobs") == []


@pytest.mark.parametrize(
    "body",
    [
        {"utilityCompanyId": APS},
        {"utilityCompanyId": APS, "username": "", "password": ""},
        {"username": "a", "password": "b"},
        {"utilityCompanyId": "../x", "username": "a", "password": "b"},
        {"utilityCompanyId": APS, "username": "\ud800", "password": "b"},
        {"utilityCompanyId": APS, "username": ["a"], "password": "hunter2"},
    ],
    ids=str,
)
async def test_bad_input_is_told_and_not_repeated(site: Replica, upstream: SandboxServer, body: Any) -> None:
    answer = await (await Widget(site).open()).call("POST", "/jobs", body)
    assert answer.status_code in {400, 422}
    assert "hunter2" not in answer.text
    assert upstream.world.calls.all("jobs") == []


async def test_an_unknown_company_is_404(site: Replica) -> None:
    assert (await (await Widget(site).open()).sign_in(utilityCompanyId="f" * 24)).status_code == 404


@pytest.mark.parametrize("body", [[], ["a", 1], {"ids": ["a"]}, ["../x"], ["a"] * 201], ids=str)
async def test_a_choice_of_another_shape_is_422(site: Replica, upstream: SandboxServer, body: Any) -> None:
    widget = await Widget(site).open()
    await widget.accounts()
    assert (await widget.link(body)).status_code == 422
    assert upstream.world.calls.all("batch") == []


async def test_another_upstream_account_is_404(site: Replica, upstream: SandboxServer) -> None:
    widget = await Widget(site).open()
    ids = await widget.accounts()
    assert (await widget.link(ids, account="f" * 24)).status_code == 404
    assert upstream.world.calls.all("batch") == []


async def test_a_link_call_that_is_repeated_links_once(site: Replica, upstream: SandboxServer) -> None:
    widget = await Widget(site).open()
    ids = await widget.accounts()
    answers = await asyncio.gather(*(widget.link(ids) for _ in range(4)), widget.link([*ids, ids[0]]))
    assert [each.status_code for each in answers] == [201] * 5
    assert len(upstream.world.calls.all("batch")) == 1


async def test_an_unclear_link_call_breaks_the_widget_and_is_not_sent_again(
    site: Replica, upstream: SandboxServer
) -> None:
    widget = await Widget(site).open()
    ids = await widget.accounts("user_link_lost")
    for _ in range(2):
        answer = await widget.link(ids)
        assert answer.status_code == 504
        assert answer.json()["code"] == "outcome_unknown"
    assert len(upstream.world.calls.all("batch")) == 1


async def test_expired_and_closed_sessions(site: Replica, clock: MovableClock) -> None:
    walk = await site.walk().open()
    widget = await Widget(site).open(secret=walk.token)
    job_id = (await widget.sign_in()).json()["id"]
    await widget.job(job_id)
    await walk.close()
    assert (await widget.sign_in()).status_code == 409
    assert (await widget.link(["a"])).status_code == 409
    late = await Widget(site).open()
    clock.forward(1801)
    calls: list[tuple[str, str, Any]] = [
        ("GET", "/utility-companies", None),
        ("POST", "/jobs", {"username": "a", "password": "b", "utilityCompanyId": APS}),
        ("GET", "/jobs/x", None),
        ("GET", "/utility-user-account/x", None),
        ("POST", f"/{ACCOUNT}/utility-service-accounts/batch", ["a"]),
    ]
    for method, path, body in calls:
        answer = await late.call(method, path, body)
        assert (answer.status_code, answer.json()["code"]) == (410, "session_expired"), path
        assert answer.headers["access-control-allow-origin"] == HOST


async def test_every_step_wants_a_sessions_token(site: Replica) -> None:
    for token, status in ((None, 401), ("oms_wrong", 401), ("a.b.c", 401), (SANDBOX_API_KEY, 403)):
        widget = Widget(site)
        widget.token = token
        assert (await widget.call("GET", "/utility-companies")).status_code == status
        assert (await widget.sign_in()).status_code == status


async def test_a_session_that_the_hosts_server_made_is_used(site: Replica) -> None:
    walk = await site.walk().open(subject="person-1")
    widget = await Widget(site).open(secret=walk.token)
    assert widget.token == walk.token
    assert (await widget.link(await widget.accounts())).status_code == 201
    shown = (await walk.show(by_server=True)).json()["session"]
    assert (shown["state"], shown["subject"]) == ("linked", "person-1")


async def test_a_session_token_needs_a_good_page_too_and_must_live(site: Replica, clock: MovableClock) -> None:
    walk = await site.walk().open(subject="person-1")
    assert (await Widget(site, origin="https://evil.example").ask(secret=walk.token)).status_code == 401
    assert (await Widget(site).ask("nobody", secret=walk.token)).status_code == 401
    assert (await Widget(site).ask(secret=f"{walk.token[:-1]}x")).status_code == 401
    clock.forward(1801)
    assert (await Widget(site).ask(secret=walk.token)).status_code == 410


async def test_the_real_secret_in_a_page_is_told_once_and_never_shown(site: Replica) -> None:
    with capture_logs() as logs:
        for _ in range(3):
            await Widget(site).open(secret=SANDBOX_SECRET)
    told = [each for each in logs if each["event"] == "secret_in_page"]
    assert len(told) == 1
    assert SANDBOX_SECRET not in str(logs)


async def test_a_widget_that_is_opened_again_still_sends_its_old_token(site: Replica) -> None:
    widget = await Widget(site).open()
    first = widget.token
    await widget.open()
    assert widget.token != first


async def test_no_widget_no_paths(valkey: str, upstream: SandboxServer, prefix: str) -> None:
    async with running_replica(make_settings(valkey, upstream.url, prefix, widget=False)) as replica:
        assert (await replica.client.post("/api/access-token", json={})).status_code == 404
