"""Holds every answer of `/v1` against what the OpenAPI document says of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import Match

from service.api.models import Failure
from tests.conftest import Replica
from tests.plain import NO_TLS

__all__ = ["SENTENCES", "conforming", "route_of"]

SENTENCES: Final = {
    "OM410": "Rejected: Incorrect secret or client id",
    "OM500": "Rejected: Internal server error",
}
_SECURITY: Final = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "strict-transport-security": "max-age=31536000; includeSubDomains",
    "x-content-type-options": "nosniff",
}


_GENERAL: Final = {
    *_SECURITY,
    *("cache-control", "content-length", "content-type", "date", "vary", "x-request-id", "allow", "connection"),
    *("ratelimit", "ratelimit-policy", "server"),
}
"""Headers that need no word at each operation; `Server` is that of the tests alone."""


@asynccontextmanager
async def conforming(replica: Replica) -> AsyncIterator[httpx.AsyncClient]:
    """A client that fails the test at the first answer that is not as documented."""

    async def check(answer: httpx.Response) -> None:
        await answer.aread()
        _check(replica.app, answer)

    async with httpx.AsyncClient(
        base_url=replica.url, timeout=40, trust_env=False, verify=NO_TLS, event_hooks={"response": [check]}
    ) as client:
        yield client


def route_of(app: FastAPI, method: str, path: str) -> APIRoute | None:
    """The route that answers."""
    for route in app.routes:
        if (
            isinstance(route, APIRoute)
            and route.matches({"type": "http", "method": method, "path": path})[0] == Match.FULL
        ):
            return route
    return None


def _check(app: FastAPI, answer: httpx.Response) -> None:
    assert _SECURITY.items() <= {name: value for name, value in answer.headers.items() if name in _SECURITY}.items()
    assert answer.headers["x-request-id"]
    _tells_its_headers(app, answer)
    if answer.status_code == 304:
        assert answer.content == b""
        return
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["requestId"] == answer.headers["x-request-id"]
    route = route_of(app, answer.request.method, answer.request.url.path)
    if route is None:
        _fits(Failure, body)
    else:
        _fits(_model(route, answer.status_code), body)
    assert answer.headers["cache-control"] == ("private, max-age=300" if "providers" in body else "no-store")
    if body["status"] in SENTENCES:
        assert body["message"] == SENTENCES[body["status"]]
    if answer.status_code in {429, 503}:
        assert int(answer.headers["retry-after"]) >= 1


def _tells_its_headers(app: FastAPI, answer: httpx.Response) -> None:
    route = route_of(app, answer.request.method, answer.request.url.path)
    if route is not None:
        responses = app.openapi()["paths"][route.path][answer.request.method.lower()]["responses"]
        told = {name.lower() for name in responses[str(answer.status_code)].get("headers", {})}
        beyond = set(answer.headers) - _GENERAL - told
        assert not beyond, f"{route.name} does not document {beyond} at {answer.status_code}"


def _model(route: APIRoute, status: int) -> Any:
    if status == route.status_code or (status == 200 and route.status_code is None):
        return route.response_model
    assert status in route.responses, f"{route.name} does not document {status}"
    return route.responses[status]["model"]


def _fits(model: type[BaseModel], body: dict[str, Any]) -> None:
    # Unknown fields are refused by the models themselves; strict, since JSON is not to be interpreted here.
    read = model.model_validate(body)
    written = read.model_dump(by_alias=True, exclude_unset=True, mode="json")
    assert _shape(written) == _shape(body)


def _shape(value: Any) -> Any:
    """Names and kinds, without values: times may be written in several ways."""
    match value:
        case dict():
            return {name: _shape(each) for name, each in value.items()}
        case list():
            return [_shape(each) for each in value]
        case _:
            return type(value).__name__
