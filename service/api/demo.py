"""`/` in the sandbox: a host application that integrates in all three ways. Its server part keeps the API key."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from html import escape
from importlib import resources
from string import Template
from typing import Any, Final, Literal, Protocol

from fastapi import Request
from pydantic import SecretStr
from starlette.responses import Response

from service import __version__
from service.api.address import client_address
from service.api.cached import Cached
from service.api.caller import steps_named
from service.api.envelope import answer, told
from service.api.hosted import hosted_base, page_url
from service.api.routing import RouteKind, make_router
from service.api.views import session_error, session_view
from service.errors import NotFound
from service.link.access import KeyCaller, Knock
from service.link.returns import HostedPage
from service.link.scopes import Scope

__all__ = ["OPEN_PATHS", "Demo", "build", "router", "what_happens"]

OPEN_PATHS: Final = frozenset({"/", "/demo/assets/{name}", "/demo/sessions", "/demo/sessions/{session_id}"})
"""Anybody's, since the sandbox is; no other mode has these routes."""

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_MEDIA_TYPES: Final = {
    "calls.js": "text/javascript; charset=utf-8",
    "demo.css": "text/css; charset=utf-8",
    "demo.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "widget-stand-in.js": "text/javascript; charset=utf-8",
}
_KEY_NAME: Final = "demo"
_SUBJECT: Final = "demo-person"
_OPEN_WITHIN_SECONDS: Final = 30 * 60


class _Person(Protocol):
    """One of the sandbox's people, which is not to be imported from here."""

    @property
    def username(self) -> str: ...
    @property
    def accounts(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def outcome(self) -> Literal["success", "incorrect", "server-error", "error"]: ...
    @property
    def linking(self) -> Literal["works", "refused", "lost"]: ...
    @property
    def loses_token(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Demo:
    """The host application.

    Attributes:
        page: As it is served; it names passwords, so no `repr` shows it.
        api_key: With it the host's server calls; it never gets into the page.
    """

    page: str = field(repr=False)
    assets: Mapping[str, Cached] = field(repr=False)
    api_key: SecretStr


router: Final = make_router("", "demo", RouteKind.PAGE)


def build(*, people: Iterable[_Person], password: str, client_id: str, api_key: SecretStr, docs: str) -> Demo:
    """The demo, made once at start-up.

    Args:
        people: Whom the sandbox knows; the first is the example.
        password: Of all of them.
        client_id: The publishable client that the page uses.
        api_key: Of the host's server.
        docs: Where the API is described.
    """
    files = resources.files("service") / "web" / "demo"
    shown = [(escape(each.username), escape(what_happens(each))) for each in people]
    page = Template((files / "index.html").read_text("utf-8")).substitute(
        client_id=escape(client_id),
        username=shown[0][0],
        password=escape(password),
        people="\n".join(_person(*each) for each in shown),
        docs=escape(docs),
        version=__version__,
    )
    assets = {
        name: Cached.of((files / name).read_bytes(), media_type, {"Cache-Control": "no-cache"})
        for name, media_type in _MEDIA_TYPES.items()
    }
    return Demo(page, assets, api_key)


def what_happens(person: _Person) -> str:
    """What somebody meets who signs in as this person."""
    when = f"after {person.seconds:g}\N{NO-BREAK SPACE}s" if person.seconds else "at once"
    match person.outcome:
        case "success" if math.isinf(person.seconds):
            return "The utility never answers"
        case "success":
            return f"{person.accounts or 'No'} service account{'s' * (person.accounts > 1)} {when}{_after(person)}"
        case "incorrect":
            return f"Incorrect credential {when}, in spite of the right password"
        case "server-error":
            return f"The utility is down, told {when}"
        case "error":
            return f"The vendor's job breaks {when}"


def _after(person: _Person) -> str:
    """What further steps have in store."""
    if person.loses_token:
        return ", though the vendor revokes this service's token on the way"
    match person.linking:
        case "works":
            return ""
        case "refused":
            return ", then the vendor refuses to link them"
        case "lost":
            return ", then the answer to linking gets lost: the outcome stays unknown"


def _person(username: str, happens: str) -> str:
    copy = (
        f'<button type="button" class="copy" data-copy="{username}" aria-label="{username}, copy">{username}</button>'
    )
    return f"      <li>{copy} <span>{happens}</span></li>"


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def demo_page(request: Request) -> Response:
    """The host application's page."""
    page = _demo(request).page
    return Response(page, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": _POLICY})


@router.api_route("/demo/assets/{name}", methods=["GET", "HEAD"], include_in_schema=False)
async def demo_asset(request: Request, name: str) -> Response:
    """What the page is made of."""
    found = _demo(request).assets.get(name)
    if found is None:
        raise NotFound
    return found.answer(request)


@router.post("/demo/sessions", include_in_schema=False)
async def demo_create_session(request: Request) -> Response:
    """The host's server asks for a hosted page, for its person to go to; as with `POST /v1/sessions`."""
    found = steps_named(request, None)
    started = found.clock.monotonic()
    base = hosted_base(request)
    page = HostedPage(return_url=str(request.base_url), cancel_url=None, open_within=_OPEN_WITHIN_SECONDS)
    invited = await found.sessions.invite(
        await _host(request), subject=_SUBJECT, metadata={}, ttl_seconds=None, page=page
    )
    view = session_view(invited.session, found.clock.now())
    payload = {
        "session": {**{name: view[name] for name in ("id", "state", "expiresAt")}, "url": page_url(base, invited)},
        "serverCalls": [_call("POST", "/v1/sessions", 201, found.clock.monotonic() - started)],
    }
    return answer(request.scope, payload, message="Session created", status=201)


@router.get("/demo/sessions/{session_id}", include_in_schema=False)
async def demo_get_session(request: Request, session_id: str) -> Response:
    """The host's server verifies what its page was told; as with `GET /v1/sessions/{id}`.

    Raises:
        NotFound: Not one that this host's server made.
    """
    found = steps_named(request, None)
    started = found.clock.monotonic()
    host = await _host(request)
    session = await found.access.tenant_session(session_id, host.tenant, reader=f"key:{host.key.name}")
    if session.owner != f"key:{host.key.name}":
        raise NotFound
    session, now = await found.sessions.look(session), found.clock.now()
    payload = {
        "session": session_view(session, now),
        "serverCalls": [_call("GET", f"/v1/sessions/{session.id}", 200, found.clock.monotonic() - started)],
    }
    error = session_error(session, now)
    if error is not None:
        return told(request.scope, error, payload)
    return answer(request.scope, payload, message="Session found")


async def _host(request: Request) -> KeyCaller:
    """The host's server: let in and counted by its API key, under a name of its own."""
    access = steps_named(request, None).access
    knock = Knock(_demo(request).api_key.get_secret_value(), None, None, client_address(request.scope))
    caller = access.require_key(await access.opener(knock), Scope.SESSIONS_READ)
    return KeyCaller(replace(caller.key, name=_KEY_NAME))


def _call(method: str, path: str, status: int, seconds: float) -> dict[str, Any]:
    """A call of the host's server, for the page's log: here it is made within the process."""
    return {"method": method, "path": path, "status": status, "ms": round(seconds * 1000, 1)}


def _demo(request: Request) -> Demo:
    found: Demo = request.app.state.demo
    return found
