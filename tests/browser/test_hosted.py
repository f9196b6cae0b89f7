"""The hosted page, opened from a message on whatever device the person has."""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Page, Route, expect

from service.settings import SANDBOX_SECRET
from tests.browser.host import Host
from tests.conftest import Replica

BACK = "http://localhost:4200/linked?user=7"


async def invite(replica: Replica, **hosted: Any) -> dict[str, Any]:
    body = {"hosted": {"returnUrl": BACK} | hosted}
    answer = await replica.client.post("/v1/sessions", json=body, headers=replica.walk().server_headers)
    session: dict[str, Any] = answer.json()["session"]
    return session


async def visit(page: Page, replica: Replica, session: dict[str, Any]) -> Host:
    host = Host(page, replica, replica.walk())
    host.walk.id = session["id"]
    page.on("console", lambda said: host._hear(said.type, said.text))
    page.on("pageerror", lambda error: host.complaints.append(str(error)))
    await page.route("http://localhost:4200/**", _host)
    await page.goto(session["url"])
    return host


async def begin(page: Page, replica: Replica, session: dict[str, Any]) -> Host:
    """Open the link, and start."""
    host = await visit(page, replica, session)
    await page.get_by_role("button", name="Start").click()
    return host


async def _host(route: Route) -> None:
    await route.fulfill(body="<!doctype html><title>Host</title><h1>Back at the host</h1>", content_type="text/html")


async def test_links_and_returns_to_the_host(page: Page, replica: Replica) -> None:
    session = await invite(replica)
    called: list[str] = []
    page.on("request", lambda request: called.append(f"{request.url} {request.headers} {request.post_data}"))
    host = await begin(page, replica, session)
    await host.to_sign_in()
    assert page.url == f"{replica.url}/link/{session['id']}"
    await host.sign_in("user_one")
    await host.press("Share 1 account")
    await host.press("Done")
    await expect(page.get_by_role("heading", name="Back at the host")).to_be_visible()
    assert parse_qs(urlsplit(page.url).query) == {"user": ["7"], "sessionId": [session["id"]], "status": ["OM200"]}
    seen = (await host.walk.show(by_server=True)).json()["session"]
    assert seen["outcome"]["status"] == "OM200"
    assert host.complaints == []
    assert all(each.startswith((replica.url, "http://localhost:4200/linked")) for each in called)
    assert SANDBOX_SECRET not in "".join(called)


async def test_giving_up_returns_where_the_host_wants(page: Page, replica: Replica) -> None:
    session = await invite(replica, cancelUrl="http://localhost:4200/canceled")
    host = await begin(page, replica, session)
    await host.press("Close")
    await page.wait_for_url("http://localhost:4200/canceled?**")
    assert parse_qs(urlsplit(page.url).query)["status"] == ["OM400"]


async def test_a_reload_goes_on_and_another_browser_starts_anew(page: Page, replica: Replica, browser: Browser) -> None:
    session = await invite(replica)
    host = await begin(page, replica, session)
    await host.to_sign_in()
    await host.sign_in("user_good")
    await host.sees("Choose the accounts to share")
    await page.reload()
    await host.sees("Choose the accounts to share")
    # The link once more, as from the message.
    await page.goto(session["url"])
    await host.sees("Choose the accounts to share")
    other = await browser.new_context()
    try:
        second = await begin(await other.new_page(), replica, session)
        await second.to_sign_in()
        await second.sees("Sign in to Arizona Public Service")
    finally:
        await other.close()
    await page.reload()
    await expect(page.get_by_role("heading", name="This link does not work")).to_be_visible()


async def test_after_the_end_it_says_so(page: Page, replica: Replica, browser: Browser) -> None:
    session = await invite(replica)
    host = await begin(page, replica, session)
    await host.press("Close")
    await page.wait_for_url("http://localhost:4200/**")
    await page.goto(session["url"])
    await expect(page.get_by_role("heading", name="Nothing was connected")).to_be_visible()
    await expect(page.get_by_role("link", name="Go back")).to_have_attribute("href", re.compile("status=OM400"))
    await expect(page.get_by_role("dialog")).to_have_count(0)
    other = await browser.new_context()
    try:
        await visit(stranger := await other.new_page(), replica, session)
        await expect(stranger.get_by_role("heading", name="This link has been used")).to_be_visible()
    finally:
        await other.close()


