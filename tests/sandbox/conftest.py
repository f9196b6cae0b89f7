import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.sandbox.companies import COMPANIES
from service.sandbox.people import PASSWORD
from service.sandbox.pytest_plugin import omniconnect_sandbox, omniconnect_sandbox_server
from service.sandbox.server import SandboxServer
from service.sandbox.world import ACCOUNT_ID, CLIENT_ID, SECRET, World
from tests.plain import NO_TLS

__all__ = ["omniconnect_sandbox", "omniconnect_sandbox_server", "vendor"]

APS = "5eedc0de0000000000000001"
PATIENCE_SECONDS = 5.0


class Vendor:
    """A correct client of the sandbox, step by step."""

    def __init__(self, server: SandboxServer, http: httpx.Client) -> None:
        self.server = server
        self.http = http

    @property
    def world(self) -> World:
        return self.server.world

    def token(self) -> httpx.Response:
        return self.http.post("/access-token", json={"clientId": CLIENT_ID, "secret": SECRET, "name": "Omnimetic"})

    def sign_in(self) -> "Vendor":
        self.http.headers["authorization"] = f"Bearer {self.token().json()['token']}"
        return self

    def post_job(self, username: str, password: str = PASSWORD, company: str = APS) -> httpx.Response:
        job_type = COMPANIES[company].job_type
        return self.http.post(
            "/jobs",
            json={"username": username, "password": password, "utilityCompanyId": company},
            headers={"type": job_type} if job_type else {},
        )

    def finished(self, job_id: str) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (job := self.http.get(f"/jobs/{job_id}").json())["status"] == "pending":
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return job

    def outcome(self, username: str, password: str = PASSWORD, company: str = APS) -> Any:
        return self.finished(self.post_job(username, password, company).json()["id"])

    def service_accounts(self, username: str) -> list[str]:
        account_id = self.outcome(username)["response"]["accountId"]
        account = self.http.get(f"/utility-user-account/{account_id}").json()
        return [found["id"] for found in account["serviceAccounts"]]

    def link(self, ids: list[str]) -> httpx.Response:
        return self.http.post(f"/{ACCOUNT_ID}/utility-service-accounts/batch", json=ids)

    def lever(self, method: str, path: str, **json: object) -> httpx.Response:
        return self.http.request(method, f"{self.server.origin}/_sandbox{path}", json=json or None)

    def oauth_job(self, company: str) -> str:
        job_id: str = self.post_job("username", "password", company).json()["id"]
        return job_id


@pytest.fixture
def vendor(omniconnect_sandbox: SandboxServer) -> Iterator[Vendor]:
    with httpx.Client(base_url=omniconnect_sandbox.url, timeout=5, trust_env=False, verify=NO_TLS) as http:
        yield Vendor(omniconnect_sandbox, http)
