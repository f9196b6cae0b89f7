"""Cross-origin calls: an exact list of origins, nothing by pattern, never with cookies (Fetch standard, 3.2)."""

from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.dispatch import is_readable
from service.api.middleware import add_headers
from service.api.routing import RouteKind, head_of, route_of

__all__ = ["ApiCors"]

_KINDS: Final = (RouteKind.API, RouteKind.WIDGET)
_METHODS: Final = ("GET", "POST", "DELETE")
_REQUEST_HEADERS: Final = (
    "Accept",
    "Authorization",
    "Cache-Control",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
    "Type",
    "X-Request-Id",
)
_ANSWER_HEADERS: Final = (
    "ETag",
    "Idempotency-Replayed",
    "Location",
    "Preference-Applied",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "X-Request-Id",
)
_PREFLIGHT_SECONDS: Final = 600


class ApiCors:
    """Outside of everything that may answer, so that errors can be read by the page as well."""

    def __init__(self, app: ASGIApp, *, origins: frozenset[str]) -> None:
        self._app = app
        self._cors = CORSMiddleware(
            app,
            allow_origins=sorted(origins),
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_ANSWER_HEADERS,
            allow_credentials=False,
            max_age=_PREFLIGHT_SECONDS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let other origins read the APIs, and the 404 of what does not exist; the rest is for no other origin."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        route = route_of(scope)
        if not is_readable(scope) or (route is not None and route.kind not in _KINDS):
            return await self._app(scope, receive, send)
        is_from_page = b"origin" in head_of(scope)
        if scope["method"] == "OPTIONS":
            send = _with_common_headers(send)
        return await (self._cors if is_from_page else self._app)(scope, receive, _varied(send))


def _with_common_headers(send: Send) -> Send:
    """Preflights are answered out here, where nobody else gives answers the headers that all have."""

    async def send_with_common_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            add_headers(message["headers"])
        await send(message)

    return send_with_common_headers


def _varied(send: Send) -> Send:
    """Also without an `Origin`, or a cache could give that answer to a page."""

    async def send_varied(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message["headers"]
            if b"vary" in dict(headers):
                MutableHeaders(scope=message).add_vary_header("Origin")
            else:
                headers.append((b"vary", b"Origin"))
        await send(message)

    return send_varied
