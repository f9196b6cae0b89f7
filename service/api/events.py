"""`/v1/sessions/{id}/events`: server-sent events (WHATWG HTML, section 9.2)."""

import asyncio
from typing import Annotated, Any, Final

from fastapi import Header, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from service.api.caller import OwnSession, steps
from service.api.documented import failures
from service.api.envelope import encode
from service.api.routing import RouteKind, make_router, may_stream
from service.api.views import event_view, session_view
from service.link.changes import Changes, Following
from service.link.events import News, Stream, event_id

__all__ = ["router"]

_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx passes each event on at once
}
_HEARTBEAT: Final = b": \n\n"
_EVENT: Final = {
    "type": "object",
    "description": "One event of the stream.",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer"},
    },
}
_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Events: first where the session is now, then each change. `data` is JSON with `id`, `type`, "
        "`createdAt`, the whole `session`, and for `validation.*` the `validation`.",
        "content": {"text/event-stream": {"schema": _EVENT}},
    },
    204: {"description": "The session is over, and `Last-Event-ID` was its last event: do not come back."},
}

router: Final = make_router("/v1/sessions/{session_id}/events", "events", RouteKind.API)


@router.get("", response_class=Response, responses={**_STREAM, **failures(401, 403, 404, 429, 503)})
@may_stream
async def stream_events(
    request: Request,
    session: OwnSession,
    last_event_id: Annotated[
        str | None, Header(description="Id of the last event that was seen: go on after it.", max_length=128)
    ] = None,
) -> Response:
    """What happens in a session, as it happens. Ends with the session, and after 5 minutes: then come back."""
    found = steps(request, session)
    stream = await found.events.open(session, last_event_id)
    if stream is None:
        return Response(status_code=204)
    return _EventStream(session.id, stream, found.changes)


class _EventStream(Response):
    """Holds as little as it can: thousands of them wait in one process."""

    def __init__(self, session_id: str, stream: Stream, changes: Changes) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._session_id = session_id
        self._stream = stream
        self._changes = changes

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._changes.follow(self._session_id) as following:
            left = asyncio.ensure_future(self._watch_for_leaving(receive, following))
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for news in self._stream.news(following):
                    chunk = _encoded(news, self._changes)
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            finally:
                left.cancel()
                await self._stream.leave()

    async def _watch_for_leaving(self, receive: Receive, following: Following) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._stream.gone = True
        following.wake()


def _encoded(news: News, changes: Changes) -> bytes:
    lines = [b"retry: %d\n\n" % news.retry_ms] if news.retry_ms is not None else []
    if news.session is not None:
        shown = session_view(news.session, changes.clock.now())
        for event in news.events:
            view = event_view(news.session, event) | {"session": shown}
            name = event_id(news.session, event).encode()
            lines.append(b"id: %s\nevent: %s\ndata: %s\n\n" % (name, event.name.encode(), encode(view)))
    return b"".join(lines) or _HEARTBEAT
