from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from service.sandbox.companies import COMPANIES
from service.sandbox.world import ACCOUNT_ID, CLIENT_ID, SECRET, Settings, World

if TYPE_CHECKING:
    import httpx

    from tests.sandbox.conftest import Vendor

APS = "5eedc0de0000000000000001"
PGE = "5eedc0de0000000000000004"
SDGE = "5eedc0de0000000000000005"
ACACIA = "5eedc0de0000000000000101"
GOOD_TOKEN_BODY = {"clientId": CLIENT_ID, "secret": SECRET, "name": "Omnimetic"}
JSON = {"content-type": "application/json"}


def test_a_token_is_a_jwt_of_the_account(vendor: Vendor) -> None:
    answer = vendor.token()
    assert answer.status_code == 200
    assert answer.json()["id"] == ACCOUNT_ID
    segments = answer.json()["token"].split(".")
    header, claims = (json.loads(base64.urlsafe_b64decode(segment + "==")) for segment in segments[:2])
    assert len(segments) == 3
    assert header == {"alg": "HS256", "typ": "JWT"}
    assert claims["accountId"] == ACCOUNT_ID
    assert claims["exp"] - claims["iat"] == 24 * 3600
    assert vendor.token().json()["token"] != answer.json()["token"]


@pytest.mark.parametrize("wrong", [{"clientId": "x"}, {"secret": "x"}])
def test_wrong_credentials_get_401(vendor: Vendor, wrong: dict[str, str]) -> None:
    assert vendor.http.post("/access-token", json={**GOOD_TOKEN_BODY, **wrong}).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"clientId": "sandbox-client-id", "secret": "sandbox-secret"}',
        json.dumps({**GOOD_TOKEN_BODY, "name": "omnimetic"}).encode(),
        json.dumps({**GOOD_TOKEN_BODY, "more": "x"}).encode(),
        json.dumps({**GOOD_TOKEN_BODY, "secret": 1}).encode(),
        json.dumps({**GOOD_TOKEN_BODY, "secret": ""}).encode(),
        json.dumps(GOOD_TOKEN_BODY).encode("utf-16"),
        b'{"clientId": "sandbox-client-id", "secret": "x", "secret": "sandbox-secret", "name": "Omnimetic"}',
        b'{"clientId": "\\ud800", "secret": "sandbox-secret", "name": "Omnimetic"}',
        b'{"clientId": NaN, "secret": "sandbox-secret", "name": "Omnimetic"}',
        b"[" * 100_000,
    ],
)
def test_a_malformed_token_body_gets_400(vendor: Vendor, body: bytes) -> None:
    assert vendor.http.post("/access-token", content=body, headers=JSON).status_code == 400


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/json; charset=latin-1"])
def test_a_body_must_be_declared_as_json(vendor: Vendor, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    answer = vendor.http.post("/access-token", content=json.dumps(GOOD_TOKEN_BODY), headers=headers)
    assert answer.status_code == 400


def test_the_content_type_of_the_widget_is_accepted(vendor: Vendor) -> None:
    headers = {"content-type": "application/json;charset=UTF-8"}
    answer = vendor.http.post("/access-token", content=json.dumps(GOOD_TOKEN_BODY), headers=headers)
    assert answer.status_code == 200


def all_other_calls(vendor: Vendor) -> list[httpx.Response]:
    return [
        vendor.http.get("/utility-companies"),
        vendor.post_job("user_good"),
        vendor.http.get("/jobs/x"),
        vendor.http.get("/utility-user-account/x"),
        vendor.link(["x"]),
        vendor.http.get(f"/accounts/{ACCOUNT_ID}/utility-service-accounts/x/download-data"),
    ]


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer x", "bearer {token}", "Basic {token}", "Bearer  {token}"])
def test_every_other_call_needs_a_bearer(vendor: Vendor, header: str | None) -> None:
    token = vendor.token().json()["token"]
    if header is not None:
        vendor.http.headers["authorization"] = header.format(token=token)
    answers = all_other_calls(vendor)
    assert [answer.status_code for answer in answers] == [401] * 6
    assert answers[0].headers["www-authenticate"] == "Bearer"


def test_a_token_of_elsewhere_is_refused(vendor: Vendor) -> None:
    vendor.http.headers["authorization"] = f"Bearer {World().issue_token()}"
    assert vendor.http.get("/utility-companies").status_code == 401


def test_a_token_ends_after_the_shorter_of_its_lives() -> None:
    now = 0.0
    world = World(clock=lambda: now, settings=Settings(token_lifetime=100, token_server_lifetime=50))
    token = world.issue_token()
    now = 49.9
    assert world.tokens.valid(token)
    now = 50.0
    assert not world.tokens.valid(token)


def test_the_companies_are_the_known_six_and_twelve_more(vendor: Vendor) -> None:
    companies = vendor.sign_in().http.get("/utility-companies").json()
    assert len(companies) == 18
    assert [company["name"] for company in companies[:6]] == [
        "Arizona Public Service",
        "Salt River Project",
        "Tuscan Electric Power",
        "Pacific Gas and Electric Company",
        "San Diego Gas & Electric",
        "Southern California Edison",
    ]
    assert all(
        company["logo"].startswith("data:image/svg+xml,") and " " not in company["logo"] for company in companies
    )
    sign_ins = {company["id"]: company["loginUrl"] for company in companies if "loginUrl" in company}
    assert sign_ins == {
        company_id: f"{vendor.server.origin}/sign-in/{company_id}"
        for company_id in (PGE, "5eedc0de000000000000010b", "5eedc0de000000000000010c")
    }


@pytest.mark.parametrize("company", COMPANIES)
def test_a_job_is_accepted_with_the_header_of_its_company_and_no_other(vendor: Vendor, company: str) -> None:
    vendor.sign_in()
    oauth = COMPANIES[company].sign_in == "oauth"
    username, password = ("username", "password") if oauth else ("user_good", "pass_good")
    body = {"username": username, "password": password, "utilityCompanyId": company}
    accepted = vendor.post_job(username, password, company)
    assert accepted.status_code == 201
    assert accepted.json()["status"] == "pending"
    assert len(bytes.fromhex(accepted.json()["id"])) == 12
    wrong: dict[str, str] = {} if COMPANIES[company].job_type else {"type": "APSLogin"}
    assert vendor.http.post("/jobs", json=body, headers=wrong).status_code == 400
    assert vendor.http.post("/jobs", json=body, headers={"type": "OtherLogin"}).status_code == 400


@pytest.mark.parametrize(
    "change",
    [{"utilityCompanyId": "x"}, {"more": "x"}, {"password": ""}, {"username": None}, {"username": ["user_good"]}],
)
def test_a_malformed_job_gets_400(vendor: Vendor, change: dict[str, object]) -> None:
    body = {"username": "user_good", "password": "pass_good", "utilityCompanyId": APS, **change}
    assert vendor.sign_in().http.post("/jobs", json=body, headers={"type": "APSLogin"}).status_code == 400


def test_an_oauth_company_takes_no_real_credentials(vendor: Vendor) -> None:
    assert vendor.sign_in().post_job("user_good", "pass_good", SDGE).status_code == 400


@pytest.mark.parametrize(
    "content", ["[]", "{}", '"a"', '["a", "a"]', "[1]", '[""]', '{"serviceAccountIds": ["a"]}', '["unknown"]', ""]
)
def test_a_malformed_batch_gets_400_and_links_nothing(vendor: Vendor, content: str) -> None:
    path = f"/{ACCOUNT_ID}/utility-service-accounts/batch"
    assert vendor.sign_in().http.post(path, content=content, headers=JSON).status_code == 400
    assert vendor.world.links == []


def test_a_batch_is_for_the_account_of_the_token(vendor: Vendor) -> None:
    ids = vendor.sign_in().service_accounts("user_quick")
    answer = vendor.http.post("/5eedc0de00000000000acc02/utility-service-accounts/batch", json=ids)
    assert answer.status_code == 403
    assert vendor.world.links == []


def test_one_unknown_id_spoils_the_batch(vendor: Vendor) -> None:
    ids = vendor.sign_in().service_accounts("user_quick")
    assert vendor.link([*ids, "5eedc0de"]).status_code == 400
    assert vendor.world.link_counts == {}


def test_a_second_posting_is_accepted_and_counted(vendor: Vendor) -> None:
    first, second = vendor.sign_in().service_accounts("user_quick")
    assert vendor.link([first, second]).json() == {"linked": 2}
    assert vendor.link([second]).status_code == 201
    assert vendor.world.link_counts == {first: 1, second: 2}
    assert [link.service_account_ids for link in vendor.world.links] == [(first, second), (second,)]


def test_data_is_given_for_linked_service_accounts_only(vendor: Vendor) -> None:
    first, second = vendor.sign_in().service_accounts("user_quick")
    vendor.link([first])
    path = "/accounts/{}/utility-service-accounts/{}/download-data"
    assert vendor.http.get(path.format(ACCOUNT_ID, first)).json()["serviceAccountId"] == first
    assert vendor.http.get(path.format(ACCOUNT_ID, second)).status_code == 404
    assert vendor.http.get(path.format("other", first)).status_code == 403


def test_what_does_not_exist_gets_404(vendor: Vendor) -> None:
    vendor.sign_in()
    for path in ("/jobs/x", "/utility-user-account/x", "/jobs/", "/nowhere", "/api/utility-companies", "/"):
        assert vendor.http.get(path).status_code == 404, path


def test_method_query_and_body_must_fit_the_call(vendor: Vendor) -> None:
    vendor.sign_in()
    assert vendor.http.put("/jobs", json={}).status_code == 405
    assert vendor.http.get("/utility-companies?x=1").status_code == 400
    assert vendor.http.request("GET", "/utility-companies", json={}).status_code == 400


def test_headers_must_not_be_repeated(vendor: Vendor) -> None:
    token = vendor.token().json()["token"]
    headers = [("authorization", f"Bearer {token}"), ("authorization", f"Bearer {token}")]
    assert vendor.http.get("/utility-companies", headers=headers).status_code == 400


def test_paths_work_without_the_prefix_too(vendor: Vendor) -> None:
    vendor.sign_in()
    assert vendor.http.get(f"{vendor.server.origin}/utility-companies").status_code == 200
