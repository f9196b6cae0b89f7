"""The same four steps as a good tutorial would write them: FastAPI, one shared httpx client, the token in Redis.

Sessions are JSON in Redis and checked at every call. There is no cleverness: every read asks the vendor.
Settings are `UPSTREAM_URL`, `REDIS_URL`, `CLIENT_ID`, `CLIENT_SECRET` and `API_KEY`.
"""

import json
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import httpx
from fastapi import Depends, FastAPI, HTTPException, Request, status
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from redis.asyncio import Redis

__all__ = ["app"]


TOKEN_SECONDS: Final = 3000
SESSION_SECONDS: Final = 4 * 3600
JOB_TYPES: Final = {"5eedc0de0000000000000001": "APSLogin", "5eedc0de0000000000000002": "SRPLogin"}
"""By the id of the utility company."""

bearer: Final = HTTPBearer()


class Credentials(BaseModel):
    provider_id: str = Field(alias="providerId")
    username: str
    password: str


class Choice(BaseModel):
    service_account_ids: list[str] = Field(alias="serviceAccountIds", min_length=1)


class Session(BaseModel):
    id: str
    job_id: str | None = None
    account_id: str | None = None


class Address(BaseModel):
    street: str
    city: str
    state: str
    postal_code: str = Field(alias="postalCode")


class ServiceAccount(BaseModel):
    id: str
    address: Address
    meter_number: str | None = Field(None, alias="meterNumber")
    legal_names: Sequence[str] = Field((), alias="legalNames")


class Vendor:
    """Calls to the vendor with the shared token."""

    def __init__(self, client: httpx.AsyncClient, redis: Redis) -> None:
        self.client = client
        self.redis = redis

    async def call(self, method: str, path: str, **options: Any) -> Any:
        token = await self.token()
        headers = options.pop("headers", {}) | {"Authorization": f"Bearer {token['token']}"}
        answer = await self.client.request(method, path, headers=headers, **options)
        if answer.is_error:
            raise HTTPException(status.HTTP_502_BAD_GATEWAY, "the vendor failed")
        return answer.json()

    async def token(self) -> dict[str, str]:
        cached = await self.redis.get("token")
        if cached is None:
            body = {"clientId": os.environ["CLIENT_ID"], "secret": os.environ["CLIENT_SECRET"], "name": "Omnimetic"}
            answer = await self.client.post("/access-token", json=body)
            answer.raise_for_status()
            cached = answer.text
            await self.redis.set("token", cached, ex=TOKEN_SECONDS)
        token: dict[str, str] = json.loads(cached)
        return token


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with (
        httpx.AsyncClient(base_url=os.environ["UPSTREAM_URL"], timeout=10) as client,
        Redis.from_url(os.environ["REDIS_URL"], decode_responses=True) as redis,
    ):
        app.state.vendor = Vendor(client, redis)
        yield


async def vendor(request: Request) -> Vendor:
    found: Vendor = request.app.state.vendor
    return found


CurrentVendor = Annotated[Vendor, Depends(vendor)]
Bearer = Annotated[HTTPAuthorizationCredentials, Depends(bearer)]


async def current_session(session_id: str, presented: Bearer, vendor: CurrentVendor) -> Session:
    stored = await vendor.redis.get(f"session:{presented.credentials}")
    session = Session.model_validate_json(stored) if stored else None
    if session is None:
        raise HTTPException(status.HTTP_401_UNAUTHORIZED, "unknown session")
    if session.id != session_id:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "unknown session")
    return session


CurrentSession = Annotated[Session, Depends(current_session)]


async def save(vendor: Vendor, token: str, session: Session) -> None:
    await vendor.redis.set(f"session:{token}", session.model_dump_json(), ex=SESSION_SECONDS)


app: Final = FastAPI(lifespan=lifespan)


@app.get("/livez")
async def live() -> dict[str, str]:
    return {"status": "OM200"}


@app.post("/v1/sessions", status_code=201)
async def open_session(presented: Bearer, vendor: CurrentVendor) -> dict[str, Any]:
    if not secrets.compare_digest(presented.credentials, os.environ["API_KEY"]):
        raise HTTPException(status.HTTP_401_UNAUTHORIZED, "unknown API key")
    await vendor.token()
    session, token = Session(id=secrets.token_hex(16)), secrets.token_urlsafe(32)
    await save(vendor, token, session)
    return {"status": "OM200", "session": {"id": session.id, "token": token}}


@app.get("/v1/providers")
async def list_providers(_presented: Bearer, vendor: CurrentVendor) -> dict[str, Any]:
    return {"status": "OM200", "providers": await vendor.call("GET", "/utility-companies")}


@app.post("/v1/sessions/{session_id}/validations", status_code=202)
async def validate(
    session: CurrentSession, presented: Bearer, vendor: CurrentVendor, given: Credentials
) -> dict[str, Any]:
    job_type = JOB_TYPES.get(given.provider_id)
    headers = {"type": job_type} if job_type else {}
    body = {"username": given.username, "password": given.password, "utilityCompanyId": given.provider_id}
    job = await vendor.call("POST", "/jobs", json=body, headers=headers)
    session.job_id = job["id"]
    await save(vendor, presented.credentials, session)
    return {"status": "OM200", "validation": {"id": session.job_id, "state": "pending"}}


@app.get("/v1/sessions/{session_id}/validations/{validation_id}")
async def show_validation(
    session: CurrentSession, presented: Bearer, vendor: CurrentVendor, validation_id: str
) -> dict[str, Any]:
    if validation_id != session.job_id:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "unknown validation")
    job = await vendor.call("GET", f"/jobs/{session.job_id}")
    state = "pending"
    if job["status"] == "error":
        state = "failed"
    elif job["status"] == "success":
        session.account_id = job["response"].get("accountId")
        state = "succeeded" if session.account_id else "rejected"
        await save(vendor, presented.credentials, session)
    return {"status": "OM200", "validation": {"id": session.job_id, "state": state}}


@app.get("/v1/sessions/{session_id}/service-accounts")
async def list_service_accounts(session: CurrentSession, vendor: CurrentVendor) -> dict[str, Any]:
    if session.account_id is None:
        raise HTTPException(status.HTTP_409_CONFLICT, "nothing validated yet")
    account = await vendor.call("GET", f"/utility-user-account/{session.account_id}")
    found = [ServiceAccount.model_validate(each) for each in account["serviceAccounts"]]
    return {"status": "OM200", "serviceAccounts": [each.model_dump(by_alias=True) for each in found]}


@app.post("/v1/sessions/{session_id}/links", status_code=201)
async def link(_session: CurrentSession, vendor: CurrentVendor, choice: Choice) -> dict[str, Any]:
    token = await vendor.token()
    await vendor.call("POST", f"/{token['id']}/utility-service-accounts/batch", json=choice.service_account_ids)
    linked = [{"id": each} for each in choice.service_account_ids]
    return {"status": "OM200", "accountId": token["id"], "serviceAccounts": linked}
