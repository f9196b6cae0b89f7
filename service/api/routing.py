"""How all routers here are made, and how their routes run.

FastAPI reads a handler's signature once and describes it in the OpenAPI document; here it is also read once for what
each request has to do. FastAPI's own way walks the tree of dependencies anew for each request, through exit stacks and
caches that nothing here uses, and that is the larger part of a cheap request's time.
"""

from collections.abc import Awaitable, Callable, Mapping
from copy import deepcopy
from typing import Any, Final, TypeAlias

import orjson
from fastapi import APIRouter, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from service.errors import ServiceError

__all__ = ["RaisedInstead", "Switch", "make_router"]

RaisedInstead: TypeAlias = ServiceError | RequestValidationError | HTTPException
"""What stands for an answer."""

_Call: TypeAlias = Callable[[Request], Awaitable[Any]]
_SOURCES: Final[Mapping[str, Callable[[Request], Mapping[str, str]]]] = {
    "path": lambda request: request.path_params,
    "query": lambda request: request.query_params,
    "header": lambda request: request.headers,
}


def make_router(prefix: str, tag: str) -> APIRouter:
    """A router whose operation ids are its handlers' names, so that generated clients read well."""
    return APIRouter(
        prefix=prefix, tags=[tag], route_class=_Route, generate_unique_id_function=lambda route: route.name
    )


class Switch:
    """Takes a request to its route without asking all others first; the router answers what has none.

    Args:
        router: Has the routes.
        on_error: Renders what a route, or the router, raised before it answered.
    """

    def __init__(self, router: APIRouter, *, on_error: Callable[[Scope, RaisedInstead], Response]) -> None:
        self._router = router
        self._on_error = on_error
        self._routes: dict[tuple[str, int, str | None], list[_Route]] = {}
        for route in router.routes:
            if isinstance(route, _Route):
                *parts, last = route.path.split("/")
                for method in route.methods or ():
                    key = (method, len(parts), None if "{" in last else last)
                    self._routes.setdefault(key, []).append(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        route = self._found(scope) if scope["type"] == "http" else None
        try:
            if route is None:
                return await self._router(scope, receive, send)
            response: Response = await route.call(Request(scope, receive))
        except (ServiceError, RequestValidationError, HTTPException) as error:
            response = self._on_error(scope, error)
        return await response(scope, receive, send)

    def _found(self, scope: Scope) -> "_Route | None":
        *parts, last = scope["path"].split("/")
        method, depth = scope["method"], len(parts)
        for route in self._routes.get((method, depth, last)) or self._routes.get((method, depth, None)) or ():
            match = route.path_regex.match(scope["path"])
            if match:
                scope.update(endpoint=route.endpoint, path_params=match.groupdict(), route=route)
                return route
        return None


class _Route(APIRoute):
    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 -- FastAPI's own
        super().__init__(*args, **options)
        self.call = call = _compiled(self.dependant)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await call(Request(scope, receive))
            await response(scope, receive, send)

        self.app = app

    @override
    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        # FastAPI's own asks at each route for routers within routers, of which there are none here.
        match, found = Route.matches(self, scope)
        if match is not Match.NONE:
            found["route"] = self
        return match, found


def _compiled(dependant: Dependant) -> _Call:
    """What a handler, or a dependency of one, has to do: first its dependencies, then its parameters, then itself.

    Raises:
        TypeError: It asks for something that no handler here asks for.
    """
    call = dependant.call
    if call is None or dependant.cookie_params or len(dependant.body_params) > 1 or dependant.response_param_name:
        raise TypeError(f"{dependant.path}: cannot be compiled")
    dependencies = [(each.name or "", _compiled(each)) for each in dependant.dependencies]
    fields = [
        *(_field("path", each) for each in dependant.path_params),
        *(_field("query", each) for each in dependant.query_params),
        *(_field("header", each) for each in dependant.header_params),
    ]
    body = dependant.body_params[0] if dependant.body_params else None
    request_name = dependant.request_param_name

    async def run(request: Request) -> Any:  # noqa: ANN401 -- whatever the handler returns
        values: dict[str, Any] = {}
        for name, depend in dependencies:
            values[name] = await depend(request)
        errors: list[Any] = []
        for name, read in fields:
            values[name], problems = read(request)
            errors += problems
        if body is not None:
            sent = await request.body()
            values[body.name], problems = _validated(body, orjson.loads(sent) if sent else None, ("body",))
            errors += problems
        if errors:
            raise RequestValidationError(errors)
        if request_name is not None:
            values[request_name] = request
        return await call(**values)

    return run


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
