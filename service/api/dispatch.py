"""Finds a request's route, as the outermost layer, and runs that route, as the innermost.

The order is: syntax, host and path (400); the route (404, 405); `Accept` (406); whether the process still takes work
(503); the caller, where the head carries a credential; the body; a place among those at work; parameters and body
against their models; the handler, which identifies callers whose body names their client. A refused request costs only
the steps before its refusal.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final, TypeAlias

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.body import announces_body, json_of, read_body
from service.api.routing import NO_BODY, ApiRoute, RouteKind, head_of, route_of
from service.api.shedding import LoadShedding
from service.errors import MalformedRequest, MethodNotAllowed, NotAcceptable, NotFound, ServiceError, ShuttingDown

__all__ = ["Dispatcher", "RaisedInstead", "Resolver", "is_readable"]

RaisedInstead: TypeAlias = ServiceError | RequestValidationError
"""Raised in place of an answer."""

_NOT_HTTP: Final = "The request is not valid HTTP, or its head is longer than 64 KiB or 100 lines"
_REFUSAL: Final = "refusal"
_UNREAD: Final = "unread"

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]*)(:[0-9]*)?")
"""RFC 9110, section 7.2, without the comma, by which intermediaries join two lines."""

_LONGEST_HOST: Final = 512
_LONGEST_KEPT: Final = 512
"""Bytes of a header's value. What was read in a longer one is not cached, so that strangers' texts take no memory."""

_LONGEST_QUERY: Final = 2048
_MOST_PARAMETERS: Final = 32
"""Of a query: Python parses it before the caller is known."""

_MOST_MEDIA_TYPES: Final = 64
_VERSIONS: Final = frozenset({"1.0", "1.1"})
_JSON: Final = ("application/json", "application/*", "*/*")
_JSON_OR_EVENTS: Final = (*_JSON, "text/event-stream", "text/*")
_ACTING: Final = (RouteKind.API, RouteKind.WIDGET, RouteKind.HOSTED)


class Resolver:
    """Finds the route of each request once, for all layers inside, and refuses requests that must not have one.

    Args:
        app: Answers, with the route and the refusal in the request's scope.
        routes: All of them.
        operations_port: Of the listener that serves operations and nothing else, if there is one; metrics are served
            nowhere else then.
        is_malformed: Whether the server could not read a request.

    Raises:
        TypeError: There is a route that the dispatcher cannot run.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Iterable[BaseRoute],
        operations_port: int | None,
        is_malformed: Callable[[Scope], bool],
    ) -> None:
        self._app = app
        self._operations_port = operations_port
        self._is_malformed = is_malformed
        self._routes: dict[tuple[int, str | None], tuple[ApiRoute, ...]] = {}
        for route in routes:
            if not isinstance(route, ApiRoute):
                raise TypeError(f"{route} cannot be run")
            last = route.path.rpartition("/")[2]
            key = (route.path.count("/"), None if "{" in last else last)
            self._routes[key] = (*self._routes.get(key, ()), route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] == "http":
            state = scope.setdefault("state", {})
            state["head"] = dict(scope["headers"])
            state[_REFUSAL] = refusal = self._resolve(scope)
            # After a malformed request, the client and this service may disagree about where the next one begins.
            if isinstance(refusal, MalformedRequest) or announces_body(scope):
                state[_UNREAD] = True
                send = _closing(state, send)
        await self._app(scope, receive, send)

    def _resolve(self, scope: Scope) -> ServiceError | None:
        flaw = _NOT_HTTP if self._is_malformed(scope) else _flaw(scope)
        if flaw is not None:
            return MalformedRequest(flaw)
        path, method = scope["path"], scope["method"]
        depth, (_, _, last) = path.count("/"), path.rpartition("/")
        there: list[ApiRoute] = []
        for route in self._routes.get((depth, last), ()) + self._routes.get((depth, None), ()):
            found = route.path_regex.fullmatch(path)
            if found is None or not self._serves(scope, route):
                continue
            if method in route.methods:
                scope.update(endpoint=route.endpoint, path_params=found.groupdict(), route=route)
                return None
            there.append(route)
        if not there:
            return NotFound()
        scope["route"] = there[0]
        # RFC 9110, section 15.5.6: the methods of all routes of this path.
        return MethodNotAllowed(sorted({each for route in there for each in route.methods}))

    def _serves(self, scope: Scope, route: ApiRoute) -> bool:
        if self._operations_port is None:
            return True
        # The socket's port, not what the request says of itself.
        if scope["server"][1] == self._operations_port:
            return route.kind in (RouteKind.PROBE, RouteKind.METRICS)
        return route.kind is not RouteKind.METRICS


def is_readable(scope: Scope) -> bool:
    """Whether a request has a route, or could have one: false if it gets 400 before its route is looked for."""
    return not isinstance(scope["state"][_REFUSAL], MalformedRequest)


