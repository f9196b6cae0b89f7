"""The sandbox's demo page, walked through by a person in all three ways."""

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, Request, Response, Route, expect

from service.sandbox.people import PEOPLE
from service.sandbox.server import SandboxServer
from service.settings import (
    SANDBOX_API_KEY,
    SANDBOX_CLIENT_ID,
    SANDBOX_PUBLISHABLE_CLIENT,
    SANDBOX_SECRET,
)
from tests.conftest import Replica, make_settings, running_replica
from tests.walk import PASSWORD

PICTURES: Final = os.environ.get("SCREENSHOTS")
APS: Final = "Arizona Public Service"
_RULES: Final = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "resultTypes": ["violations"],
}
Scheme = Literal["light", "dark"]
LOOKS: Final[list[tuple[int, int, Scheme]]] = [
    (320, 640, "light"),
    (320, 640, "dark"),
    (1280, 900, "light"),
    (1280, 900, "dark"),
]


@pytest.fixture
async def replica(
    valkey: str, upstream: SandboxServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Replica]:
    """An instance as `make run` starts it, but for its port."""
    # Sign-in pages are the utilities', not the vendor's: that address may be told.
    monkeypatch.setattr(upstream.world, "public_url", "https://utility.example")
    async with running_replica(make_settings(valkey, upstream.url, prefix, poll_seconds=1.0)) as started:
        known = started.app.state.steps.access._clients._clients[SANDBOX_PUBLISHABLE_CLIENT]
        object.__setattr__(known, "origins", frozenset({started.url}))
        yield started


class Traffic:
    """Everything that a page sends and receives."""

    def __init__(self) -> None:
        self._noting: list[asyncio.Future[None]] = []
        self.requests: list[str] = []
        self.texts: list[tuple[str, str]] = []

    async def follow(self, page: Page) -> None:
        page.on("request", lambda request: self._noting.append(asyncio.ensure_future(self._sent(request))))
        page.on("response", lambda response: self._noting.append(asyncio.ensure_future(self._received(response))))
        await page.route(_leaves_at_once, self._note_first)

    async def all(self) -> list[tuple[str, str]]:
        await asyncio.gather(*self._noting)
        return self.texts

    async def _note_first(self, route: Route) -> None:
        answer = await route.fetch()
        self.texts.append((f"answer to {route.request.url}", await answer.text()))
        await route.fulfill(response=answer)

    async def _sent(self, request: Request) -> None:
        self.requests.append(request.url)
        where = f"{request.method} {urlsplit(request.url).path}"
        body = request.post_data or ""
        self.texts.append((where, f"{request.url} {body} {await request.all_headers()}"))

    async def _received(self, response: Response) -> None:
        where = f"answer to {response.request.method} {urlsplit(response.url).path}"
        self.texts.append((where, str(await response.all_headers())))
        # A stream has no end to wait for; what events tell is searched with everything else, without a browser.
        if not _leaves_at_once(response.url) and not response.url.endswith("/events"):
            self.texts.append((where, (await response.body()).decode()))


def _leaves_at_once(url: str) -> bool:
    """After this answer the page goes elsewhere, and the browser then has the answer no more."""
    return urlsplit(url).path == "/demo/sessions"


async def open_demo(page: Page, replica: Replica) -> list[str]:
    """Go there; what the browser complains of from now on."""
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto(replica.url)
    return complaints


async def by_vendors_widget(page: Page) -> None:
    await page.get_by_role("button", name="Open the vendor's widget").click()
    widget = page.locator("#widget")
    await widget.get_by_label("Utility").select_option(label=APS)
    await widget.get_by_role("button", name="Next").click()
    await widget.get_by_label("Username").fill("user_good")
    await widget.get_by_label("Password").fill(PASSWORD)
    await widget.get_by_role("button", name="Sign in").click()
    await widget.get_by_role("button", name="Link").click()


async def by_client(page: Page) -> None:
    await page.get_by_role("button", name="Open omniconnect.js").click()
    await in_dialog(page)
    await page.get_by_role("dialog").get_by_role("button", name="Done", exact=True).click()


