"""How all routes here are made, and how they run.

FastAPI reads a handler's signature once and describes it in the OpenAPI document; here it is also read once for what
each request has to do. FastAPI's own way walks the tree of dependencies anew for each request, through exit stacks and
caches that nothing here uses, and that is the larger part of a cheap request's time.
"""

from collections.abc import Awaitable, Callable, Mapping
from copy import deepcopy
from enum import StrEnum
from typing import Any, Final, TypeAlias, TypeVar

from fastapi import APIRouter, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

__all__ = ["NO_BODY", "ApiRoute", "RouteKind", "head_of", "make_router", "may_stream", "may_wait", "route_of"]

NO_BODY: Final = object()
"""In place of a JSON value, where a request has no body."""

_Handler = TypeVar("_Handler", bound=Callable[..., Any])
_Values: TypeAlias = dict[str, Any]
_SOURCES: Final[Mapping[str, Callable[[Request], Mapping[str, str]]]] = {
    "path": lambda request: request.path_params,
    "query": lambda request: request.query_params,
    "header": lambda request: request.headers,
}
_streaming: Final[set[Callable[..., Any]]] = set()
_waiting: Final[set[Callable[..., Any]]] = set()


class RouteKind(StrEnum):
    """What a route is for. Every layer that treats routes differently asks for this, never for the path's text."""

    API = "api"
    """`/v1`: envelopes, for callers that accept JSON, or events where the route streams."""

    WIDGET = "widget"
    HOSTED = "hosted"
    PAGE = "page"
    """Pages, scripts and pictures; documentation."""

    PROBE = "probe"
    METRICS = "metrics"


def may_stream(handler: _Handler) -> _Handler:
    """Declare that a handler may answer with a stream: the request then takes no place of those at work."""
    _streaming.add(handler)
    return handler


def may_wait(handler: _Handler) -> _Handler:
    """Declare that a handler obeys `Prefer: wait` (RFC 7240): such a request takes no place of those at work.

    One that is no read still needs a free one to begin.
    """
    _waiting.add(handler)
    return handler


def make_router(prefix: str, tag: str, kind: RouteKind) -> APIRouter:
    """A router whose operation ids are its handlers' names, so that generated clients read well."""

    class Route(ApiRoute):
        def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 -- FastAPI's own
            super().__init__(*args, **options)
            self.kind = kind

    return APIRouter(prefix=prefix, tags=[tag], route_class=Route, generate_unique_id_function=lambda route: route.name)


class ApiRoute(APIRoute):
    """A route, as the dispatcher runs it.

    Attributes:
        kind: What it is for.
        streams: Its handler may answer with a stream.
        waits: Its handler obeys `Prefer: wait`.
        identify: Runs what the handler depends on: its policy, which knows the caller by the request's head alone.
        respond: Runs the handler, with what `identify` found and the JSON value that was sent, or `NO_BODY`. Both raise
            `ServiceError`, and `RequestValidationError` if a parameter or the body is wrong.
    """

    kind: RouteKind
    methods: set[str]

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 -- FastAPI's own
        super().__init__(*args, **options)
        self.streams = self.endpoint in _streaming
        self.waits = self.endpoint in _waiting
        compiled = _Compiled(self.dependant)
        self.identify, self.respond = compiled.identify, compiled.run


def route_of(scope: Mapping[str, Any]) -> ApiRoute | None:
    """The route that a request was resolved to; None if there is none."""
    route: ApiRoute | None = scope.get("route")
    return route


def head_of(scope: Mapping[str, Any]) -> Mapping[bytes, bytes]:
    """The fields of a request's head, by name; of several lines of one name, the last."""
    head: Mapping[bytes, bytes] = scope["state"]["head"]
    return head


class _Compiled:
    """What a handler, or a dependency of one, has to do: first its dependencies, then its parameters, then itself.

    Raises:
        TypeError: It asks for something that no handler here asks for.
    """

    __slots__ = ("_body", "_call", "_dependencies", "_fields", "_request_name")

    def __init__(self, dependant: Dependant) -> None:
        call, bodies = dependant.call, dependant.body_params
        if call is None or dependant.cookie_params or len(bodies) > 1 or dependant.response_param_name:
            raise TypeError(f"{dependant.path}: cannot be compiled")
        if any(each.body_params for each in dependant.dependencies):
            raise TypeError(f"{dependant.path}: a dependency runs before the body is read")
        self._call: Callable[..., Awaitable[Any]] = call
        self._dependencies = [
            (each.name or "", _Compiled(each), bool(each.dependencies)) for each in dependant.dependencies
        ]
        self._fields = [
            *(_field("path", each) for each in dependant.path_params),
            *(_field("query", each) for each in dependant.query_params),
            *(_field("header", each) for each in dependant.header_params),
        ]
        self._body = bodies[0] if bodies else None
        self._request_name = dependant.request_param_name

    async def identify(self, request: Request) -> _Values:
        values: _Values = {}
        for name, depend, nested in self._dependencies:
            values[name] = await depend.run(request, await depend.identify(request) if nested else {}, NO_BODY)
        return values

    async def run(self, request: Request, values: _Values, body: object) -> Any:  # noqa: ANN401 -- whatever it returns
        errors: list[Any] = []
        for name, read in self._fields:
            values[name], problems = read(request)
            errors += problems
        if self._body is not None:
            sent = None if body is NO_BODY else body
            values[self._body.name], problems = _validated(self._body, sent, ("body",))
            errors += problems
        if errors:
            raise RequestValidationError(errors)
        if self._request_name is not None:
            values[self._request_name] = request
        return await self._call(**values)


def _field(place: str, field: Any) -> tuple[str, Callable[[Request], tuple[Any, list[Any]]]]:  # noqa: ANN401 -- FastAPI's own
    source, alias, loc = _SOURCES[place], field.alias, (place, field.alias)
    if place == "path" and field.field_info.annotation is str and not field.field_info.metadata:
        return field.name, lambda request: (request.path_params[alias], [])
    return field.name, lambda request: _validated(field, source(request).get(alias), loc)


def _validated(field: Any, value: Any, loc: tuple[str, ...]) -> tuple[Any, list[Any]]:  # noqa: ANN401 -- FastAPI's own
    if value is None:
        if field.field_info.is_required():
            return None, [{"type": "missing", "loc": loc, "msg": "Field required", "input": None}]
        return deepcopy(field.default), []
    result: tuple[Any, list[Any]] = field.validate(value, loc=loc)
    return result
