"""Around every request: its id, its log line and metrics, headers that every answer carries, and the last resort."""

import itertools
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.envelope import failure, quota_headers
from service.errors import InternalError, NotAcceptable, Overloaded, ShuttingDown
from service.telemetry import about, answered, log
from service.tracing import Tracing, finish

__all__ = ["Around", "Shed", "add_headers"]

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9-]{1,64}")
_JSON: Final = ("application/json", "application/*", "*/*")
_EVENTS: Final = ("text/event-stream", "text/*")
_PROCESS: Final = secrets.token_hex(10)
_NUMBERS: Final = itertools.count()
_PROBES: Final = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked every few seconds by machines; their log lines would bury all others."""

_MOST_READS: Final = 1000
_MOST_REQUESTS: Final = 1250
"""In flight in one process. Reads go first: what a person does was prepared by many of them."""

_MOST_WAITING: Final = 20_000
"""Streams and long waits of one process, some 20 KB each. A wait that is begun goes on when its caller has left."""

_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"strict-transport-security", b"max-age=31536000; includeSubDomains"),
    (b"x-content-type-options", b"nosniff"),
)
_NAMES: Final = frozenset(name for name, _ in _HEADERS)


def add_headers(raw: list[tuple[bytes, bytes]]) -> Mapping[bytes, bytes]:
    """Give an answer the headers that all have, unless it brings its own; those that it brought."""
    given = dict(raw)
    raw += _HEADERS if given.keys().isdisjoint(_NAMES) else [header for header in _HEADERS if header[0] not in given]
    return given


class Around:
    """Outermost, so that nothing gets past it: not even a bug is answered without an envelope."""

    def __init__(self, app: ASGIApp, *, closing: Callable[[], bool], tracing: Tracing | None) -> None:
        self._app = app
        self._closing = closing
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        asked = headers.get(b"x-request-id", b"")
        request_id = asked.decode() if _REQUEST_ID.fullmatch(asked) else _new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                raw = message["headers"]
                given = add_headers(raw)
                raw.append((b"x-request-id", request_id.encode()))
                quota = scope["state"].get("quota")
                if quota is not None and b"ratelimit" not in given:
                    told = quota_headers(quota)
                    raw += [(name.lower().encode(), value.encode()) for name, value in told.items()]
            await send(message)

        about(request_id=request_id)
        span = None
        if self._tracing is not None and scope["path"] not in _PROBES:
            span = self._tracing.begin(request_id, headers.get(b"traceparent", b"").decode("latin-1"))
        broke: Exception | None = None
        try:
            await self._answer(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001 -- the last resort
            broke = error
            log.error("unhandled", exc_info=error)
            if status == 0:
                await failure(scope, InternalError())(scope, receive, send_with_headers)
        finally:
            self._tell(scope, status, time.perf_counter() - started)
            if span is not None:
                route = getattr(scope.get("route"), "path", None)
                finish(span, route=route, method=scope["method"], status=status or 499, error=broke)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith("/v1/") and not _accepts(scope):
            return await failure(scope, NotAcceptable())(scope, receive, send)
        if scope["path"].startswith(("/v1/", "/api/", "/link/")) and scope["method"] == "POST" and self._closing():
            return await failure(scope, ShuttingDown())(scope, receive, send)
        return await self._app(scope, receive, send)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        # The template, not the path: a path holds ids, and whatever else a caller puts there.
        route = scope.get("route")
        template = getattr(route, "path", "none")
        known = status or 499
        answered(template, scope["method"] if template != "none" else "ANY", known, seconds)
        tell = log.debug if template in _PROBES else log.info
        code = scope["state"].get("code")
        why = {} if code is None else {"code": code}
        tell("request", route=template, method=scope["method"][:16], status=known, **why, ms=round(seconds * 1000, 1))


class Shed:
    """Innermost: a place is taken by what is at work, not by who has not sent all of its body yet."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._in_flight = 0
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or say that there is too much to do; of reads that only wait there may be many more."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        reads, waits = scope["method"] == "GET", _waits(scope)
        if waits and self._waiting >= _MOST_WAITING and scope["path"] not in _PROBES:
            if scope["path"].endswith("/events"):
                return await failure(scope, Overloaded())(scope, receive, send)
            # RFC 7240, section 2: a preference may be passed over.
            scope["headers"] = [header for header in scope["headers"] if header[0] != b"prefer"]
            waits = False
        if not (waits and reads) and self._in_flight >= (_MOST_READS if reads else _MOST_REQUESTS):
            return await failure(scope, Overloaded())(scope, receive, send)
        self._waiting += waits
        self._in_flight += not waits
        try:
            await self._app(scope, receive, send)
        finally:
            self._waiting -= waits
            self._in_flight -= not waits


def _waits(scope: Scope) -> bool:
    """Whether a request holds no place: probes, and those that hold a line and mostly do nothing."""
    path = scope["path"]
    if not path.startswith("/v1/sessions/"):
        return path in _PROBES
    if path.endswith("/events"):
        return True
    # In any of several lines: one that is looked at no more would let waiters take the places of those at work.
    prefers = [value for name, value in scope["headers"] if name == b"prefer"] if "/validations" in path else []
    return any(b"wait" in each.lower() for each in prefers)


def _new_request_id() -> str:
    """Unlike any other; no secret, so that one read of the system's randomness serves the whole process."""
    return f"{_PROCESS}{next(_NUMBERS):012x}"


def _accepts(scope: Scope) -> bool:
    if b"accept" not in dict(scope["headers"]):
        return True
    known = (*_JSON, *_EVENTS) if scope["path"].endswith("/events") else _JSON
    for part in ",".join(Headers(scope=scope).getlist("accept")).split(","):
        media_type, _, parameters = part.partition(";")
        if media_type.strip().lower() in known and not re.search(r"\bq\s*=\s*0(\.0*)?\s*(;|$)", parameters):
            return True
    return False
