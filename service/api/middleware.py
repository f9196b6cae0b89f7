"""Around every request: its id, its log line and metrics, headers that every answer carries, and the last resort."""

import itertools
import re
import secrets
import time
from collections.abc import Mapping
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.envelope import failure, quota_headers
from service.api.routing import RouteKind, head_of, route_of
from service.errors import InternalError
from service.telemetry import about, answered, log
from service.tracing import Tracing, finish

__all__ = ["Around", "add_headers"]

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9-]{1,64}")
_PROCESS: Final = secrets.token_hex(10)
_NUMBERS: Final = itertools.count()
_PROBES: Final = (RouteKind.PROBE, RouteKind.METRICS)
"""Asked every few seconds by machines; their log lines would bury all others."""

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
    """Surrounds all layers that may fail, so that even a bug is answered with an envelope."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing | None) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head = head_of(scope)
        asked = head.get(b"x-request-id", b"")
        request_id = asked.decode() if _REQUEST_ID.fullmatch(asked) else _new_request_id()
        scope["state"]["request_id"] = request_id
        route = route_of(scope)
        probes = route is not None and route.kind in _PROBES
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
        if self._tracing is not None and not probes:
            span = self._tracing.begin(request_id, head.get(b"traceparent", b"").decode("latin-1"))
        broke: Exception | None = None
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001 -- the last resort
            broke = error
            log.error("unhandled", exc_info=error)
            if status == 0:
                await failure(scope, InternalError())(scope, receive, send_with_headers)
        finally:
            template = route.path if route is not None else None
            _tell(scope, template, status or 499, time.perf_counter() - started, quietly=probes)
            if span is not None:
                finish(span, route=template, method=scope["method"], status=status or 499, error=broke)


def _tell(scope: Scope, template: str | None, status: int, seconds: float, *, quietly: bool) -> None:
    # The template, not the path: a path holds ids, and whatever else a caller puts there.
    answered(template or "none", scope["method"] if template else "ANY", status, seconds)
    tell = log.debug if quietly else log.info
    code = scope["state"].get("code")
    why = {} if code is None else {"code": code}
    tell(
        "request",
        route=template or "none",
        method=scope["method"][:16],
        status=status,
        **why,
        ms=round(seconds * 1000, 1),
    )


def _new_request_id() -> str:
    """Unlike any other; no secret, so that one read of the system's randomness serves the whole process."""
    return f"{_PROCESS}{next(_NUMBERS):012x}"
