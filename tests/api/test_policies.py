"""Every route says who may call it, or the service does not start."""

import pytest
from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import Host, Mount, Route

from service.api import demo, ops, sessions
from service.api.caller import POLICIES, any_caller, own_session, policies_of, require_policies
from service.app import create_app
from service.settings import Settings

OPEN = {"/livez", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/start.js", "/docs/assets/{name}"}
OPEN |= {"/sdk/{name}", "/sdk/{version}/{name}", "/logos/{provider_id}", "/link/{session_id}"}
DEMO = {"/", "/demo/assets/{name}", "/demo/sessions", "/demo/sessions/{session_id}"}

POLICY_OF = {
    "create_session": "door",
    "replace_session_token": "key_session",
    "get_session": "readable_session",
    "close_session": "closable_session",
    "list_providers": "any_caller",
    "create_validation": "own_session",
    "get_validation": "own_session",
    "cancel_validation": "own_session",
    "list_service_accounts": "own_session",
    "create_link": "own_session",
    "stream_events": "own_session",
    "enter_hosted_page": "guest",
    "widget_access_token": "page_door",
    "widget_utility_companies": "widget_session",
    "widget_create_job": "widget_session",
    "widget_job": "widget_session",
    "widget_utility_account": "widget_session",
    "widget_link": "widget_session",
}


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


def test_every_route_declares_exactly_one_policy_or_is_open_on_purpose(app: FastAPI) -> None:
    declared: dict[str, str] = {}
    for route in app.routes:
        path = getattr(route, "path", "")
        if path in OPEN | DEMO:
            assert not path.startswith("/v1")
            continue
        assert isinstance(route, APIRoute), path
        policies = policies_of(route)
        assert len(policies) == 1, path
        declared[route.name] = policies[0].__name__
    # Who may call what is a decision: a change of it is made here as well.
    assert declared == POLICY_OF
    assert ops.OPEN_PATHS == OPEN
    assert demo.OPEN_PATHS == DEMO


def test_every_policy_is_known_and_guards_something() -> None:
    assert {each.__name__ for each in POLICIES} == set(POLICY_OF.values())


async def _handler() -> Response:
    return Response()


@pytest.mark.parametrize(
    "route",
    [
        APIRoute("/v1/open", _handler),
        APIRoute("/v1/two", _handler, dependencies=[Depends(any_caller), Depends(own_session)]),
        APIRoute("/v1/other", _handler, dependencies=[Depends(_handler)]),
        Route("/v1/plain", _handler),
        Mount("/v1/files", routes=[]),
    ],
    ids=lambda route: route.path,
)
def test_a_route_without_one_policy_stops_the_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, route: Route
) -> None:
    monkeypatch.setattr(sessions.router, "routes", [*sessions.router.routes, route])
    with pytest.raises(RuntimeError, match=f"^{route.path} does not declare"):
        create_app(settings)


def test_a_route_without_a_path_stops_the_start_too() -> None:
    with pytest.raises(RuntimeError, match="Host"):
        require_policies([Host("files.example", app=FastAPI())], open_paths=frozenset())


def test_a_policy_may_be_declared_by_what_a_route_depends_on() -> None:
    async def deeper(_caller: object = Depends(any_caller)) -> None:
        """Depend on it."""

    require_policies([APIRoute("/v1/deep", _handler, dependencies=[Depends(deeper)])], open_paths=frozenset())
