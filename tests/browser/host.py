"""A host application's page around the client, under the strictest policy that the client promises to bear."""

import json
from dataclasses import dataclass, field
from typing import Any, Final

from playwright.async_api import Locator, Page, Route, expect

from tests.conftest import Replica
from tests.walk import PASSWORD, Walk

__all__ = ["Host", "in_token_mode"]

POLICY: Final = (
    "default-src 'none'; script-src 'self' {service}; connect-src {service}; img-src {service}; style-src 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

_PAGE: Final = """<!doctype html>
<html lang="en" dir="%(dir)s"><head><meta charset="utf-8"><title>Host</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<script src="%(service)s/sdk/omniconnect.js"></script></head>
<body><main><h1>Host application</h1><button id="start">Connect</button><div id="widget"></div></main>
<script src="/host.js"></script></body></html>"""

_SCRIPT: Final = """
window.client = new Omniconnect("widget", %(options)s);
const start = () => {
  window.settled = window.client.open().then(
    (value) => ({ how: "resolved", value }),
    (value) => ({ how: "rejected", value }),
  );
};
document.getElementById("start").addEventListener("click", start);
"""


@dataclass
class Host:
    """One page with the client in it, and what a person does there."""

    page: Page
    replica: Replica
    walk: Walk
    options: dict[str, Any] = field(default_factory=dict)
    direction: str = "ltr"
    origin: str = ""
    complaints: list[str] = field(default_factory=list)

    async def visit(self) -> "Host":
        """Open the page; what its console says from now on is kept."""
        self.page.on("console", lambda said: self._hear(said.type, said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        origin = self.origin or self.replica.url
        await self.page.route(f"{origin}/host.*", self._serve)
        await self.page.goto(f"{origin}/host.html")
        return self

    async def start(self) -> None:
        await self.page.get_by_role("button", name="Connect").click()

    async def to_sign_in(self, provider: str = "Arizona Public Service") -> None:
        """Consent, and choose a utility."""
        await self.press("Continue")
        await self.dialog.get_by_role("button", name=provider).click()

    async def sign_in(self, username: str, password: str = PASSWORD) -> None:
        await self.dialog.get_by_label("Username").fill(username)
        await self.dialog.get_by_label("Password", exact=True).fill(password)
        await self.press("Sign in")

    async def press(self, name: str) -> None:
        await self.dialog.get_by_role("button", name=name, exact=True).last.click()

    async def sees(self, heading: str) -> None:
        await expect(self.dialog.get_by_role("heading", name=heading)).to_be_visible()

    @property
    def dialog(self) -> Locator:
        return self.page.get_by_role("dialog")

    async def settled(self) -> dict[str, Any]:
        """How the promise settled."""
        found: dict[str, Any] = await self.page.evaluate("window.settled")
        return found

    async def stored(self) -> str:
        """All that this page keeps in the browser."""
        return str(
            await self.page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
        )

    def _hear(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.complaints.append(text)

    async def _serve(self, route: Route) -> None:
        if route.request.url.endswith(".js"):
            script = _SCRIPT % {"options": json.dumps(self.options)}
            await route.fulfill(body=script, content_type="text/javascript")
            return
        await route.fulfill(
            body=_PAGE % {"dir": self.direction, "service": self.replica.url},
            content_type="text/html; charset=utf-8",
            headers={"Content-Security-Policy": POLICY.format(service=self.replica.url)},
        )


async def in_token_mode(page: Page, replica: Replica, **options: Any) -> Host:
    """A host whose server made the session."""
    walk = await replica.walk().open()
    return await Host(page, replica, walk, {"token": walk.token, **options}).visit()
