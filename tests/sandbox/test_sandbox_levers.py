from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx
import pytest

from service.sandbox.answers import json_answer
from service.sandbox.server import SandboxServer
from service.sandbox.world import ACCOUNT_ID
from tests.plain import NO_TLS

if TYPE_CHECKING:
    from service.sandbox.calls import Route
    from tests.sandbox.conftest import Vendor

PGE = "5eedc0de0000000000000004"


@pytest.mark.parametrize("after", [False, True])
def test_a_call_that_the_client_gave_up_takes_effect_all_the_same(vendor: Vendor, after: bool) -> None:  # noqa: FBT001 - a parameter of the test
    ids = vendor.sign_in().service_accounts("user_quick")
    vendor.world.faults.add("batch", "delay", value=30, after=after)
    with pytest.raises(httpx.ReadTimeout):
        vendor.http.post(f"/{ACCOUNT_ID}/utility-service-accounts/batch", json=ids, timeout=0.05)
    deadline = time.monotonic() + 5
    while not vendor.world.links:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert vendor.world.link_counts == dict.fromkeys(ids, 1)


def test_a_delayed_call_is_answered_late(vendor: Vendor) -> None:
    vendor.sign_in().lever("POST", "/faults", route="companies", kind="delay", value=0.05)
    started = time.monotonic()
    assert vendor.http.get("/utility-companies").status_code == 200
    assert time.monotonic() - started >= 0.05


def test_status_is_answered_without_an_effect_or_after_it(vendor: Vendor) -> None:
    ids = vendor.sign_in().service_accounts("user_quick")
    vendor.lever("POST", "/faults", route="batch", kind="status", value=503)
    assert vendor.link(ids).status_code == 503
    assert vendor.world.links == []
    vendor.lever("POST", "/faults", route="batch", kind="status", after=True)
    assert vendor.link(ids).status_code == 500
    assert len(vendor.world.links) == 1
    assert vendor.link(ids).status_code == 201


def test_hang_never_answers(vendor: Vendor) -> None:
    vendor.world.faults.add("token", "hang")
    with pytest.raises(httpx.ReadTimeout):
        vendor.http.post("/access-token", json={}, timeout=0.05)
    assert vendor.token().status_code == 200


@pytest.mark.parametrize("after", [False, True])
def test_reset_breaks_the_connection(vendor: Vendor, after: bool) -> None:  # noqa: FBT001 - a parameter of the test
    ids = vendor.sign_in().service_accounts("user_quick")
    vendor.world.faults.add("batch", "reset", after=after)
    with pytest.raises(httpx.ReadError):
        vendor.link(ids)
    assert len(vendor.world.links) == int(after)
    assert vendor.world.calls.all("batch")[0].status is None
    assert vendor.world.calls.all("batch")[0].fault == "reset"


def test_truncate_cuts_the_answer_at_each_byte(vendor: Vendor) -> None:
    ids = vendor.sign_in().service_accounts("user_quick")
    whole = json_answer(201, {"linked": 2}).raw()
    for kept in range(len(whole)):
        vendor.world.faults.add("batch", "truncate", value=kept, after=True)
        with pytest.raises(httpx.RemoteProtocolError):
            vendor.link(ids)
    vendor.world.faults.add("batch", "truncate", value=len(whole), after=True)
    assert vendor.link(ids).json() == {"linked": 2}
    assert len(vendor.world.links) == len(whole) + 1
    status_line = len(b"HTTP/1.1 201 Created\r\n")
    told = [call.status for call in vendor.world.calls.all("batch")]
    assert told == [None] * status_line + [201] * (len(whole) + 1 - status_line)


def test_truncate_halves_unless_told_otherwise(vendor: Vendor) -> None:
    vendor.sign_in().world.faults.add("companies", "truncate")
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        vendor.http.get("/utility-companies")


def test_malformed_and_html_bodies_come_with_the_status_of_success(vendor: Vendor) -> None:
    vendor.sign_in().world.faults.add("jobs", "malformed")
    answer = vendor.post_job("user_good")
    assert (answer.status_code, answer.text) == (201, '{"id": "unfinished')
    vendor.world.faults.add("job", "html")
    answer = vendor.http.get("/jobs/x")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")


def test_huge_is_as_huge_as_asked(vendor: Vendor) -> None:
    vendor.sign_in().world.faults.add("account", "huge", value=300_000)
    answer = vendor.http.get("/utility-user-account/x")
    assert len(answer.json()["padding"]) == 300_000


def test_gzip_bomb_is_small_until_opened(vendor: Vendor) -> None:
    vendor.sign_in().world.faults.add("companies", "gzip_bomb", value=5_000_000)
    with vendor.http.stream("GET", "/utility-companies") as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert int(answer.headers["content-length"]) < 10_000
        assert len(answer.read()) == 5_000_000
    assert answer.json() == {}


