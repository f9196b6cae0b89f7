"""Permissions as types: a handler's signature says who may call it, and receives the object already checked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from service.clock import Clock
from service.link.access import Access, Caller, KeyCaller
from service.link.accounts import Accounts
from service.link.attach import Attach
from service.link.providers import Providers
from service.link.sessions import Sessions
from service.link.validate import Validations
from service.stores.records import SessionRecord

__all__ = [
    "AnyCaller",
    "KeySession",
    "OwnSession",
    "ReadableSession",
    "ServerCaller",
    "Steps",
    "require_policies",
    "steps",
]


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of the flow, as handlers use them."""

    access: Access
    sessions: Sessions
    providers: Providers
    validations: Validations
    accounts: Accounts
    attach: Attach
    clock: Clock


def steps(request: Request) -> Steps:
    """The steps of this process."""
    found: Steps = request.app.state.steps
    return found


def _bearer(request: Request) -> str | None:
    """The bearer credential (RFC 6750, section 2.1); None if there is none, or more than one."""
    presented = request.headers.getlist("authorization")
    if len(presented) != 1:
        return None
    scheme, _, credential = presented[0].partition(" ")
    return credential.strip() or None if scheme.lower() == "bearer" else None


async def any_caller(request: Request) -> Caller:
    """Anybody we know."""
    return await steps(request).access.identify(_bearer(request))


async def server_caller(request: Request) -> KeyCaller:
    """A host's server."""
    return await steps(request).access.require_key(_bearer(request))


async def own_session(request: Request, session_id: str) -> SessionRecord:
    """The session of the path, for whoever holds its token."""
    return await steps(request).access.own_session(session_id, _bearer(request))


async def readable_session(request: Request, session_id: str) -> SessionRecord:
    """The session of the path, for whoever holds its token, and for the servers of its tenant."""
    return await steps(request).access.readable_session(session_id, _bearer(request))


async def key_session(request: Request, session_id: str) -> SessionRecord:
    """The session of the path, for the servers of its tenant alone."""
    access = steps(request).access
    return await access.tenant_session(session_id, await access.require_key(_bearer(request)))


AnyCaller = Annotated[Caller, Depends(any_caller)]
ServerCaller = Annotated[KeyCaller, Depends(server_caller)]
OwnSession = Annotated[SessionRecord, Depends(own_session)]
ReadableSession = Annotated[SessionRecord, Depends(readable_session)]
KeySession = Annotated[SessionRecord, Depends(key_session)]

POLICIES: Final[frozenset[Callable[..., Any]]] = frozenset(
    {any_caller, server_caller, own_session, readable_session, key_session}
)


def policies_of(route: APIRoute) -> list[Callable[..., Any]]:
    """The policies that a route declares."""

    def walk(dependant: Dependant) -> list[Callable[..., Any]]:
        own = [dependant.call] if dependant.call in POLICIES else []
        return own + [policy for each in dependant.dependencies for policy in walk(each)]

    return walk(route.dependant)


def require_policies(routes: list[BaseRoute], *, open_paths: frozenset[str]) -> None:
    """Refuse to start with a route that says nothing of who may call it.

    Raises:
        RuntimeError: There is such a route.
    """
    for route in routes:
        path = getattr(route, "path", None)
        if path in open_paths:
            continue
        if not isinstance(route, APIRoute) or len(policies_of(route)) != 1:
            raise RuntimeError(f"{path or route} does not declare exactly one policy")
