"""`/v1/sessions`: open, read, end."""

from typing import Any, Final

from fastapi import Request
from starlette.responses import Response

from service.api.caller import KeySession, OpenDoor, ReadableSession, steps
from service.api.documented import failures
from service.api.envelope import answer, told
from service.api.models import CreateSession, SessionOpened, SessionShown
from service.api.routing import make_router
from service.api.views import session_error, session_view
from service.link.outcome import LINKED
from service.link.sessions import Opened
from service.stores.records import SessionRecord

__all__ = ["router"]

router: Final = make_router("/v1/sessions", "sessions")


@router.post("", status_code=201, response_model=SessionOpened, responses=failures(401, 403, 502, 503, 504, body=True))
async def create_session(request: Request, door: OpenDoor, wanted: CreateSession | None = None) -> Response:
    """Step 1: open a session for a person. Its token goes to that person's frontend; it is shown only here."""
    wanted = wanted or CreateSession()
    caller = await door.admit(wanted.client_id)
    opened = await steps(request).sessions.open(
        caller, subject=wanted.subject, metadata=wanted.metadata, ttl_seconds=wanted.ttl_seconds
    )
    location = {"Location": f"/v1/sessions/{opened.session.id}"}
    return answer(request.scope, _opened(request, opened), message="Session created", status=201, headers=location)


@router.post(
    "/{session_id}/tokens", status_code=201, response_model=SessionOpened, responses=failures(401, 403, 404, 503)
)
async def replace_session_token(request: Request, session: KeySession) -> Response:
    """Issue a new token for a session; the old one stops working at once."""
    opened = await steps(request).sessions.replace_token(session)
    return answer(request.scope, _opened(request, opened), message="Token replaced", status=201)


@router.get("/{session_id}", response_model=SessionShown, responses=failures(401, 404, 429, 503))
async def get_session(request: Request, session: ReadableSession) -> Response:
    """A session as it is now. A host's server verifies here what a browser has told it."""
    return _shown(request, await steps(request).sessions.look(session))


@router.delete("/{session_id}", response_model=SessionShown, responses=failures(401, 404, 409, 429, 503))
async def close_session(request: Request, session: ReadableSession) -> Response:
    """End a session at the person's wish; one that has ended stays as it is."""
    return _shown(request, await steps(request).sessions.close(session))


def _opened(request: Request, opened: Opened) -> dict[str, Any]:
    view = session_view(opened.session, steps(request).clock.now())
    return {"session": {**view, "token": opened.token.get_secret_value()}}


def _shown(request: Request, session: SessionRecord) -> Response:
    now = steps(request).clock.now()
    payload = {"session": session_view(session, now)}
    error = session_error(session, now)
    if error is not None:
        return told(request.scope, error, payload)
    return answer(request.scope, payload, message=LINKED if session.state == "linked" else "Session found")