def test_drip_comes_byte_by_byte(vendor: Vendor) -> None:
    vendor.sign_in().world.faults.add("job", "drip", value=0.002)
    started = time.monotonic()
    with vendor.http.stream("GET", "/jobs/x") as answer:
        parts = [part for part in answer.iter_raw() if part]
    assert b"".join(parts) == b'{"message":"there is no such job"}'
    assert len(parts) > 10
    assert time.monotonic() - started >= 0.05


@pytest.mark.parametrize("route", ["token", "companies", "jobs", "job", "account", "batch", "data"])
def test_every_route_can_fail(vendor: Vendor, route: Route) -> None:
    calls = {
        "token": ("POST", "/access-token"),
        "companies": ("GET", "/utility-companies"),
        "jobs": ("POST", "/jobs"),
        "job": ("GET", "/jobs/x"),
        "account": ("GET", "/utility-user-account/x"),
        "batch": ("POST", f"/{ACCOUNT_ID}/utility-service-accounts/batch"),
        "data": ("GET", f"/accounts/{ACCOUNT_ID}/utility-service-accounts/x/download-data"),
    }
    assert vendor.lever("POST", "/faults", route=route, kind="status", value=418).status_code == 201
    assert vendor.http.request(*calls[route]).status_code == 418
    assert vendor.http.request(*calls[route]).status_code in {400, 401}


def test_faults_hit_as_often_as_ordered(vendor: Vendor) -> None:
    vendor.sign_in().lever("POST", "/faults", route="companies", kind="status", value=502, times=2)
    vendor.lever("POST", "/faults", route="companies", kind="status", value=503, times=None)
    statuses = [vendor.http.get("/utility-companies").status_code for _ in range(5)]
    assert statuses == [502, 502, 503, 503, 503]
    assert len(vendor.lever("GET", "/faults").json()["faults"]) == 1
    assert vendor.lever("DELETE", "/faults").status_code == 204
    assert vendor.http.get("/utility-companies").status_code == 200


@pytest.mark.parametrize(
    "order",
    [
        {"route": "nowhere", "kind": "hang"},
        {"route": "token", "kind": "fire"},
        {"route": "token", "kind": "hang", "times": 0},
        {"route": "token", "kind": "status", "value": 99},
        {"route": "token", "kind": "delay", "value": -1},
        {"route": "token", "kind": "hang", "more": 1},
        {"kind": "hang"},
    ],
)
def test_a_wrong_order_is_refused(vendor: Vendor, order: dict[str, object]) -> None:
    answer = vendor.lever("POST", "/faults", **order)
    assert answer.status_code == 400
    assert answer.json()["message"]
    assert vendor.world.faults.waiting() == []


def test_revoke_ends_all_tokens(vendor: Vendor) -> None:
    vendor.sign_in()
    assert vendor.lever("POST", "/revoke").status_code == 204
    assert vendor.http.get("/utility-companies").status_code == 401
    assert vendor.sign_in().http.get("/utility-companies").status_code == 200


def test_settings_change_what_they_name(vendor: Vendor) -> None:
    answer = vendor.lever("POST", "/settings", tokenLifetime=60, speed=0)
    assert answer.json() == {"speed": 0, "tokenLifetime": 60, "tokenServerLifetime": 3600}
    vendor.lever("POST", "/settings", tokenServerLifetime=0.001)
    token_of_a_moment = vendor.sign_in().http.headers["authorization"]
    time.sleep(0.01)
    assert vendor.http.get("/utility-companies", headers={"authorization": token_of_a_moment}).status_code == 401
    assert vendor.lever("POST", "/settings", speed="fast").status_code == 400
    assert vendor.lever("POST", "/settings", tokenLifetime=0).status_code == 400


def test_speed_zero_finishes_the_slow_at_once(vendor: Vendor) -> None:
    vendor.lever("POST", "/settings", speed=0)
    job_id = vendor.sign_in().post_job("user_slow").json()["id"]
    assert vendor.http.get(f"/jobs/{job_id}").json()["status"] == "success"


