"""`/link`: a page of this service for one session, for hosts without a frontend of their own."""

import html
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from fastapi import Request
from starlette.responses import Response

from service.api.caller import HostedGuest, guest_cookie, hosted_pages
from service.api.envelope import answer
from service.api.models import EnterHostedPage
from service.api.routing import RouteKind, make_router
from service.errors import FieldError, Forbidden, InvalidRequest
from service.link.sessions import Invited

__all__ = ["HostedShell", "hosted_base", "page_url", "router"]

router: Final = make_router("/link", "hosted page", RouteKind.HOSTED)

_SHELL: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<meta name="application-name" content="{name}">
<title>Connect your utility account</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="../sdk/hosted.css" nonce="{nonce}">
<script type="module" src="../sdk/hosted.js" nonce="{nonce}"></script>
</head>
<body>
<main hidden>
<h1 tabindex="-1"></h1>
<p></p>
<a class="go" hidden>Go back</a>
<button class="go" type="button" hidden></button>
</main>
<noscript>This page needs JavaScript.</noscript>
</body>
</html>
"""

_POLICY: Final = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors {ancestors}; "
    "require-trusted-types-for 'script'; trusted-types"
)


@dataclass(frozen=True, slots=True)
class HostedShell:
    """The page as it is served: the same for every session, there or not.

    Attributes:
        base: Address of the page but for the session; None if the deployment does not know its own.
        same_site: Of the cookie; within another site's frame it must be that site's own (CHIPS).
    """

    page: str
    policy: str
    base: str | None
    guess_base: bool
    same_site: str

    @classmethod
    def of(
        cls, *, public_url: str | None, guess_base: bool, application_name: str | None, frame_ancestors: Iterable[str]
    ) -> Self:
        """Build it once."""
        ancestors = " ".join(sorted(frame_ancestors))
        return cls(
            page=_SHELL.replace("{name}", html.escape(application_name or "")),
            policy=_POLICY.replace("{ancestors}", ancestors or "'none'"),
            base=f"{public_url.rstrip('/')}/link" if public_url else None,
            guess_base=guess_base,
            same_site="None; Partitioned" if ancestors else "Strict",
        )

    def answer(self) -> Response:
        """The page with a nonce of its own (CSP level 3, section 7.1)."""
        nonce = secrets.token_urlsafe(16)
        headers = {
            "Content-Security-Policy": self.policy.replace("{nonce}", nonce),
            "Cross-Origin-Opener-Policy": "same-origin",
        }
        return Response(self.page.replace("{nonce}", nonce), media_type="text/html; charset=utf-8", headers=headers)


def _shell(request: Request) -> HostedShell:
    found: HostedShell = request.app.state.hosted_shell
    return found


def hosted_base(request: Request) -> str:
    """Where the pages of sessions are.

    Raises:
        InvalidRequest: Nobody told this deployment; what the request says of itself must not end up in a secret link.
    """
    shell = _shell(request)
    if shell.base is not None:
        return shell.base
    if shell.guess_base:
        return f"{str(request.base_url).rstrip('/')}/link"
    raise InvalidRequest([FieldError("hosted", "The service must be told its own address: OMNICONNECT_PUBLIC_URL")])


def page_url(base: str, invited: Invited) -> str:
    """The page of a session, with its secret in the fragment: no server, proxy or log on the way sees it."""
    return f"{base}/{invited.session.id}#{invited.secret.get_secret_value()}"


@router.api_route("/{session_id}", methods=["GET", "HEAD"], include_in_schema=False)
async def hosted_page(request: Request) -> Response:
    """The page; whether there is such a session, its script asks."""
    return _shell(request).answer()


@router.post("/{session_id}/enter", include_in_schema=False)
async def enter_hosted_page(
    request: Request, session_id: str, guest: HostedGuest, shown: EnterHostedPage | None = None
) -> Response:
    """Exchange the link's secret, or the cookie of a browser that was there before, for the session's token.

    Without a token in the answer there is an `outcome`, or the person has yet to begin.
    """
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":  # a sibling site has the cookie sent, too
        raise Forbidden
    shown = shown or EnterHostedPage()
    pages = hosted_pages(request)
    entered = await pages.enter(session_id, shown.secret, guest, begin=shown.begin)
    payload = {
        "token": entered.token.get_secret_value() if entered.token else None,
        "outcome": entered.outcome,
        "returnUrl": entered.hosted.return_url,
        "cancelUrl": entered.hosted.cancel_url or entered.hosted.return_url,
    }
    response = answer(request.scope, payload, message="Session entered" if entered.token else "Session found")
    if entered.browser is not None:
        # As long as the page has something to tell this browser.
        seconds = (entered.hosted.lifetime_ms + pages.retention_ms) // 1000
        attributes = f"Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite={_shell(request).same_site}"
        value = entered.browser.get_secret_value()
        response.headers["Set-Cookie"] = f"{guest_cookie(session_id)}={value}; {attributes}"
    return response