def _flaw(scope: Scope) -> str | None:
    """Why a request is refused whatever it asks for."""
    if scope["http_version"] not in _VERSIONS:
        return "Only HTTP/1.0 and HTTP/1.1 are spoken here"
    if not _names_its_host(scope):
        return "The request must have one valid Host header"
    query = scope["query_string"]
    if len(query) > _LONGEST_QUERY or query.count(b"&") >= _MOST_PARAMETERS:
        return "The query is too long"
    if b"transfer-encoding" in head_of(scope) and not _is_chunked(scope):
        return "Only the transfer coding chunked is known here"
    if not scope["path"].isprintable() and _CONTROL.search(scope["path"]):
        return "The path must not have control characters"
    return None


def _names_its_host(scope: Scope) -> bool:
    """RFC 9112, section 3.2: a request of HTTP/1.1 has one `Host`; one of HTTP/1.0 may have none."""
    head = head_of(scope)
    host = head.get(b"host")
    if host is None:
        return bool(scope["http_version"] == "1.0")
    if len(head) != len(scope["headers"]) and len(_lines(scope, b"host")) != 1:
        return False
    return len(host) <= _LONGEST_HOST and _is_host(host)


def _is_chunked(scope: Scope) -> bool:
    return all(value.strip().lower() == b"chunked" for value in _lines(scope, b"transfer-encoding"))


def _lines(scope: Scope, name: bytes) -> list[bytes]:
    return [value for each, value in scope["headers"] if each == name]


@lru_cache
def _is_host(value: bytes) -> bool:
    return _HOST.fullmatch(value.strip(b" \t")) is not None


def _closing(state: dict[str, Any], send: Send) -> Send:
    """Close the connection after an answer that was given before the request was read to its end."""

    async def send_closing(message: Message) -> None:
        if message["type"] == "http.response.start" and state[_UNREAD]:
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await send(message)

    return send_closing


class Dispatcher:
    """Runs the route that a request was resolved to.

    Args:
        lifespan: Starts and stops the app.
        on_error: Renders what was raised before there was an answer.
        closing: Whether the process takes no new work any more.
        is_malformed: Whether the server could not read a request to its end.
    """

    def __init__(
        self,
        *,
        lifespan: ASGIApp,
        on_error: Callable[[Scope, RaisedInstead], Response],
        closing: Callable[[], bool],
        is_malformed: Callable[[Scope], bool],
    ) -> None:
        self._lifespan = lifespan
        self._on_error = on_error
        self._closing = closing
        self._is_malformed = is_malformed
        self._shedding = LoadShedding()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self._lifespan(scope, receive, send)
        place = None
        try:
            try:
                route = self._admitted(scope)
                request = Request(scope, receive)
                identified = await route.identify(request)
                body = await self._body(scope, receive) if _UNREAD in scope["state"] else NO_BODY
                place = self._shedding.take(route, scope)
                response: Response = await route.respond(request, identified, body)
            except (ServiceError, RequestValidationError) as error:
                response = self._on_error(scope, error)
            except ClientDisconnect:
                return None  # there is nobody left to answer
            return await response(scope, receive, send)
        finally:
            if place is not None:
                self._shedding.leave(place)

    def _admitted(self, scope: Scope) -> ApiRoute:
        """The route, unless the request was refused, the caller accepts no JSON, or the process is stopping."""
        state, route = scope["state"], route_of(scope)
        refusal: ServiceError | None = state[_REFUSAL]
        if refusal is not None or route is None:
            raise refusal or NotFound
        if route.kind is RouteKind.API and not _accepts(scope, _JSON_OR_EVENTS if route.streams else _JSON):
            raise NotAcceptable
        if scope["method"] == "POST" and route.kind in _ACTING and self._closing():
            raise ShuttingDown
        return route

    async def _body(self, scope: Scope, receive: Receive) -> object:
        body = await read_body(scope, receive)
        if self._is_malformed(scope):
            raise MalformedRequest(_NOT_HTTP)
        scope["state"][_UNREAD] = False
        return json_of(scope, body)


def _accepts(scope: Scope, media_types: tuple[str, ...]) -> bool:
    head = head_of(scope)
    accept = head.get(b"accept")
    if accept is None:
        return True
    if len(head) != len(scope["headers"]):
        accept = b",".join(_lines(scope, b"accept"))
    return _names_one(accept, media_types) if len(accept) > _LONGEST_KEPT else _names_one_again(accept, media_types)


def _names_one(accept: bytes, media_types: tuple[str, ...]) -> bool:
    for part in accept.decode("latin-1").split(",", _MOST_MEDIA_TYPES)[:_MOST_MEDIA_TYPES]:
        media_type, _, parameters = part.partition(";")
        if media_type.strip().lower() in media_types and not re.search(r"\bq\s*=\s*0(\.0*)?\s*(;|$)", parameters):
            return True
    return False


_names_one_again: Final = lru_cache(_names_one)