def test_the_log_shows_what_calls_carried(vendor: Vendor) -> None:
    vendor.sign_in().post_job("user_good", "pa\u00df", PGE)
    vendor.http.get("/no%20where?x=%31")
    calls = vendor.lever("GET", "/calls").json()["calls"]
    token, job, nowhere = calls
    assert (token["route"], token["status"], token["method"]) == ("token", 200, "POST")
    assert "sandbox-secret" in token["body"]
    assert (job["route"], job["status"], job["path"]) == ("jobs", 400, "/api/jobs")
    assert job["headers"]["type"] == "PGELogin"
    assert job["headers"]["authorization"].startswith("Bearer ")
    assert "pa\u00df" in job["body"]
    assert (nowhere["route"], nowhere["status"], nowhere["path"]) == (None, 404, "/api/no%20where?x=%31")
    assert token["seq"] < job["seq"] < nowhere["seq"]
    assert abs(token["time"] - time.time()) < 60
    assert [call["seq"] for call in vendor.lever("GET", "/calls?route=jobs").json()["calls"]] == [job["seq"]]
    assert vendor.lever("GET", "/calls?route=x").status_code == 400
    assert vendor.lever("DELETE", "/calls").status_code == 204
    assert vendor.world.calls.all() == []


def test_links_are_shown_with_their_counts(vendor: Vendor) -> None:
    ids = vendor.sign_in().service_accounts("user_quick")
    vendor.link(ids)
    shown = vendor.lever("GET", "/links").json()
    assert [link["serviceAccountIds"] for link in shown["links"]] == [ids]
    assert shown["counts"] == dict.fromkeys(ids, 1)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("success", None), ("incorrect", "incorrect-credential"), ("server-error", "server-error"), ("error", None)],
)
def test_a_job_is_finished_by_hand(vendor: Vendor, outcome: str, status: str | None) -> None:
    job_id = vendor.sign_in().post_job("user_never").json()["id"]
    assert vendor.lever("POST", f"/jobs/{job_id}", outcome=outcome).status_code == 200
    job = vendor.http.get(f"/jobs/{job_id}").json()
    assert job["status"] == ("error" if outcome == "error" else "success")
    assert job.get("response", {}).get("status") == status
    assert vendor.lever("POST", f"/jobs/{job_id}", outcome=outcome).status_code == 409
    assert vendor.lever("POST", "/jobs/unknown", outcome=outcome).status_code == 404
    assert vendor.lever("POST", f"/jobs/{job_id}", outcome="x").status_code == 400


@pytest.mark.parametrize("accounts", [1, 2, 3])
def test_an_oauth_job_is_finished_by_hand_with_one_or_several_accounts(vendor: Vendor, accounts: int) -> None:
    job_id = vendor.sign_in().oauth_job("5eedc0de0000000000000005")
    vendor.lever("POST", f"/jobs/{job_id}", outcome="success", accounts=accounts)
    assert len(vendor.http.get(f"/jobs/{job_id}").json()["response"]["accounts"]) == accounts


def test_reset_forgets_everything(vendor: Vendor) -> None:
    ids = vendor.sign_in().service_accounts("user_quick")
    vendor.link(ids)
    vendor.world.faults.add("token", "hang", times=None)
    vendor.lever("POST", "/settings", speed=7)
    assert vendor.lever("POST", "/reset").status_code == 204
    assert vendor.http.get("/utility-companies").status_code == 401
    assert vendor.lever("GET", "/links").json() == {"links": [], "counts": {}}
    assert [call.path for call in vendor.world.calls.all()] == ["/api/utility-companies"]
    assert vendor.world.settings.speed == 0.02
    assert vendor.sign_in().link(ids).status_code == 400


@pytest.mark.parametrize("path", ["", "/"])
def test_the_sandbox_says_what_it_is(vendor: Vendor, path: str) -> None:
    shown = vendor.lever("GET", path).json()
    assert shown["sandbox"] is True
    assert shown["companies"] == 18


def test_a_stopping_server_ends_hung_calls_and_starts_again_where_it_was() -> None:
    server = SandboxServer(speed=0).start()
    with httpx.Client(base_url=server.url, trust_env=False, verify=NO_TLS) as http:
        server.world.faults.add("companies", "hang")
        with pytest.raises(httpx.ReadTimeout):
            http.get("/utility-companies", timeout=0.02)
        url = server.url
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 2
        with pytest.raises(httpx.ConnectError):
            http.get("/utility-companies")
        with server:
            assert server.url == url
            assert http.get("/utility-companies").status_code == 401


def test_a_taken_port_is_told(vendor: Vendor) -> None:
    with pytest.raises(OSError, match="in use"):
        SandboxServer(port=vendor.server.port).start()


def test_sign_in_addresses_may_have_an_origin_of_their_own() -> None:
    with SandboxServer(public_url="http://browser.example:1/") as server:
        token = server.world.issue_token()
        companies = httpx.get(
            f"{server.url}/utility-companies",
            headers={"authorization": f"Bearer {token}"},
            trust_env=False,
            verify=NO_TLS,
        ).json()
    assert companies[3]["loginUrl"] == f"http://browser.example:1/sign-in/{PGE}"
