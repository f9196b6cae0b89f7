"""Permissions as types: a handler's signature says who may call it, and receives the object already checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Protocol

from fastapi import Depends, Query, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import SecretStr
from starlette.routing import BaseRoute

from service.api.address import client_address
from service.clock import Clock
from service.errors import NotFound
from service.link.access import Access, Caller, Knock, Opener, SessionCaller
from service.link.accounts import Accounts
from service.link.attach import Attach
from service.link.changes import Changes
from service.link.events import Events
from service.link.hosted import Guest, HostedPages
from service.link.logos import Logos
from service.link.providers import Providers
from service.link.scopes import Scope
from service.link.sessions import Sessions
from service.link.validate import Validations
from service.stores.records import SessionRecord

__all__ = [
    "AnyCaller",
    "ClosableSession",
    "Door",
    "HostedGuest",
    "KeySession",
    "OpenDoor",
    "OwnSession",
    "PageDoor",
    "ReadableSession",
    "Steps",
    "Tenants",
    "WidgetSession",
    "guest_cookie",
    "hosted_pages",
    "require_policies",
    "steps",
    "steps_named",
]


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of the flow for one tenant, as handlers use them.

    `access`, `hosted`, `events`, `changes` and `clock` are the same in all: a session's record says whose it is.
    """

    access: Access
    sessions: Sessions
    providers: Providers
    logos: Logos
    validations: Validations
    accounts: Accounts
    attach: Attach
    hosted: HostedPages
    events: Events
    changes: Changes
    clock: Clock


@dataclass(frozen=True, slots=True)
class Tenants:
    """The steps of all tenants.

    Attributes:
        by_id: As sessions and callers know them.
        by_name: As the settings call them.
    """

    by_id: Mapping[str, Steps]
    by_name: Mapping[str, Steps]


class Owned(Protocol):
    """A caller, or a session."""

    @property
    def tenant(self) -> str:
        """Whose it is."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where sessions are opened: whoever has a credential is known before anything else is looked at."""

    access: Access
    knock: Knock
    known: Opener | None

    async def admit(self, client_id: str | None) -> Opener:
        """Who is let in; a page by the client id that its body names.

        Raises:
            Unauthenticated, RateLimited: Nobody.
        """
        return self.known or await self.access.opener(replace(self.knock, client_id=client_id))


def steps(request: Request, owner: Owned) -> Steps:
    """The steps of the tenant whose caller or session it is."""
    found: Steps = request.app.state.tenants.by_id[owner.tenant]
    return found


def steps_named(request: Request, name: str | None) -> Steps:
    """The steps of a tenant where nobody says who calls; the first one's for None.

    Raises:
        NotFound: No such tenant.
    """
    found: Steps | None = _first(request) if name is None else request.app.state.tenants.by_name.get(name)
    if found is None:
        raise NotFound
    return found


def hosted_pages(request: Request) -> HostedPages:
    """The hosted pages of all tenants."""
    return _first(request).hosted


def _first(request: Request) -> Steps:
    found: Steps = request.app.state.steps
    return found


def _access(request: Request) -> Access:
    return _first(request).access


def _bearer(request: Request) -> str | None:
    """The bearer credential (RFC 6750, section 2.1); None if there is none, or more than one."""
    presented = _only(request, b"authorization")
    if presented is None:
        return None
    scheme, _, credential = presented.partition(" ")
    return credential.strip() or None if scheme.lower() == "bearer" else None


def _only(request: Request, name: bytes) -> str | None:
    """A header of one line: of two that contradict each other, neither is believed."""
    lines = [value for each, value in request.scope["headers"] if each == name]
    return lines[0].decode("latin-1") if len(lines) == 1 else None


def _knock(request: Request, client_id: str | None = None) -> Knock:
    return Knock(_bearer(request), client_id, _only(request, b"origin"), client_address(request.scope))


async def _identify(request: Request, client_id: str | None = None) -> Caller:
    """Who calls; what is left of a session's reads is told with whatever is answered."""
    caller = await _access(request).identify(_knock(request, client_id))
    if isinstance(caller, SessionCaller):
        request.scope["state"]["quota"] = caller.quota
    return caller


async def any_caller(
    request: Request,
    client_id: Annotated[
        str | None, Query(alias="clientId", max_length=128, description="A page without a session names its client.")
    ] = None,
) -> Caller:
    """Anybody we know, to look at what is no session's."""
    caller = await _identify(request, client_id)
    _access(request).require_scope(caller, Scope.PROVIDERS_READ)
    return caller


async def own_session(request: Request, session_id: str) -> SessionRecord:
    """The session of the path, for whoever holds its token."""
    return _access(request).own_session(session_id, await _identify(request))


async def readable_session(request: Request, session_id: str) -> SessionRecord:
    """The session of the path, for whoever holds its token, for its subject, and for the servers of its tenant."""
    return await _access(request).readable_session(session_id, await _identify(request), Scope.SESSIONS_READ)


async def closable_session(request: Request, session_id: str) -> SessionRecord:
    """The session of the path, for the same, to end it."""
    return await _access(request).readable_session(session_id, await _identify(request), Scope.SESSIONS_WRITE)


async def key_session(request: Request, session_id: str) -> SessionRecord:
    """The session of the path, for the servers of its tenant alone."""
    access = _access(request)
    caller = access.require_key(await _identify(request), Scope.SESSIONS_TOKENS)
    return await access.tenant_session(session_id, caller.tenant, reader=f"key:{caller.key.name}")


async def widget_session(request: Request) -> SessionRecord:
    """The session whose token the vendor's widget took for the vendor's own."""
    return _access(request).living_session(await _identify(request))


async def door(request: Request) -> Door:
    """Whoever may open sessions."""
    access, knock = _access(request), _knock(request)
    return Door(access, knock, await access.opener(knock) if knock.credential is not None else None)


async def page_door(request: Request) -> Door:
    """Pages alone: a widget that is opened again still sends the token that it got the last time."""
    return Door(_access(request), replace(_knock(request), credential=None), None)


async def guest(request: Request, session_id: str) -> Guest:
    """Whoever opens a hosted page: a browser that was there before shows its cookie."""
    cookie = request.cookies.get(guest_cookie(session_id))
    return Guest(SecretStr(cookie) if cookie else None, client_address(request.scope))


def guest_cookie(session_id: str) -> str:
    """One cookie for each page, so that each ends with it; `__Host-` (RFC 6265bis, section 4.1.3.2) keeps it to us."""
    return f"__Host-{session_id}"


AnyCaller = Annotated[Caller, Depends(any_caller)]
OpenDoor = Annotated[Door, Depends(door)]
PageDoor = Annotated[Door, Depends(page_door)]
WidgetSession = Annotated[SessionRecord, Depends(widget_session)]
OwnSession = Annotated[SessionRecord, Depends(own_session)]
ReadableSession = Annotated[SessionRecord, Depends(readable_session)]
ClosableSession = Annotated[SessionRecord, Depends(closable_session)]
KeySession = Annotated[SessionRecord, Depends(key_session)]
HostedGuest = Annotated[Guest, Depends(guest)]

POLICIES: Final[frozenset[Callable[..., Any]]] = frozenset(
    {any_caller, door, page_door, widget_session, own_session, readable_session, closable_session, key_session, guest}
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
