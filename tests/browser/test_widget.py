"""The vendor's widget in a browser, as its builds reach us: same origin, another origin, and rerouted."""

import json
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import BrowserContext, Page, Request, Route, expect

from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_SECRET
from service.tenants import ClientRule
from tests.conftest import Replica, make_settings, running_replica
from tests.walk import PASSWORD

STAND_IN = (resources.files("service") / "web" / "demo" / "widget-stand-in.js").read_text("utf-8")
SHOP = "http://localhost:4300"
LOCAL = "http://localhost:4200"
VENDOR = "https://app.omnimetic.com"
APS = "Arizona Public Service"
PGE = "Pacific Gas and Electric Company"

LINKED = {"message": "Resolved: User account(s) successfully linked", "status": "OM200"}
CLOSED = {"message": "Rejected: User closes the widget", "status": "OM400"}
WRONG_CLIENT = {"message": "Rejected: Incorrect secret or client id", "status": "OM410"}
BROKEN = {"message": "Rejected: Internal server error", "status": "OM500"}

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Shop</title>%(before)s
<div id="widget"></div><script src="/widget.js"></script><script>
window.start = (options) => {
  window.settled = null;
  new Omnimetic("widget", options).open().then(
    (value) => { window.settled = { how: "resolved", value }; },
    (value) => { window.settled = { how: "rejected", value }; },
  );
};
</script></html>"""


class Shop:
    """A page with the vendor's script, and the person before it."""

    def __init__(self, page: Page, replica: Replica, build: str, origin: str) -> None:
        self.page, self.replica, self.build, self.origin = page, replica, build, origin
        self.asked: list[Request] = []

    async def visit(self) -> "Shop":
        self.page.on("request", self._hear)
        await self.page.route(f"{self.origin}/shop.html", self._page)
        await self.page.route(f"{self.origin}/widget.js", self._script)
        if self.build == "local":
            await self.page.route(f"{LOCAL}/**", self._forward)
        await self.page.route(f"{VENDOR}/**", lambda route: route.abort())
        await self.page.goto(f"{self.origin}/shop.html")
        return self

    async def start(self, **options: Any) -> "Shop":
        given = {"clientId": "shop", "secret": "placeholder", "build": self.build} | options
        await self.page.evaluate(f"window.start({json.dumps(given)})")
        return self

    async def choose(self, company: str) -> None:
        await self.page.get_by_label("Utility").select_option(label=company)
        await self.press("Next")

    async def sign_in(self, username: str, password: str = PASSWORD) -> None:
        await self.page.get_by_placeholder("Username").fill(username)
        await self.page.get_by_placeholder("Password").fill(password)
        await self.press("Sign in")

    async def press(self, name: str) -> None:
        await self.page.get_by_role("button", name=name, exact=True).click()

    async def settled(self) -> Any:
        handle = await self.page.wait_for_function("window.settled")
        return (await handle.json_value())["value"]

    def _hear(self, request: Request) -> None:
        self.asked.append(request)

    async def _page(self, route: Route) -> None:
        before = f'<script src="{self.replica.url}/sdk/reroute.js"></script>' if self.build == "production" else ""
        await route.fulfill(body=_PAGE % {"before": before}, content_type="text/html")

    async def _script(self, route: Route) -> None:
        await route.fulfill(body=STAND_IN, content_type="text/javascript")

    async def _forward(self, route: Route) -> None:
        """Port 4200 is this replica."""
        url = route.request.url.replace(LOCAL, self.replica.url)
        await route.fulfill(response=await route.fetch(url=url))


@pytest.fixture
async def replica(valkey: str, upstream: SandboxServer, prefix: str) -> AsyncIterator[Replica]:
    """An instance whose registered page may be on its own origin as well, whatever its port will be."""
    settings = make_settings(
        valkey, upstream.url, prefix, clients={"shop": ClientRule(origins=frozenset({SHOP, "http://127.0.0.1"}))}
    )
    async with running_replica(settings) as started:
        clients = started.app.state.steps.access._clients
        known = clients._clients["shop"]
        object.__setattr__(known, "origins", frozenset({SHOP, started.url}))
        yield started


async def _shop(page: Page, replica: Replica, build: str) -> Shop:
    return await Shop(page, replica, build, replica.url if build == "preview" else SHOP).visit()


@pytest.fixture
async def shop(page: Page, replica: Replica) -> Shop:
    return await _shop(page, replica, "preview")


@pytest.mark.parametrize("build", ["preview", "local", "production"])
async def test_two_accounts_are_linked(page: Page, replica: Replica, upstream: SandboxServer, build: str) -> None:
    shop = await _shop(page, replica, build)
    await shop.start()
    await shop.choose(APS)
    await shop.sign_in("user_good")
    await shop.press("Link")
    settled = await shop.settled()
    assert settled | LINKED == settled
    assert len(settled["serviceAccounts"]) == 2
    assert len(upstream.world.calls.all("batch")) == 1
    hosts = {urlsplit(each.url).netloc for each in shop.asked}
    assert urlsplit(VENDOR).netloc not in hosts
    assert hosts <= {urlsplit(each).netloc for each in (replica.url, SHOP, LOCAL)}
    seen = [each.url + str(each.headers) + (each.post_data or "") for each in shop.asked]
    assert not any(SANDBOX_SECRET in each for each in seen)


