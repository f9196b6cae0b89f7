"""The vendor's seven calls with one answer each, for upstreams that must cost as little as possible."""

import time
from typing import Final

import jwt
import orjson

from service.sandbox.companies import COMPANIES
from service.sandbox.people import account_of
from service.sandbox.world import ACCOUNT_ID
from tests.walk import APS

__all__ = ["ACCOUNT_PATH", "PREFIX", "answers", "long_token"]

PREFIX: Final = "/api"
_JOB_ID: Final = "5eedc0de0000000000000b01"
_FOUND: Final = account_of("user_good", COMPANIES[APS])
_TOKEN_SECONDS: Final = 24 * 3600

ACCOUNT_PATH: Final = f"/utility-user-account/{_FOUND.id}"
"""The read that is measured, without the prefix."""


def long_token() -> str:
    """A token in the vendor's form that outlives the run."""
    claims = {"accountId": ACCOUNT_ID, "iat": int(time.time()), "exp": int(time.time()) + _TOKEN_SECONDS}
    return jwt.encode(claims, "load" * 8, algorithm="HS256")


def answers() -> dict[tuple[str, str], tuple[int, bytes]]:
    """Status and body by method and path; a job is finished as soon as somebody asks."""
    company = COMPANIES[APS]
    listed = {"id": company.id, "name": company.name, "url": company.url, "logo": company.logo}
    found = {"status": "success", "response": {"accountId": _FOUND.id}}
    table: dict[tuple[str, str], tuple[int, object]] = {
        ("POST", "/access-token"): (200, {"id": ACCOUNT_ID, "token": long_token()}),
        ("GET", "/utility-companies"): (200, [listed]),
        ("POST", "/jobs"): (201, {"id": _JOB_ID, "status": "pending"}),
        ("GET", f"/jobs/{_JOB_ID}"): (200, found),
        ("GET", ACCOUNT_PATH): (200, _FOUND.as_json()),
        ("POST", f"/{ACCOUNT_ID}/utility-service-accounts/batch"): (201, {"linked": len(_FOUND.service_accounts)}),
    }
    return {key: (status, orjson.dumps(body)) for key, (status, body) in table.items()}
