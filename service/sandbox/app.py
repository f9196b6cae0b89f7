"""The sandbox as an ASGI app: the vendor's API, the sign-in page and the levers."""

from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from service.sandbox.answers import Answer, Refusal
from service.sandbox.calls import Call
from service.sandbox.damage import deliver, deliver_damaged, placeholder, told_status
from service.sandbox.faults import Fault
from service.sandbox.levers import Levers
from service.sandbox.line import Line
from service.sandbox.pages import SignIn
from service.sandbox.strict import Request, no_query
from service.sandbox.vendor import ENDPOINTS, Endpoint
from service.sandbox.world import World

__all__ = ["create_sandbox"]

API_PREFIX: Final = "/api"
"""The vendor has served its paths with and without it, so both work."""


def create_sandbox(world: World | None = None) -> Starlette:
    """The app of a world, or of a new one."""
    world = world or World()
    levers = Levers(world)
    app = Starlette(
        routes=[
            Route("/_sandbox", levers.state),
            Mount("/_sandbox", routes=levers.routes()),
            Mount("/sign-in", routes=SignIn(world).routes()),
            Mount("/", app=VendorApi(world)),
        ]
    )
    app.router.redirect_slashes = False
    app.state.world = world
    return app


class VendorApi:
    """Everything outside the levers and the sign-in page, so that calls the vendor does not have are logged too."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        line = Line(scope, receive, send)
        body = await line.read_body()
        if body is None:
            return
        headers = Headers(scope=scope)
        request = Request(headers, scope["query_string"], body, _origin(scope, headers))
        endpoints = _at(scope["path"])
        endpoint = next((found for found in endpoints if found[0].method == scope["method"]), None)
        call = self._record(scope, request, endpoint[0] if endpoint else None)
        if endpoint is None:
            await _finish(call, Refusal(405 if endpoints else 404, "the vendor has no such call").answer(), line)
        else:
            await self._serve(call, *endpoint, request, line)

    async def _serve(self, call: Call, endpoint: Endpoint, path: dict[str, str], request: Request, line: Line) -> None:
        fault = self._world.faults.take(endpoint.route)
        call.fault = fault.kind if fault else None
        if fault and fault.kind == "delay" and not fault.after:
            await line.pause(fault.amount)
            fault = None
        if fault is None or fault.takes_effect:
            answer = self._handle(endpoint, path, request)
        else:
            answer = placeholder(endpoint.success)
        await _finish(call, answer, line, fault)

    def _handle(self, endpoint: Endpoint, path: dict[str, str], request: Request) -> Answer:
        try:
            no_query(request)
            return endpoint.handler(self._world, request, path)
        except Refusal as exc:
            return exc.answer()

    def _record(self, scope: Scope, request: Request, endpoint: Endpoint | None) -> Call:
        query = f"?{request.query.decode('latin-1')}" if request.query else ""
        return self._world.calls.record(
            method=scope["method"],
            path=scope.get("raw_path", scope["path"].encode()).decode("latin-1") + query,
            route=endpoint.route if endpoint else None,
            headers=_joined(request.headers),
            body=request.body,
        )


async def _finish(call: Call, answer: Answer, line: Line, fault: Fault | None = None) -> None:
    """Answer; the log comes first, so that whoever has the answer finds it there."""
    call.status = told_status(answer, fault)
    if fault is None:
        await deliver(answer, line)
    else:
        await deliver_damaged(fault, answer, line)


def _at(path: str) -> list[tuple[Endpoint, dict[str, str]]]:
    """The calls at a path, whatever their method, with the ids in it."""
    bare = path.removeprefix(API_PREFIX) if path.startswith(f"{API_PREFIX}/") else path
    return [(endpoint, match.groupdict()) for endpoint in ENDPOINTS if (match := endpoint.path.fullmatch(bare))]


def _origin(scope: Scope, headers: Headers) -> str:
    host = headers.get("host")
    if not host:
        name, port = scope.get("server") or ("127.0.0.1", 80)
        host = f"{name}:{port}"
    return f"{scope['scheme']}://{host}"


def _joined(headers: Headers) -> dict[str, str]:
    """Lower-case names; repeated headers joined by a comma."""
    joined: dict[str, str] = {}
    for name, value in headers.items():
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined
