"""The sign-in page of the sandbox's OAuth companies."""

import secrets
from html import escape
from typing import Final
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from service.sandbox.companies import COMPANIES, PGE_CLIENT_ID, PGE_REDIRECT_URI, Company
from service.sandbox.people import ServiceAccount, oauth_choices
from service.sandbox.world import AlreadyFinished, Job, World

__all__ = ["SignIn"]

STYLE: Final = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: Canvas; color: CanvasText; }
main { width: min(26rem, 90vw); padding: 2rem; border: 1px solid color-mix(in srgb, CanvasText 20%, Canvas);
  border-radius: 12px; }
header { display: flex; gap: 1rem; align-items: center; margin-bottom: 1rem; }
header img { width: 3rem; height: 3rem; } h1 { font-size: 1.15rem; margin: 0; }
fieldset { border: 0; margin: 0 0 1.5rem; padding: 0; } legend { padding: 0; margin-bottom: .5rem; }
label { display: flex; gap: .75rem; padding: .5rem 0; } small { display: block; opacity: .7; }
.actions { display: flex; gap: .75rem; }
button { font: inherit; padding: .6rem 1.2rem; border-radius: 8px; border: 1px solid #1f5fbf; cursor: pointer; }
button[value=approve] { background: #1f5fbf; color: #fff; } button[value=deny] { background: none; color: inherit; }
"""

ACCEPTED_PARAMETERS: Final = frozenset({"client_id", "redirect_uri", "response_type", "state"})


class SignIn:
    """Where a person approves or denies, which ends the job that waits for it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def routes(self) -> list[Route]:
        """The page, and the form on it that posts back to the same address."""
        return [
            Route("/{company}", self.show, methods=["GET"]),
            Route("/{company}", self.decide, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        """Ask the person."""
        try:
            job = self._waiting_job(request)
        except PageRefusal as exc:
            return exc.page()
        return _page(200, job.company, _form(oauth_choices(job.company)))

    async def decide(self, request: Request) -> Response:
        """End the job as the person decided."""
        form = parse_qs((await request.body()).decode("utf-8", "replace"))
        try:
            job = self._waiting_job(request)
            granted = _granted(form, job.company)
            self._world.finish(job.id, "success" if granted else "incorrect", granted)
        except PageRefusal as exc:
            return exc.page()
        except AlreadyFinished:
            return PageRefusal(409, "This sign-in has been decided already.").page()
        told = "You approved. You can close this window." if granted else "You denied. You can close this window."
        return _page(200, job.company, f"<p role=status>{told}</p>")

    def _waiting_job(self, request: Request) -> Job:
        company = COMPANIES.get(request.path_params["company"])
        if company is None or company.sign_in != "oauth":
            raise PageRefusal(404, "There is no such sign-in page.")
        query = dict(request.query_params)
        if len(request.query_params.multi_items()) != len(query) or not ACCEPTED_PARAMETERS.issuperset(query):
            raise PageRefusal(400, "This address carries what it should not.")
        if query.get("response_type") != "code":
            raise PageRefusal(400, "This address lacks response_type=code.")
        if company.job_type == "PGELogin":
            _check_public_client(query)
        kind, _, job_id = query.get("state", "").partition("=")
        job = self._world.job(job_id) if kind == "jobId" else None
        if job is None or job.company != company:
            raise PageRefusal(400, "This address lacks the state of a sign-in that waits here.")
        if job.finished:
            raise PageRefusal(409, "This sign-in has been decided already.")
        return job


class PageRefusal(Exception):
    """A page that says what is wrong with the address or the form."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self._status = status
        self._message = message

    def page(self) -> Response:
        """The refusal for people."""
        return _page(self._status, None, f"<p role=alert>{escape(self._message)}</p>")


def _check_public_client(query: dict[str, str]) -> None:
    if query.get("client_id") != PGE_CLIENT_ID:
        raise PageRefusal(400, "client_id is not the one that the vendor has here.")
    if query.get("redirect_uri") != PGE_REDIRECT_URI:
        raise PageRefusal(400, "redirect_uri is not the one that the vendor has here.")


def _granted(form: dict[str, list[str]], company: Company) -> tuple[ServiceAccount, ...]:
    """The accounts that were ticked; none when the person denied."""
    match form.get("decision"):
        case ["deny"]:
            return ()
        case ["approve"]:
            offered = {account.id: account for account in oauth_choices(company)}
            ticked = dict.fromkeys(form.get("account", []))
            if not ticked or not offered.keys() >= ticked.keys():
                raise PageRefusal(400, "Choose at least one of the accounts on the page.")
            return tuple(offered[account_id] for account_id in ticked)
        case _:
            raise PageRefusal(400, "Approve or deny.")


def _form(offered: tuple[ServiceAccount, ...]) -> str:
    choices = "".join(
        f"<label><input type=checkbox name=account value={account.id}{' checked' if number == 0 else ''}>"
        f"<span>{escape(account.street)}<small>{escape(account.meter_number or 'no meter number')}, "
        f"{escape(account.holder)}</small></span></label>"
        for number, account in enumerate(offered)
    )
    return (
        "<p>OmniConnect asks to read your energy use. Which accounts may it see?</p><form method=post>"
        f"<fieldset><legend>Your service accounts</legend>{choices}</fieldset>"
        "<div class=actions><button name=decision value=approve>Approve</button>"
        "<button name=decision value=deny>Deny</button></div></form>"
    )


def _page(status: int, company: Company | None, content: str) -> Response:
    nonce = secrets.token_urlsafe(16)
    title = escape(f"Sign in at {company.name}" if company else "Sign in")
    logo = f'<img src="{escape(company.logo)}" alt="">' if company else ""
    html = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title} (sandbox)</title><style nonce={nonce}>{STYLE}</style>"
        f"<main><header>{logo}<h1>{title}<small>Sandbox, nothing here is real</small></h1></header>"
        f"{content}</main></html>"
    )
    policy = f"default-src 'none'; img-src data:; style-src 'nonce-{nonce}'; form-action 'self'; frame-ancestors 'none'"
    headers = {"content-security-policy": policy, "cache-control": "no-store", "referrer-policy": "no-referrer"}
    return HTMLResponse(html, status, headers)
