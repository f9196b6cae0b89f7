"""`/v1/sessions/{id}/links`: link a choice."""

import hashlib
import re
from typing import Annotated, Final

import orjson
from fastapi import Header, Request
from starlette.responses import Response

from service.api.caller import OwnSession, steps
from service.api.documented import answer_header, failures
from service.api.envelope import answer
from service.api.models import CreateLink, LinkCreated
from service.api.routing import RouteKind, make_router
from service.api.views import link_view
from service.errors import FieldError, InvalidRequest, MalformedRequest
from service.link.attempt import Choice
from service.link.outcome import LINKED

__all__ = ["router"]

_IDEMPOTENCY_KEY: Final = re.compile(r'"([\x20\x21\x23-\x5b\x5d-\x7e]{1,255})"|([\x21\x23-\x5b\x5d-\x7e]{1,255})')
"""A quoted string as draft-ietf-httpapi-idempotency-key-header has it, or the bare form that many clients send."""

router: Final = make_router("/v1/sessions/{session_id}/links", "links", RouteKind.API)


@router.post(
    "",
    status_code=201,
    response_model=LinkCreated,
    responses={
        201: {"headers": {"Idempotency-Replayed": answer_header("`true`: made by an earlier call.")}},
        **failures(401, 403, 404, 409, 410, 429, 502, 503, 504, body=True),
    },
)
async def create_link(
    request: Request,
    session: OwnSession,
    wanted: CreateLink,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="Names this request; optional, the choice itself is guarded.",
            json_schema_extra={"pattern": f"^({_IDEMPOTENCY_KEY.pattern})$"},
        ),
    ] = None,
) -> Response:
    """Step 4: link a choice of service accounts. Repeating it is safe: one choice is sent once."""
    if len(request.headers.getlist("idempotency-key")) > 1:
        raise MalformedRequest("There is more than one Idempotency-Key header")
    choice = _choice(wanted, idempotency_key)
    linked = await steps(request, session).attach.link(session, choice)
    payload = {
        "accountId": linked.link.account_id,
        "serviceAccounts": [{"id": each} for each in linked.accounts],
        "link": link_view(linked.link),
    }
    headers = {"Idempotency-Replayed": "true"} if linked.replayed else {}
    return answer(request.scope, payload, message=LINKED, status=201, headers=headers)


def _choice(wanted: CreateLink, idempotency_key: str | None) -> Choice:
    accounts = sorted(set(wanted.service_account_ids))
    if len(accounts) != len(wanted.service_account_ids):
        raise InvalidRequest([FieldError("serviceAccountIds", "Each may be named once")])
    consent = wanted.consent.model_dump(by_alias=True, mode="json") if wanted.consent else None
    resend = sorted(set(wanted.resend_unknown))
    idempotency = None
    if idempotency_key is not None:
        named = _IDEMPOTENCY_KEY.fullmatch(idempotency_key)
        if named is None:
            raise MalformedRequest("The Idempotency-Key header is not valid")
        request = orjson.dumps([accounts, consent, resend])
        idempotency = (_digest((named[1] or named[2]).encode()), _digest(request))
    return Choice(accounts, resend, idempotency, consent)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