async def test_a_reload_after_linking_still_leads_back(page: Page, replica: Replica) -> None:
    session = await invite(replica)
    host = await begin(page, replica, session)
    await host.to_sign_in()
    await host.sign_in("user_one")
    await host.press("Share 1 account")
    await host.sees("Your accounts are connected")
    await page.reload()
    await expect(page.get_by_role("heading", name="Your accounts are connected")).to_be_visible()
    await page.get_by_role("link", name="Go back").click()
    await page.wait_for_url("http://localhost:4200/linked?**")
    assert parse_qs(urlsplit(page.url).query)["status"] == ["OM200"]


async def test_a_failure_that_passes_loses_nothing(page: Page, replica: Replica) -> None:
    refused = 0

    async def fail(route: Route) -> None:
        nonlocal refused
        refused += 1
        await route.fulfill(status=503, headers={"Retry-After": "0"}, json={"code": "store_unavailable"})

    await page.route("**/enter", fail)
    await visit(page, replica, await invite(replica))
    await page.get_by_role("button", name="Try again").click()
    await page.unroute("**/enter")
    await page.get_by_role("button", name="Start").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    assert refused >= 4


async def test_another_tab_takes_over(page: Page, context: BrowserContext, replica: Replica) -> None:
    session = await invite(replica)
    host = await begin(page, replica, session)
    await host.to_sign_in()
    tab = await context.new_page()
    await visit(tab, replica, session)
    await expect(tab.get_by_role("dialog")).to_be_visible()
    await host.sign_in("user_one")
    await host.press("Close")
    await expect(page.get_by_role("heading", name="This page was opened elsewhere")).to_be_visible()
    await page.get_by_role("button", name="Go on here").click()
    await host.sees("Connect your utility account")


async def test_half_a_link_does_not_work(page: Page, replica: Replica) -> None:
    session = await invite(replica)
    await visit(page, replica, session | {"url": session["url"].partition("#")[0]})
    await expect(page.get_by_role("heading", name="This link does not work")).to_be_focused()
    # And the whole link still does.
    await page.goto("about:blank")
    await begin(page, replica, session)
    await expect(page.get_by_role("dialog")).to_be_visible()


@pytest.mark.parametrize("size", [(320, 640), (1280, 900)], ids=["phone", "desktop"])
async def test_an_app_that_opens_only_at_a_click(
    context: BrowserContext, replica: Replica, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(replica.app.state.steps.sessions._return_urls, "_allowed", {("com.example.app", "", "/linked")})
    session = await invite(replica, returnUrl="com.example.app:/linked")
    page = await context.new_page()
    await page.set_viewport_size({"width": size[0], "height": size[1]})
    host = await begin(page, replica, session)
    await host.press("Close")
    back = page.get_by_role("link", name="Go back")
    await expect(back).to_have_attribute("href", f"com.example.app:/linked?sessionId={session['id']}&status=OM400")
    await page.evaluate(Axe().axe_script)
    assert (await page.evaluate("axe.run()"))["violations"] == []
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if os.environ.get("SCREENSHOTS"):
        await page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"hosted-back-{size[0]}.png")


async def test_signing_in_at_the_utility_comes_back(page: Page, context: BrowserContext, replica: Replica) -> None:
    host = await begin(page, replica, await invite(replica))
    await host.to_sign_in("Pacific Gas and Electric")
    async with context.expect_page() as opening:
        await host.press("Continue at Pacific Gas and Electric Company")
    await (await opening.value).get_by_role("button", name="Approve").click()
    await host.press("Share 1 account")
    await host.press("Done")
    await page.wait_for_url("http://localhost:4200/linked?**")
    assert parse_qs(urlsplit(page.url).query)["status"] == ["OM200"]