async def by_hosted_page(page: Page) -> None:
    await page.get_by_role("button", name="Go to the hosted page").click()
    await page.get_by_role("button", name="Start").click()
    await page.wait_for_url("**/link/**")
    await in_dialog(page)
    dialog = page.get_by_role("dialog")
    done = dialog.get_by_role("button", name="Done", exact=True)
    await done.click()
    await page.wait_for_url(lambda url: urlsplit(url).path == "/")


async def in_dialog(page: Page) -> None:
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("button", name="Continue", exact=True).click()
    await dialog.get_by_role("button", name=APS).click()
    await dialog.get_by_label("Username").fill("user_good")
    await dialog.get_by_label("Password", exact=True).fill(PASSWORD)
    await dialog.get_by_role("button", name="Sign in", exact=True).click()
    await dialog.get_by_label("Select all").check()
    await dialog.get_by_role("button", name="Share 2 accounts").click()


async def outcome(page: Page) -> dict[str, Any]:
    """As the page shows it, once it does."""
    shown = page.get_by_role("region", name="Outcome", exact=True)
    await expect(shown.locator("#badge")).to_have_text("OM200", timeout=15_000)
    found: dict[str, Any] = json.loads(await shown.locator("pre").inner_text())
    return found


async def log(page: Page) -> list[tuple[str, str]]:
    """Who called what, so far."""
    rows = await page.locator("#calls tr").all()
    return [((await row.locator("td").nth(0).inner_text()), (await row.locator(".call").inner_text())) for row in rows]


@pytest.mark.parametrize("way", [by_vendors_widget, by_client, by_hosted_page])
async def test_each_way_links_and_no_secret_is_on_the_wire(
    page: Page, replica: Replica, upstream: SandboxServer, way: Callable[[Page], Coroutine[Any, Any, None]]
) -> None:
    if way is by_client:
        upstream.world.settings.speed = 1.0  # the person's own time, as it would be
    traffic = Traffic()
    await traffic.follow(page)
    complaints = await open_demo(page, replica)
    started = time.monotonic()
    await way(page)
    found = await outcome(page)
    print(f"{way.__name__}: {time.monotonic() - started:.2f} s")  # noqa: T201 -- a figure for whoever runs it with -s
    assert found["status"] == "OM200"
    assert len(found["serviceAccounts"]) == 2
    assert len(upstream.world.calls.all("batch")) == 1
    assert complaints == []
    await expect(page.get_by_role("heading", name="Outcome")).to_be_focused()
    assert urlsplit(page.url).query == ""

    calls = upstream.world.calls.all()
    bearers = {call.headers["authorization"].split()[1] for call in calls if "authorization" in call.headers}
    assert bearers
    secrets = {SANDBOX_SECRET, SANDBOX_CLIENT_ID, SANDBOX_API_KEY, *bearers}
    places = {upstream.url, f":{urlsplit(upstream.url).port}"}
    texts = await traffic.all()
    assert len(texts) > 20
    assert [where for where, text in texts if any(each in text for each in secrets | places)] == []
    assert {urlsplit(url).netloc for url in traffic.requests} == {urlsplit(replica.url).netloc}


async def test_the_log_tells_who_called(page: Page, replica: Replica) -> None:
    await open_demo(page, replica)
    await by_hosted_page(page)
    await outcome(page)
    told = [(who, re.sub(r"ses_\S+", "{id}", call)) for who, call in await log(page)]
    assert told == [
        ("Page", "POST /demo/sessions"),
        ("Host's server", "POST /v1/sessions"),
        ("Tab", "GO /link/{id}"),
        ("Tab", "BACK /?status=OM200"),
        ("Page", "GET /demo/sessions/{id}"),
        ("Host's server", "GET /v1/sessions/{id}"),
    ]
    await page.get_by_role("button", name="Clear").click()
    assert await log(page) == []


