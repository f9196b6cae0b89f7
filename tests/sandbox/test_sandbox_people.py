from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.sandbox.companies import COMPANIES
from service.sandbox.world import World

if TYPE_CHECKING:
    from tests.sandbox.conftest import Vendor

APS = "5eedc0de0000000000000001"
INCORRECT = {"status": "success", "response": {"status": "incorrect-credential"}}


@pytest.mark.parametrize(
    ("username", "accounts"),
    [("user_good", 2), ("user_one", 1), ("user_none", 0), ("user_forty", 40), ("user_quick", 2), ("user_slow", 2)],
)
def test_a_good_person_has_service_accounts(vendor: Vendor, username: str, accounts: int) -> None:
    job = vendor.sign_in().outcome(username)
    assert job["status"] == "success"
    account = vendor.http.get(f"/utility-user-account/{job['response']['accountId']}").json()
    assert account["id"] == job["response"]["accountId"]
    assert account["name"].endswith("Arizona Public Service")
    assert "internalRating" in account
    assert len({found["id"] for found in account["serviceAccounts"]}) == accounts
    for found in account["serviceAccounts"]:
        assert set(found["address"]) == {"street", "city", "state", "postalCode"}
        assert len(bytes.fromhex(found["id"])) == 12


def test_some_service_accounts_have_no_meter_number(vendor: Vendor) -> None:
    job = vendor.sign_in().outcome("user_good")
    account = vendor.http.get(f"/utility-user-account/{job['response']['accountId']}").json()
    assert ["meterNumber" in found for found in account["serviceAccounts"]] == [True, False]


@pytest.mark.parametrize(
    ("username", "password", "expected"),
    [
        ("user_good", "wrong", INCORRECT),
        ("user_never", "wrong", INCORRECT),
        ("nobody", "pass_good", INCORRECT),
        ("user_bad", "pass_good", INCORRECT),
        ("user_server_error", "pass_good", {"status": "success", "response": {"status": "server-error"}}),
        ("user_job_error", "pass_good", {"status": "error"}),
    ],
)
def test_the_others_end_as_their_names_say(vendor: Vendor, username: str, password: str, expected: Any) -> None:
    assert vendor.sign_in().outcome(username, password) == expected


@pytest.mark.parametrize(
    ("username", "password", "seconds"),
    [
        ("user_good", "pass_good", 2),
        ("user_quick", "pass_good", 0),
        ("user_slow", "pass_good", 15),
        ("user_good", "x", 1),
    ],
)
def test_a_job_takes_its_time(username: str, password: str, seconds: float) -> None:
    now = 100.0
    world = World(clock=lambda: now)
    job = world.create_job(COMPANIES[APS], username, password)
    now = 100.0 + seconds - 0.1
    assert not (found := world.job(job.id)) or not found.finished or seconds == 0
    now = 100.0 + seconds
    assert (found := world.job(job.id))
    assert found.finished


def test_user_never_never_ends() -> None:
    now = 0.0
    world = World(clock=lambda: now)
    job = world.create_job(COMPANIES[APS], "user_never", "pass_good")
    now = 1e12
    assert (found := world.job(job.id))
    assert not found.finished


def test_a_person_keeps_the_same_ids(vendor: Vendor) -> None:
    assert vendor.sign_in().outcome("user_quick") == vendor.outcome("user_quick")
    assert vendor.service_accounts("user_quick") == vendor.service_accounts("user_quick")
    other = vendor.outcome("user_quick", company="5eedc0de0000000000000002")
    assert other != vendor.outcome("user_quick")


def test_nothing_is_known_before_the_job_has_ended(vendor: Vendor) -> None:
    ids = vendor.sign_in().service_accounts("user_quick")
    vendor.world.reset()
    assert vendor.sign_in().link(ids).status_code == 400


def test_user_link_refused_is_refused(vendor: Vendor) -> None:
    ids = vendor.sign_in().service_accounts("user_link_refused")
    assert vendor.link(ids).status_code == 400
    assert vendor.world.links == []


def test_user_link_lost_is_linked_and_never_told(vendor: Vendor) -> None:
    ids = vendor.sign_in().service_accounts("user_link_lost")
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        vendor.link(ids)
    assert vendor.world.link_counts == dict.fromkeys(ids, 1)
    assert vendor.world.calls.all("batch")[0].status is None


def test_user_token_revoked_loses_the_token_once_per_job(vendor: Vendor) -> None:
    job_id = vendor.sign_in().post_job("user_token_revoked").json()["id"]
    assert vendor.http.get(f"/jobs/{job_id}").status_code == 401
    assert vendor.sign_in().finished(job_id)["status"] == "success"
