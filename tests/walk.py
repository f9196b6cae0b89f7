"""A person's walk through the four steps over HTTP, as a frontend would do it."""

import re
from typing import Any, Final

import httpx

__all__ = ["APS", "PASSWORD", "PGE", "SCE", "SRP", "Walk", "sign_in"]

APS: Final = "5eedc0de0000000000000001"
SRP: Final = "5eedc0de0000000000000002"
PGE: Final = "5eedc0de0000000000000004"
SCE: Final = "5eedc0de0000000000000006"
PASSWORD: Final = "pass_good"


async def sign_in(client: httpx.AsyncClient, page: str, *, approve: bool = True) -> httpx.Response:
    """Decide at the sandbox's sign-in page; approving grants all accounts on it."""
    if not approve:
        return await client.post(page, data={"decision": "deny"})
    offered = re.findall(r"name=[\"']?account[\"']? value=[\"']?([A-Za-z0-9_-]+)", (await client.get(page)).text)
    return await client.post(page, data={"decision": "approve", "account": offered})


class Walk:
    """One session, and the calls that its person makes. Methods return the raw answer unless they say otherwise."""

    def __init__(self, client: httpx.AsyncClient, *, api_key: str) -> None:
        self.client = client
        self.server_headers = {"Authorization": f"Bearer {api_key}"}
        self.id = ""
        self.token = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def path(self) -> str:
        return f"/v1/sessions/{self.id}"

    def at(self, client: httpx.AsyncClient) -> "Walk":
        """The same session, at another replica."""
        other = Walk(client, api_key="")
        other.server_headers, other.id, other.token = self.server_headers, self.id, self.token
        return other

    async def open(self, **body: Any) -> "Walk":
        """Open the session; it must work."""
        answer = await self.client.post("/v1/sessions", headers=self.server_headers, json=body)
        assert answer.status_code == 201, answer.text
        session = answer.json()["session"]
        self.id, self.token = session["id"], session["token"]
        return self

    async def validate(
        self,
        username: str | None = "user_good",
        password: str = PASSWORD,
        *,
        provider: str = APS,
        wait: int | None = 20,
    ) -> httpx.Response:
        body = {"providerId": provider}
        if username is not None:
            body |= {"username": username, "password": password}
        headers = self.headers | ({"Prefer": f"wait={wait}"} if wait is not None else {})
        return await self.client.post(f"{self.path}/validations", headers=headers, json=body)

    async def validation(self, validation_id: str, *, wait: int | None = None) -> httpx.Response:
        headers = self.headers | ({"Prefer": f"wait={wait}"} if wait is not None else {})
        return await self.client.get(f"{self.path}/validations/{validation_id}", headers=headers)

    async def accounts(self, **headers: str) -> httpx.Response:
        return await self.client.get(f"{self.path}/service-accounts", headers=self.headers | headers)

    async def account_ids(self) -> list[str]:
        """Ids of all service accounts; it must work."""
        answer = await self.accounts()
        assert answer.status_code == 200, answer.text
        return [each["id"] for each in answer.json()["serviceAccounts"]]

    async def link(self, ids: list[str], *, key: str | None = None, **body: Any) -> httpx.Response:
        headers = self.headers | ({"Idempotency-Key": key} if key is not None else {})
        return await self.client.post(f"{self.path}/links", headers=headers, json={"serviceAccountIds": ids, **body})

    async def show(self, *, by_server: bool = False) -> httpx.Response:
        return await self.client.get(self.path, headers=self.server_headers if by_server else self.headers)

    async def close(self) -> httpx.Response:
        return await self.client.delete(self.path, headers=self.headers)

    async def ready(self, username: str = "user_good", *, provider: str = APS) -> list[str]:
        """Open, sign in, and return the service accounts to choose from; it must work."""
        await self.open()
        answer = await self.validate(username, provider=provider)
        assert answer.json()["validation"]["state"] == "succeeded", answer.text
        return await self.account_ids()
