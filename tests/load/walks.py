"""Persons who link their accounts: each walks the four steps once, over connections of their own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from service.sandbox.world import CLIENT_ID, SECRET
from service.settings import SANDBOX_API_KEY
from tests.load.client import Answer, Broken, Connection, Stream
from tests.walk import APS, PASSWORD

__all__ = ["Opened", "link_by_polling", "link_by_stream", "link_by_widget", "opened", "pending", "ready"]

_POLL_SECONDS: Final = 1.0
"""As the vendor's widget does, and as our `Retry-After` says."""

_WAIT_SECONDS: Final = 25
_TTL_SECONDS: Final = 4 * 3600


class Opened:
    """A session, and a connection of whoever holds its token."""

    def __init__(self, connection: Connection, session_id: str, token: str) -> None:
        self.connection = connection
        self.id = session_id
        self.token = token

    @property
    def path(self) -> str:
        """Where the session is."""
        return f"/v1/sessions/{self.id}"

    async def call(self, method: str, path: str, *, body: object = None, **headers: str) -> Answer:
        """A call as the session's person."""
        return await self.connection.send(method, path, token=self.token, body=body, headers=headers)

    async def validate(self, username: str, **headers: str) -> dict[str, Any]:
        """Sign in; what the validation is then."""
        body = {"providerId": APS, "username": username, "password": PASSWORD}
        answer = await self.call("POST", f"{self.path}/validations", body=body, **headers)
        validation: dict[str, Any] = expect(answer, 201, 202)["validation"]
        return validation

    async def look(self, validation_id: str, **headers: str) -> str:
        """How a validation stands."""
        answer = await self.call("GET", f"{self.path}/validations/{validation_id}", **headers)
        return str(expect(answer, 200)["validation"]["state"])

    async def link_all(self) -> None:
        """Steps 3 and 4."""
        found = expect(await self.call("GET", f"{self.path}/service-accounts"), 200)["serviceAccounts"]
        body = {"serviceAccountIds": [each["id"] for each in found]}
        expect(await self.call("POST", f"{self.path}/links", body=body), 201)


def expect(answer: Answer, *statuses: int) -> Any:
    """The body of an answer that must have one of these statuses.

    Raises:
        Broken: It has another.
    """
    if answer.status not in statuses:
        raise Broken(f"{answer.status}: {answer.body[:300].decode(errors='replace')}")
    return answer.json()


@asynccontextmanager
async def opened(origin: str) -> AsyncIterator[Opened]:
    """Step 1, by the host's server, for a session that outlives the run."""
    body = {"ttlSeconds": _TTL_SECONDS}
    async with Connection.to(origin) as connection:
        answer = await connection.send("POST", "/v1/sessions", token=SANDBOX_API_KEY, body=body)
        session = expect(answer, 201)["session"]
        yield Opened(connection, session["id"], session["token"])


async def link_by_polling(origin: str, username: str) -> None:
    """Through this service or a peer with the same calls, asking once a second."""
    async with opened(origin) as session:
        expect(await session.call("GET", "/v1/providers"), 200)
        validation = await session.validate(username)
        state = validation["state"]
        while state == "pending":
            await asyncio.sleep(_POLL_SECONDS)
            state = await session.look(validation["id"])
        if state != "succeeded":
            raise Broken(state)
        await session.link_all()


async def link_by_stream(origin: str, username: str) -> None:
    """Through this service, told by events."""
    async with opened(origin) as session:
        expect(await session.call("GET", "/v1/providers"), 200)
        stream = Stream(until=b"\nevent: validation.succeeded")
        try:
            await stream.open(origin, f"{session.path}/events", token=session.token)
            await session.validate(username)
            await stream.finished
            await session.link_all()
        finally:
            stream.close()


async def link_by_widget(upstream_url: str, username: str) -> None:
    """As the vendor's widget does it, with the secret in the page and no server of the host's."""
    origin, _, prefix = upstream_url.rpartition("/")
    prefix = f"/{prefix}"
    async with Connection.to(origin) as connection:
        body: object = {"clientId": CLIENT_ID, "secret": SECRET, "name": "Omnimetic"}
        access = expect(await connection.send("POST", f"{prefix}/access-token", body=body), 200)
        token = access["token"]
        expect(await connection.send("GET", f"{prefix}/utility-companies", token=token), 200)
        body = {"username": username, "password": PASSWORD, "utilityCompanyId": APS}
        headers = {"type": "APSLogin"}
        sent = await connection.send("POST", f"{prefix}/jobs", token=token, body=body, headers=headers)
        job_id = expect(sent, 201)["id"]
        job: dict[str, Any] = {"status": "pending"}
        while job["status"] == "pending":
            await asyncio.sleep(_POLL_SECONDS)
            job = expect(await connection.send("GET", f"{prefix}/jobs/{job_id}", token=token), 200)
        account_id = job["response"]["accountId"]
        account = expect(await connection.send("GET", f"{prefix}/utility-user-account/{account_id}", token=token), 200)
        ids = [each["id"] for each in account["serviceAccounts"]]
        batch = f"{prefix}/{access['id']}/utility-service-accounts/batch"
        expect(await connection.send("POST", batch, token=token, body=ids), 201)


async def ready(origin: str, username: str, turns: asyncio.Semaphore) -> tuple[str, str]:
    """A session whose service accounts can be read: its path and token."""
    async with turns, opened(origin) as session:
        validation = await session.validate(username, Prefer=f"wait={_WAIT_SECONDS}")
        state = validation["state"]
        while state == "pending":
            await asyncio.sleep(_POLL_SECONDS / 5)
            state = await session.look(validation["id"])
        if state != "succeeded":
            raise Broken(state)
        return session.path, session.token


async def pending(origin: str, username: str, turns: asyncio.Semaphore) -> tuple[str, str, str]:
    """A session with a validation under way: path, token, and the validation's id."""
    async with turns, opened(origin) as session:
        validation = await session.validate(username)
        return session.path, session.token, validation["id"]