async def test_closing_the_hosted_page_is_verified_too(page: Page, replica: Replica) -> None:
    await open_demo(page, replica)
    await page.get_by_role("button", name="Go to the hosted page").click()
    await page.get_by_role("button", name="Start").click()
    await page.get_by_role("dialog").get_by_role("button", name="Close", exact=True).click()
    shown = page.get_by_role("region", name="Outcome", exact=True)
    await expect(shown.locator("#badge")).to_have_text("OM400")
    await expect(shown.get_by_text("Verified by the host's server")).to_be_visible()


async def test_an_outcome_is_not_taken_from_the_address(page: Page, replica: Replica) -> None:
    foreign = await replica.walk().open()
    await page.goto(f"{replica.url}/?sessionId={foreign.id}&status=OM200")
    shown = page.get_by_role("region", name="Outcome", exact=True)
    await expect(shown.locator("#badge")).to_have_text("OM400")
    assert json.loads(await shown.locator("pre").inner_text())["code"] == "not_found"


async def test_closing_is_told(page: Page, replica: Replica) -> None:
    complaints = await open_demo(page, replica)
    await page.get_by_role("button", name="Open the vendor's widget").click()
    await page.locator("#widget").get_by_role("button", name="Close").click()
    await expect(page.locator("#badge")).to_have_text("OM400")
    await page.get_by_role("button", name="Open omniconnect.js").click()
    await page.get_by_role("dialog").get_by_role("heading", name="Connect your utility account").wait_for()
    await page.keyboard.press("Escape")
    await expect(page.locator("#told")).to_contain_text("omniconnect.js")
    assert complaints == []


async def test_an_address_that_is_not_registered_is_explained(page: Page, replica: Replica) -> None:
    await page.goto(replica.url.replace("127.0.0.1", "localhost"))
    await page.get_by_role("button", name="Open the vendor's widget").click()
    await expect(page.locator("#badge")).to_have_text("OM410")
    await expect(page.get_by_text("Is this page at an address that")).to_be_visible()


async def test_names_can_be_copied(page: Page, replica: Replica) -> None:
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await open_demo(page, replica)
    await page.get_by_role("listitem").get_by_role("button", name="user_link_lost, copy").click()
    await expect(page.get_by_text("Copied user_link_lost")).to_be_visible()
    assert await page.evaluate("navigator.clipboard.readText()") == "user_link_lost"
    assert await page.get_by_role("listitem").get_by_role("button").count() == len(PEOPLE)


@pytest.mark.parametrize(("width", "height", "scheme"), LOOKS if PICTURES else LOOKS[::3])
async def test_the_page_is_accessible_and_whole(
    browser: Browser, replica: Replica, width: int, height: int, scheme: Scheme
) -> None:
    context = await browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(10_000)
    try:
        page = await context.new_page()
        await open_demo(page, replica)
        await page.evaluate(Axe().axe_script)
        await look(page, f"{width}-{scheme}-1-fresh")
        await page.get_by_role("button", name="Open the vendor's widget").click()
        widget = page.locator("#widget")
        await widget.get_by_label("Utility").wait_for()
        await look(page, f"{width}-{scheme}-2-utility")
        await widget.get_by_role("button", name="Next").click()
        await widget.get_by_label("Username").fill("user_quick")
        await widget.get_by_label("Password").fill(PASSWORD)
        await look(page, f"{width}-{scheme}-3-sign-in")
        await widget.get_by_role("button", name="Sign in").click()
        await widget.get_by_role("button", name="Link").wait_for()
        await look(page, f"{width}-{scheme}-4-accounts")
        await widget.get_by_role("button", name="Link").click()
        await outcome(page)
        await look(page, f"{width}-{scheme}-5-outcome")
    finally:
        await context.close()


async def look(page: Page, name: str) -> None:
    found = (await page.evaluate("(options) => axe.run(options)", _RULES))["violations"]
    assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in found] == [], name
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    if PICTURES:
        await page.screenshot(path=Path(PICTURES) / f"demo-{name}.png", full_page=True)
