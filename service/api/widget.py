"""`/api`: the paths that the vendor's own widget calls, answered through the very same steps as `/v1`.

What the widget sends and expects: `service/upstream/README.md`. The page's `secret` is not used, unless it is a session
token that the host's server made: then the link belongs to that session.
"""

from typing import Annotated, Any, Final

from fastapi import Body, Request
from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints
from pydantic.alias_generators import to_camel
from starlette.responses import Response

from service.api.address import client_address
from service.api.caller import PageDoor, WidgetSession, steps
from service.api.envelope import answer, encode, failure
from service.api.routing import RouteKind, make_router
from service.clock import LONGEST_WAIT_SECONDS
from service.errors import (
    FieldError,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    Unauthenticated,
    UpstreamCredentialsRejected,
    UpstreamUnavailable,
)
from service.link.access import SESSION_TOKEN_PREFIX
from service.link.attempt import Choice
from service.link.outcome import LINKED
from service.link.validate import Credentials
from service.stores.records import ValidationRecord

__all__ = ["router"]

UpstreamId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,128}$")]

_JSON: Final = "application/json"

router: Final = make_router("/api", "widget", RouteKind.WIDGET)


class _Lenient(BaseModel):
    """The widget's builds differ in what else they send."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True, hide_input_in_errors=True)


class AccessTokenRequest(_Lenient):
    """What the widget was configured with."""

    client_id: str = ""
    secret: SecretStr = SecretStr("")


class JobRequest(_Lenient):
    """What the person typed."""

    utility_company_id: UpstreamId
    username: Annotated[SecretStr, Field(max_length=320)] | None = None
    password: Annotated[SecretStr, Field(max_length=1024)] | None = None


ServiceAccountIds = Annotated[list[UpstreamId], Field(min_length=1, max_length=200)]


@router.post("/access-token", include_in_schema=False)
async def widget_access_token(request: Request, door: PageDoor, wanted: AccessTokenRequest) -> Response:
    """Step 1: a session instead of the vendor's token, for a page that is registered as a client."""
    caller = await door.admit(wanted.client_id)
    found = steps(request, caller)
    presented = wanted.secret.get_secret_value()
    if presented.startswith(SESSION_TOKEN_PREFIX):
        holder = await found.access.session_of(presented)
        if holder.tenant != caller.tenant:
            raise Unauthenticated
        session = found.access.living_session(holder)
        return Response(encode({"id": session.account_id, "token": presented}), media_type=_JSON)
    found.sessions.warn_of_leak(wanted.secret)
    try:
        opened = await found.sessions.open(caller, subject=None, metadata={}, ttl_seconds=None)
    except UpstreamCredentialsRejected as error:
        # The widget knows wrong credentials by this status, whoever they belong to.
        refused = failure(request.scope, error)
        refused.status_code, refused.headers["WWW-Authenticate"] = 401, "Bearer"
        return refused
    body = {"id": opened.session.account_id, "token": opened.token.get_secret_value()}
    return Response(encode(body), media_type=_JSON)


@router.get("/utility-companies", include_in_schema=False)
async def widget_utility_companies(request: Request, session: WidgetSession) -> Response:
    """Step 2a: the vendor's list, from the cache."""
    providers = await steps(request, session).providers.get()
    companies = [each.company.model_dump(by_alias=True, exclude_none=True) for each in providers.providers]
    return Response(encode(companies), media_type=_JSON)


@router.post("/jobs", include_in_schema=False)
async def widget_create_job(request: Request, session: WidgetSession, wanted: JobRequest) -> Response:
    """Step 2b: start a validation; answers the vendor's own job id."""
    found = steps(request, session)
    give_up = found.clock.monotonic() + LONGEST_WAIT_SECONDS
    elsewhere = await found.validations.signs_in_elsewhere(wanted.utility_company_id, give_up)
    credentials = None if elsewhere else _credentials(wanted)
    address = client_address(request.scope)
    validation = await found.validations.start(
        session, wanted.utility_company_id, credentials, address=address, give_up=give_up
    )
    if validation.job_id is None:
        # The widget knows no outcome of this call but "it runs" and "it broke".
        raise OutcomeUnknown if validation.reason == OutcomeUnknown.code else UpstreamUnavailable
    return Response(encode({"id": validation.job_id}), 201, media_type=_JSON)


@router.get("/jobs/{job_id}", include_in_schema=False)
async def widget_job(request: Request, session: WidgetSession, job_id: str) -> Response:
    """How a job stands, from our own state; anything that would make the widget poll for ever is told as an end."""
    validation = next((each for each in session.validations if each.job_id == job_id), None)
    if validation is None:
        raise NotFound
    shown = steps(request, session).validations.among(session, validation.id)
    return Response(encode(_job(shown)), media_type=_JSON)


@router.get("/utility-user-account/{account_id}", include_in_schema=False)
async def widget_utility_account(request: Request, session: WidgetSession, account_id: str) -> Response:
    """Step 3: one utility account of this session, as the vendor would list it."""
    found = await steps(request, session).accounts.list(session, read_again=False)
    account = next((each for each in found.utility_accounts if each["id"] == account_id), None)
    if account is None:
        raise NotFound
    services = [
        {name: value for name, value in each.items() if name != "utilityAccountId"}
        for each in found.service_accounts
        if each["utilityAccountId"] == account_id
    ]
    body = {"id": account_id, "name": account["name"], "serviceAccounts": services}
    return Response(encode(body), media_type=_JSON)


@router.post("/{account_id}/utility-service-accounts/batch", include_in_schema=False)
async def widget_link(
    request: Request, session: WidgetSession, account_id: str, ids: Annotated[ServiceAccountIds, Body()]
) -> Response:
    """Step 4."""
    if account_id != session.account_id:
        raise NotFound
    linked = await steps(request, session).attach.link(session, Choice(sorted(set(ids))))
    payload = {
        "accountId": linked.link.account_id,
        "serviceAccounts": [{"id": each} for each in linked.accounts],
    }
    return answer(request.scope, payload, message=LINKED, status=201)


def _credentials(wanted: JobRequest) -> Credentials:
    username, password = wanted.username or SecretStr(""), wanted.password or SecretStr("")
    given = {"username": username, "password": password}
    empty = [name for name, value in given.items() if not value.get_secret_value()]
    if empty:
        raise InvalidRequest([FieldError(name, "Required for this provider") for name in empty])
    return Credentials(username, password)


def _job(validation: ValidationRecord) -> dict[str, Any]:
    """A validation in the words that the widget understands."""
    match validation.state:
        case "pending":
            return {"status": "pending"}
        case "succeeded" if validation.services:
            accounts = [{"accountId": account, "serviceAccountId": service} for account, service in validation.services]
            return {"status": "success", "response": {"accounts": accounts}}
        case "succeeded" if validation.accounts:
            return {"status": "success", "response": {"accountId": validation.accounts[0]}}
        case "rejected":
            return {"status": "success", "response": {"status": "incorrect-credential"}}
        case _ if validation.reason == "utility_unavailable":
            return {"status": "success", "response": {"status": "server-error"}}
        case _:
            return {"status": "error"}
