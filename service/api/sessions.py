"""`/v1/sessions`: open, read, end."""

from collections.abc import Mapping
from typing import Any, Final, TypedDict

from fastapi import Request
from starlette.responses import Response

from service.api.caller import ClosableSession, KeySession, OpenDoor, ReadableSession, steps
from service.api.documented import OR_A_PAGE, answer_header, failures, follow_ups
from service.api.envelope import answer, told
from service.api.hosted import hosted_base, page_url
from service.api.models import CreateSession, SessionCreated, SessionShown, TokenReplaced
from service.api.routing import RouteKind, make_router
from service.api.views import session_error, session_view
from service.link.outcome import LINKED
from service.link.returns import HostedPage
from service.link.sessions import Invited, Opened
from service.stores.records import SessionRecord

__all__ = ["router"]

router: Final = make_router("/v1/sessions", "sessions", RouteKind.API)


_NEXT: Final = follow_ups(
    "create_validation",
    "list_service_accounts",
    "create_link",
    "stream_events",
    "get_session",
    "close_session",
    "replace_session_token",
    session_id="$response.body#/session/id",
)


class _Given(TypedDict):
    subject: str | None
    metadata: Mapping[str, str]
    ttl_seconds: int | None


@router.post(
    "",
    status_code=201,
    response_model=SessionCreated,
    responses={
        201: {"headers": {"Location": answer_header("The session.")}, "links": _NEXT},
        **failures(401, 403, 429, 502, 503, 504, body=True),
    },
    openapi_extra=OR_A_PAGE,
)
async def create_session(request: Request, door: OpenDoor, wanted: CreateSession | None = None) -> Response:
    """Step 1: open a session for a person. Its token goes to that person's frontend; it is shown only here.

    Scope of keys: `sessions:write`.
    """
    wanted = wanted or CreateSession()
    caller = await door.admit(wanted.client_id)
    given: _Given = {"subject": wanted.subject, "metadata": wanted.metadata, "ttl_seconds": wanted.ttl_seconds}
    if wanted.hosted is None:
        opened = await steps(request, caller).sessions.open(caller, **given)
        session, payload = opened.session, _opened(request, opened)
    else:
        page = HostedPage(wanted.hosted.return_url, wanted.hosted.cancel_url, wanted.hosted.open_within)
        base = hosted_base(request)
        invited = await steps(request, caller).sessions.invite(caller, page=page, **given)
        session, payload = invited.session, _invited(request, invited, base)
    location = {"Location": f"/v1/sessions/{session.id}"}
    return answer(request.scope, payload, message="Session created", status=201, headers=location)


@router.post(
    "/{session_id}/tokens", status_code=201, response_model=TokenReplaced, responses=failures(401, 403, 404, 429, 503)
)
async def replace_session_token(request: Request, session: KeySession) -> Response:
    """Issue a new token for a session; the old one stops working at once. Scope of keys: `sessions:tokens`."""
    opened = await steps(request, session).sessions.replace_token(session)
    return answer(request.scope, _opened(request, opened), message="Token replaced", status=201)


@router.get("/{session_id}", response_model=SessionShown, responses=failures(401, 403, 404, 429, 503))
async def get_session(request: Request, session: ReadableSession) -> Response:
    """A session as it is now. A host's server verifies here what a browser has told it.

    Scope of keys: `sessions:read`.
    """
    return _shown(request, await steps(request, session).sessions.look(session))


@router.delete("/{session_id}", response_model=SessionShown, responses=failures(401, 403, 404, 409, 429, 503))
async def close_session(request: Request, session: ClosableSession) -> Response:
    """End a session at the person's wish; one that has ended stays as it is. Scope of keys: `sessions:write`."""
    return _shown(request, await steps(request, session).sessions.close(session))


def _invited(request: Request, invited: Invited, base: str) -> dict[str, Any]:
    view = session_view(invited.session, steps(request, invited.session).clock.now())
    return {"session": {**view, "url": page_url(base, invited)}}


def _opened(request: Request, opened: Opened) -> dict[str, Any]:
    view = session_view(opened.session, steps(request, opened.session).clock.now())
    return {"session": {**view, "token": opened.token.get_secret_value()}}


def _shown(request: Request, session: SessionRecord) -> Response:
    now = steps(request, session).clock.now()
    payload = {"session": session_view(session, now)}
    error = session_error(session, now)
    if error is not None:
        return told(request.scope, error, payload)
    return answer(request.scope, payload, message=LINKED if session.state == "linked" else "Session found")