@pytest.mark.parametrize("build", ["preview", "local", "production"])
async def test_an_unknown_client_is_told(page: Page, replica: Replica, build: str) -> None:
    shop = await (await _shop(page, replica, build)).start(clientId="nobody")
    assert await shop.settled() == WRONG_CLIENT


async def test_a_wrong_password_and_then_the_right_one(shop: Shop) -> None:
    await shop.start()
    await shop.choose(APS)
    await shop.sign_in("user_quick", "wrong")
    await expect(shop.page.get_by_text("Incorrect username or password")).to_be_visible()
    await shop.sign_in("user_quick")
    await shop.press("Link")
    assert (await shop.settled())["status"] == "OM200"


async def test_closing(shop: Shop) -> None:
    await shop.start()
    await shop.press("Close")
    assert await shop.settled() == CLOSED


@pytest.mark.parametrize("username", ["user_server_error", "user_job_error"])
async def test_a_broken_utility(shop: Shop, username: str) -> None:
    await shop.start()
    await shop.choose(APS)
    await shop.sign_in(username)
    assert await shop.settled() == BROKEN


async def test_a_utility_without_accounts(shop: Shop) -> None:
    await shop.start()
    await shop.choose(APS)
    await shop.sign_in("user_none")
    await expect(shop.page.get_by_text("No accounts")).to_be_visible()
    await shop.press("Close")
    assert await shop.settled() == CLOSED


@pytest.mark.parametrize("build", ["preview", "production"])
async def test_sign_in_at_the_utilitys_own_page(
    page: Page, context: BrowserContext, replica: Replica, build: str
) -> None:
    shop = await (await _shop(page, replica, build)).start()
    await shop.choose(PGE)
    async with context.expect_page() as opened:
        await shop.press("Sign in at the utility")
    popup = await opened.value
    await popup.wait_for_url("**/sign-in/**")
    for box in await popup.get_by_role("checkbox").all():
        await box.check()
    await popup.get_by_role("button", name="Approve").click()
    settled = await shop.settled()
    assert settled["status"] == "OM200"
    assert len(settled["serviceAccounts"]) == 3


async def test_rerouting_touches_the_vendors_api_alone(page: Page, replica: Replica) -> None:
    shop = await _shop(page, replica, "production")
    script = await replica.client.get("/sdk/reroute.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert len(script.content) < 1024
    sent: list[str] = []

    async def catch(route: Route) -> None:
        request = route.request
        sent.append(f"{request.method} {request.url} {request.post_data or ''}".strip())
        await route.fulfill(
            body="{}", headers={"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Headers": "*"}
        )

    for pattern in (
        "**/api/**",
        "https://*.example/**",
        f"{VENDOR}/**",
        "https://api.omnimetic.com/**",
        f"{SHOP}/other",
    ):
        await shop.page.route(pattern, catch)
    addresses = [
        f"{VENDOR}/api/jobs/1?a=b",
        "https://api.omnimetic.com/jobs/2",
        "https://api.omnimetic.com/api/jobs/3",
        f"{VENDOR}/login",
        "https://api.omnimetic.com.example/jobs/4",
        "https://evil.example/https://api.omnimetic.com/jobs",
        "/other",
    ]
    here = [
        f"{replica.url}/api/jobs/1?a=b",
        f"{replica.url}/api/jobs/2",
        f"{replica.url}/api/jobs/3",
        *addresses[3:6],
        f"{SHOP}/other",
    ]
    ways = {
        "xhr": "(u) => new Promise((r) => { "
        "const x = new XMLHttpRequest(); x.open('GET', u); x.onload = x.onerror = r; x.send() })",
        "fetch": "(u) => fetch(u).then(() => 0, () => 0)",
        "url": "(u) => fetch(new URL(u, location)).then(() => 0, () => 0)",
        "request": "(u) => fetch(new Request(u)).then(() => 0, () => 0)",
    }
    for name, way in ways.items():
        sent.clear()
        for address in addresses:
            await shop.page.evaluate(f"async (u) => {{ await ({way})(u); }}", address)
        assert sent == [f"GET {each}" for each in here], name
    sent.clear()
    post = "(u) => fetch(new Request(u, {method: 'POST', body: 'text'})).then(() => 0, () => 0)"
    await shop.page.evaluate(post, addresses[0])
    assert sent == [f"POST {here[0]} text"]
    refused = await shop.page.evaluate("fetch('http://').then(() => 'sent', (error) => error.name)")
    assert refused == "TypeError"
