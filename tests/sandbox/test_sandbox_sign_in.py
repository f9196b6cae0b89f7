from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from service.sandbox.companies import PGE_CLIENT_ID, PGE_REDIRECT_URI

if TYPE_CHECKING:
    import httpx

    from tests.sandbox.conftest import Vendor

PGE = "5eedc0de0000000000000004"
KESTREL = "5eedc0de000000000000010b"
ACACIA = "5eedc0de0000000000000101"


def page(vendor: Vendor, job_id: str, company: str = PGE, /, **change: str | None) -> httpx.URL:
    query = {
        "client_id": PGE_CLIENT_ID,
        "redirect_uri": PGE_REDIRECT_URI,
        "response_type": "code",
        "state": f"jobId={job_id}",
        **change,
    }
    given = {name: value for name, value in query.items() if value is not None}
    return vendor.http.build_request("GET", f"{vendor.server.origin}/sign-in/{company}", params=given).url


def offered(vendor: Vendor, address: httpx.URL) -> list[str]:
    html = vendor.http.get(address).text
    return [part.split()[0].split(">")[0] for part in html.split("name=account value=")[1:]]


def test_the_page_offers_accounts_and_both_answers(vendor: Vendor) -> None:
    address = page(vendor, vendor.sign_in().oauth_job(PGE))
    answer = vendor.http.get(address)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "Pacific Gas and Electric Company" in answer.text
    assert "value=approve" in answer.text
    assert "value=deny" in answer.text
    nonce = answer.headers["content-security-policy"].split("'nonce-")[1].split("'")[0]
    assert f"<style nonce={nonce}>" in answer.text
    assert len(offered(vendor, address)) == 3


@pytest.mark.parametrize(("ticked", "accounts"), [([0], 1), ([0, 1], 1), ([0, 1, 2], 2)])
def test_approving_ends_the_job_with_what_was_ticked(vendor: Vendor, ticked: list[int], accounts: int) -> None:
    job_id = vendor.sign_in().oauth_job(PGE)
    address = page(vendor, job_id)
    assert vendor.http.get(f"/jobs/{job_id}").json() == {"status": "pending"}
    granted = [offered(vendor, address)[number] for number in ticked]
    assert vendor.http.post(address, data={"decision": "approve", "account": granted}).status_code == 200
    job = vendor.finished(job_id)
    assert job["status"] == "success"
    found = job["response"]["accounts"]
    assert [entry["serviceAccountId"] for entry in found] == granted
    assert len({entry["accountId"] for entry in found}) == accounts
    shown = vendor.http.get(f"/utility-user-account/{found[0]['accountId']}").json()
    assert {account["id"] for account in shown["serviceAccounts"]} <= set(granted)
    assert vendor.link(granted).status_code == 201


def test_denying_is_an_incorrect_credential(vendor: Vendor) -> None:
    job_id = vendor.sign_in().oauth_job(KESTREL)
    address = page(vendor, job_id, KESTREL, client_id=None, redirect_uri=None)
    assert vendor.http.post(address, data={"decision": "deny"}).status_code == 200
    assert vendor.finished(job_id)["response"] == {"status": "incorrect-credential"}


@pytest.mark.parametrize(
    "form", [{}, {"decision": "x"}, {"decision": "approve"}, {"decision": "approve", "account": "x"}]
)
def test_a_form_without_a_decision_changes_nothing(vendor: Vendor, form: dict[str, str]) -> None:
    job_id = vendor.sign_in().oauth_job(PGE)
    assert vendor.http.post(page(vendor, job_id), data=form).status_code == 400
    assert vendor.http.get(f"/jobs/{job_id}").json() == {"status": "pending"}


def test_a_sign_in_is_decided_once(vendor: Vendor) -> None:
    address = page(vendor, vendor.sign_in().oauth_job(PGE))
    vendor.http.post(address, data={"decision": "deny"})
    assert vendor.http.post(address, data={"decision": "deny"}).status_code == 409
    assert vendor.http.get(address).status_code == 409


@pytest.mark.parametrize(
    "change",
    [
        {"state": None},
        {"state": "jobId=unknown"},
        {"state": "{job}"},
        {"state": "jobId={job};secret=x"},
        {"response_type": None},
        {"response_type": "token"},
        {"client_id": None},
        {"client_id": "sandbox-client-id"},
        {"redirect_uri": "https://elsewhere.example"},
        {"secret": "x"},
    ],
)
def test_a_wrong_address_gets_a_400_page(vendor: Vendor, change: dict[str, str | None]) -> None:
    job_id = vendor.sign_in().oauth_job(PGE)
    wanted = {name: value and value.format(job=job_id) for name, value in change.items()}
    answer = vendor.http.get(page(vendor, job_id, **wanted))
    assert answer.status_code == 400
    assert answer.headers["content-type"].startswith("text/html")


def test_the_page_belongs_to_the_company_of_the_job(vendor: Vendor) -> None:
    job_id = vendor.sign_in().oauth_job(PGE)
    assert vendor.http.get(page(vendor, job_id, KESTREL)).status_code == 400
    assert vendor.http.get(page(vendor, job_id, ACACIA)).status_code == 404
    assert vendor.http.get(page(vendor, job_id, "x")).status_code == 404
