"""How every step looks: accessible by axe's rules, and whole, on a phone and a desktop, light and dark."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Literal

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, Route, expect

from service.sandbox.server import SandboxServer
from tests.browser.conftest import let_in
from tests.browser.host import Host, in_token_mode
from tests.conftest import Replica
from tests.walk import PASSWORD

PICTURES: Final = os.environ.get("SCREENSHOTS")
"""A directory: then each screen is kept there for people to look at."""

Scheme = Literal["light", "dark"]
_RULES: Final = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "resultTypes": ["violations"],
}
_CUT: Final = """(dialog) => [dialog, ...dialog.querySelectorAll("*:not(.head span)")]
    .filter((it) => it.clientWidth && it.scrollWidth > it.clientWidth + 1).map((it) => it.outerHTML.slice(0, 80))"""
_LONG: Final = [
    "Lower Rio Grande Valley Rural Electric Membership Cooperative and Water Improvement District No. 17",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkgesellschaft",
]
_ARABIC: Final = {
    "title": "اربط حساب المرافق الخاص بك",
    "next": "متابعة",
    "chooseTitle": "اختر شركة المرافق",
    "signInTitle": "تسجيل الدخول إلى {provider}",
    "username": "اسم المستخدم",
    "password": "كلمة المرور",
    "signIn": "تسجيل الدخول",
    "accountsTitle": "اختر الحسابات التي تريد مشاركتها",
    "meter": "العداد {number}",
}


class Look:
    """Looks at one screen after the other."""

    def __init__(self, page: Page, name: str) -> None:
        self._page = page
        self._name = name
        self._seen = 0

    async def at(self, screen: str) -> None:
        if self._seen == 0:
            await self._page.evaluate(Axe().axe_script)
        found = (await self._page.evaluate("(options) => axe.run(options)", _RULES))["violations"]
        faults = [(each["id"], [node["target"] for node in each["nodes"]]) for each in found]
        assert faults == [], screen
        assert await self._page.evaluate("document.documentElement.scrollWidth <= innerWidth"), screen
        assert await self._page.get_by_role("dialog").evaluate(_CUT) == [], f"{screen} is wider than its dialog"
        self._seen += 1
        if PICTURES:
            await self._page.mouse.move(0, 0)
            await self._page.screenshot(path=Path(PICTURES) / f"{self._name}-{self._seen:02d}-{screen}.png")


ALL_LOOKS: list[tuple[int, int, Scheme]] = [
    (320, 640, "dark"),
    (1280, 800, "light"),
    (320, 640, "light"),
    (1280, 800, "dark"),
]
LOOKS = ALL_LOOKS if PICTURES else ALL_LOOKS[:2]
"""Each width and each scheme once; all four when pictures are taken."""


@pytest.fixture(params=LOOKS, ids=[f"{width}-{scheme}" for width, _, scheme in LOOKS])
async def page(request: pytest.FixtureRequest, browser: Browser) -> AsyncIterator[Page]:
    width, height, scheme = request.param
    context = await browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(10_000)
    yield await context.new_page()
    await context.close()


@pytest.fixture
def look(page: Page, request: pytest.FixtureRequest) -> Look:
    width, _, scheme = request.node.callspec.params["page"]
    return Look(page, f"{width}-{scheme}")


async def test_every_step(page: Page, replica: Replica, upstream: SandboxServer, look: Look) -> None:
    host = await in_token_mode(page, replica, hostName="Sunny Solar")
    await host.start()
    await host.sees("Connect your utility account")
    await look.at("consent")
    await host.press("Continue")
    await host.sees("Choose your utility")
    await expect(host.dialog.locator("img").first).to_have_js_property("complete", value=True)
    await look.at("providers")
    await host.dialog.get_by_role("searchbox").fill("zzz")
    await look.at("none-found")
    await host.dialog.get_by_role("searchbox").fill("kestrel")
    await host.dialog.get_by_role("button", name="Kestrel").click()
    await look.at("oauth")
    async with page.context.expect_page() as opening:
        await host.press("Continue at Kestrel Point Energy")
    await host.sees("Waiting for you to finish")
    await look.at("oauth-waiting")
    await host.press("Back")
    await (await opening.value).close()
    await host.press("Back")
    await host.dialog.get_by_role("button", name="Arizona").click()
    await look.at("sign-in")
    await host.press("Sign in")
    await look.at("empty")
    await host.sign_in("user_good", "wrong")
    await host.dialog.get_by_text("is not correct").wait_for()
    await look.at("wrong")
    upstream.world.settings.speed = 1000.0
    async with page.expect_response("**/validations"):
        await host.sign_in("user_forty")
    await host.sees("Signing in")
    await host.dialog.get_by_text("usually takes").wait_for()
    await look.at("working")
    let_in(upstream)
    await host.sees("Choose the accounts")
    await look.at("accounts")
    await host.dialog.get_by_role("checkbox").nth(1).check()
    await host.dialog.get_by_role("checkbox").nth(2).check()
    await look.at("chosen")
    looked = asyncio.Event()

    async def linked_later(route: Route) -> None:
        await looked.wait()
        await route.continue_()

    await page.route("**/links", linked_later)
    await host.press("Share 2 accounts")
    await host.sees("Linking your accounts")
    await look.at("linking")
    looked.set()
    await host.sees("Your accounts are connected")
    await look.at("linked")


async def test_what_goes_wrong(page: Page, replica: Replica, look: Look) -> None:
    look._name += "-wrong"
    host = await in_token_mode(page, replica)
    await host.start()
    await host.to_sign_in()
    await host.sign_in("user_server_error")
    await host.sees("That did not work")
    await look.at("broken")
    await host.press("Try again")
    await host.sign_in("user_none")
    await host.dialog.get_by_text("no service account").wait_for()
    await look.at("none")


async def test_right_to_left(page: Page, replica: Replica, look: Look) -> None:
    look._name += "-rtl"
    walk = await replica.walk().open()
    options = {"token": walk.token, "strings": _ARABIC, "lang": "ar"}
    host = await Host(page, replica, walk, options, direction="rtl").visit()
    await host.start()
    await host.sees(_ARABIC["title"])
    await look.at("consent")
    await host.press(_ARABIC["next"])
    close, back = [await host.dialog.locator(name).bounding_box() for name in ("#close", "#back")]
    assert close is not None
    assert back is not None
    assert close["x"] < back["x"]
    await host.dialog.get_by_role("button", name="Arizona").click()
    await look.at("sign-in")
    await host.dialog.get_by_label(_ARABIC["username"]).fill("user_quick")
    await host.dialog.get_by_label(_ARABIC["password"], exact=True).fill(PASSWORD)
    await host.press(_ARABIC["signIn"])
    await host.sees(_ARABIC["accountsTitle"])
    await look.at("accounts")
    # An address keeps its own direction: the house number stays before the street.
    places = """(text) => [[0, 3], [4, 8]].map(([start, end]) => {
      const range = document.createRange();
      range.setStart(text.firstChild, start);
      range.setEnd(text.firstChild, end);
      return range.getBoundingClientRect().left;
    })"""
    number, street = await host.dialog.locator("bdi", has_text="100 East").evaluate(places)
    assert number < street


async def test_full_screen(page: Page, replica: Replica, look: Look) -> None:
    look._name += "-full"
    host = await in_token_mode(page, replica, hostName="Sunny Solar", fullScreen=True)
    await host.start()
    await host.sees("Connect your utility account")
    await look.at("consent")
    window = page.viewport_size
    box = await host.dialog.bounding_box()
    assert window is not None
    assert box is not None
    if window["width"] == 320:
        assert box == {"x": 0, "y": 0, **window}
    else:
        assert (box["width"], box["height"]) == (424, 640)
        assert (box["x"], box["y"]) == ((window["width"] - 424) / 2, (window["height"] - 640) / 2)
    # Nothing of the page behind shines through, and the card stands out from it.
    behind = await host.dialog.evaluate("(it) => getComputedStyle(it, '::backdrop').backgroundColor")
    assert behind.startswith("rgb(")
    assert behind != await host.dialog.evaluate("(it) => getComputedStyle(it).backgroundColor")
    await host.to_sign_in()
    await look.at("sign-in")
    await host.sign_in("user_good")
    await host.sees("Choose the accounts")
    await look.at("accounts")


async def test_long_names_and_addresses(page: Page, replica: Replica, look: Look) -> None:
    look._name += "-long"

    async def providers(route: Route) -> None:
        answer = await route.fetch()
        envelope = await answer.json()
        for number, each in enumerate(envelope["providers"]):
            each["name"] = f"{_LONG[number % 2]} {number}"
            each["available"] = number != 2
            each["signIn"] = "oauth" if number == 3 else "password"
        await route.fulfill(response=answer, body=json.dumps(envelope))

    async def accounts(route: Route) -> None:
        answer = await route.fetch()
        envelope = await answer.json()
        for each in envelope["serviceAccounts"]:
            each["address"] |= {"street": "12345 " + _LONG[0], "city": _LONG[1]}
            each["legalNames"] = ["Wolfeschlegelsteinhausenbergerdorff Familienstiftung", "J. Doe"]
            each["meterNumber"] = "0123456789" * 5
        await route.fulfill(response=answer, body=json.dumps(envelope))

    await page.route("**/v1/providers", providers)
    await page.route("**/service-accounts", accounts)
    host = await in_token_mode(page, replica, hostName=f"{_LONG[1]} of Greater Maricopa County")
    await host.start()
    await host.sees("Connect your utility account")
    await look.at("consent")
    await host.press("Continue")
    await host.sees("Choose your utility")
    await look.at("providers")
    await host.dialog.get_by_role("button", name=_LONG[1]).nth(1).click()
    await look.at("oauth")
    await host.press("Back")
    await host.dialog.get_by_role("button", name=_LONG[0]).first.click()
    await look.at("sign-in")
    await host.sign_in("user_server_error")
    await host.sees("That did not work")
    await look.at("broken")
    await host.press("Try again")
    await host.sign_in("user_good")
    await host.sees("Choose the accounts")
    await look.at("accounts")


async def test_colours_and_motion_are_the_host_s_to_choose(page: Page, replica: Replica) -> None:
    host = await in_token_mode(page, replica)
    await page.evaluate(
        """() => {
          const sheet = new CSSStyleSheet();
          sheet.replaceSync("#widget { --omniconnect-accent: rgb(120, 0, 80); --omniconnect-color-scheme: light }");
          document.adoptedStyleSheets = [sheet];
        }"""
    )
    await host.start()
    colour = "(it) => getComputedStyle(it).backgroundColor"
    button = host.dialog.get_by_role("button", name="Continue")
    assert await button.evaluate(colour) == "rgb(120, 0, 80)"
    assert await host.dialog.evaluate(colour) == "rgb(255, 255, 255)"
    await host.to_sign_in()
    await host.sign_in("user_never")
    await host.sees("Signing in")
    moving = "(it) => getComputedStyle(it.querySelector('.spin')).animationName"
    assert await host.dialog.evaluate(moving) == "fade"
