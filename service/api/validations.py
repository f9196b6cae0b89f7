"""`/v1/sessions/{id}/validations`: sign in at a utility."""

import re
from typing import Final

from fastapi import Request
from starlette.responses import Response

from service.api.address import client_address
from service.api.caller import OwnSession, steps
from service.api.documented import answer_header, failures, follow_ups, request_header
from service.api.envelope import answer, told
from service.api.models import CreateValidation, ValidationShown
from service.api.routing import RouteKind, make_router, may_wait
from service.api.views import validation_error, validation_view
from service.clock import LONGEST_WAIT_SECONDS
from service.errors import FieldError, InvalidRequest
from service.link.validate import Credentials
from service.stores.records import ValidationRecord

__all__ = ["router"]

_WAIT: Final = re.compile(r'(?:^|,)\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=[,;]|$)', re.IGNORECASE)

_PREFER: Final = request_header(
    "Prefer",
    f"`wait=N`: answer as soon as the validation is finished, or after N seconds, up to {LONGEST_WAIT_SECONDS}.",
)
_WAITED: Final = {"Preference-Applied": answer_header("`wait=N`, as far as it was granted.")}
_STARTED: Final = {"Location": answer_header("The validation."), **_WAITED}
_PENDING: Final = {
    "Retry-After": answer_header("Seconds until it is worth looking again, while it is pending.", "integer"),
    **_WAITED,
}
_NEXT: Final = {
    **follow_ups(
        "get_validation",
        "cancel_validation",
        session_id="$request.path.session_id",
        validation_id="$response.body#/validation/id",
    ),
    **follow_ups("list_service_accounts", session_id="$request.path.session_id"),
}

router: Final = make_router("/v1/sessions/{session_id}/validations", "validations", RouteKind.API)


@router.post(
    "",
    status_code=202,
    response_model=ValidationShown,
    responses={
        201: {
            "model": ValidationShown,
            "description": "Finished within `Prefer: wait`",
            "headers": _STARTED,
            "links": _NEXT,
        },
        202: {"headers": {**_STARTED, **_PENDING}, "links": _NEXT},
        **failures(401, 403, 404, 409, 410, 429, 502, 503, 504, body=True),
    },
    openapi_extra=_PREFER,
)
@may_wait
async def create_validation(request: Request, session: OwnSession, wanted: CreateValidation) -> Response:
    """Step 2b: sign in at a utility; for OAuth, open the `authorizeUrl` that comes back. Takes `Prefer: wait=N`."""
    found = steps(request, session)
    validations, clock = found.validations, found.clock
    asked_at = clock.monotonic()
    validation = await validations.start(
        session,
        wanted.provider_id,
        _credentials(wanted),
        address=client_address(request.scope),
        give_up=asked_at + LONGEST_WAIT_SECONDS,
    )
    waited = _wait(request)
    if waited is not None and validation.state == "pending":
        # What the vendor took to accept the job counts: the whole call stays below what proxies allow.
        validation = await validations.wait(session.id, validation.id, waited - (clock.monotonic() - asked_at))
    return _shown(request, session.id, validation, status=202 if validation.state == "pending" else 201, waited=waited)


@router.get(
    "/{validation_id}",
    response_model=ValidationShown,
    responses={200: {"headers": _PENDING}, **failures(401, 403, 404, 429, 503)},
    openapi_extra=_PREFER,
)
@may_wait
async def get_validation(request: Request, session: OwnSession, validation_id: str) -> Response:
    """A validation as it is now, or with `Prefer: wait=N` as soon as it is finished."""
    validations = steps(request, session).validations
    validation = validations.among(session, validation_id)
    waited = _wait(request)
    if waited is not None and validation.state == "pending":
        validation = await validations.wait(session.id, validation_id, waited)
    return _shown(request, session.id, validation, status=200, waited=waited)


@router.delete("/{validation_id}", response_model=ValidationShown, responses=failures(401, 403, 404, 429, 503))
async def cancel_validation(request: Request, session: OwnSession, validation_id: str) -> Response:
    """Give up a validation; a success that comes later is not shown. A finished one stays as it is."""
    validation = await steps(request, session).validations.give_up(session, validation_id)
    return _shown(request, session.id, validation, status=200, waited=None)


def _credentials(wanted: CreateValidation) -> Credentials | None:
    if wanted.username is None and wanted.password is None:
        return None
    missing = [name for name in ("username", "password") if getattr(wanted, name) is None]
    if missing or wanted.username is None or wanted.password is None:
        raise InvalidRequest([FieldError(name, "Required with the other") for name in missing])
    return Credentials(wanted.username, wanted.password)


def _wait(request: Request) -> int | None:
    """Seconds of `Prefer: wait=N` (RFC 7240, section 4.3), as far as they are granted."""
    found = _WAIT.search(",".join(request.headers.getlist("prefer")))
    return min(int(found[1]), LONGEST_WAIT_SECONDS) if found else None


def _shown(
    request: Request, session_id: str, validation: ValidationRecord, *, status: int, waited: int | None
) -> Response:
    headers = {"Location": f"/v1/sessions/{session_id}/validations/{validation.id}"} if status != 200 else {}  # noqa: PLR2004
    if waited is not None:
        headers["Preference-Applied"] = f"wait={waited}"
    if validation.state == "pending":
        headers["Retry-After"] = "1"
    payload = {"validation": validation_view(validation)}
    error = validation_error(validation)
    if error is not None:
        return told(request.scope, error, payload, status=status, headers=headers)
    message = "Validation succeeded" if validation.state == "succeeded" else "Validation pending"
    return answer(request.scope, payload, message=message, status=status, headers=headers)
