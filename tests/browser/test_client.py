"""The browser client, walked through by a person in a real browser."""

from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page, expect

from service.sandbox.people import PEOPLE, Person
from service.sandbox.server import SandboxServer
from service.settings import Settings
from service.tenants import ClientRule
from tests.browser.conftest import let_in
from tests.browser.host import Host, in_token_mode
from tests.conftest import Replica, running_replica
from tests.walk import PASSWORD

CLOSED = {"how": "rejected", "value": {"message": "Rejected: User closes the widget", "status": "OM400"}}
REFUSED = {"how": "rejected", "value": {"message": "Rejected: Incorrect secret or client id", "status": "OM410"}}
BROKEN = {"how": "rejected", "value": {"message": "Rejected: Internal server error", "status": "OM500"}}


@pytest.fixture
async def host(page: Page, replica: Replica) -> Host:
    """A page whose dialog is open."""
    opened = await in_token_mode(page, replica)
    await opened.start()
    return opened


async def test_links_two_accounts(page: Page, replica: Replica, upstream: SandboxServer) -> None:
    host = await in_token_mode(page, replica, consentVersion="2024-01")
    called: list[str] = []
    page.on("request", lambda request: called.append(request.url))
    await host.start()
    await host.to_sign_in()
    await host.sign_in("user_good")
    await host.sees("Choose the accounts to share")
    await host.dialog.get_by_label("Select all").check()
    assert await host.stored() == '[{},{},""]'
    await host.press("Share 2 accounts")
    await host.sees("Your accounts are connected")
    await host.press("Done")
    session = (await host.walk.show(by_server=True)).json()["session"]
    assert await host.settled() == {"how": "resolved", "value": session["outcome"]}
    assert session["outcome"]["status"] == "OM200"
    assert len(session["outcome"]["serviceAccounts"]) == 2
    assert session["link"]["consent"]["version"] == "2024-01"
    assert len(upstream.world.calls.all("batch")) == 1
    assert all(url.startswith(replica.url) for url in called)
    assert host.complaints == []


async def test_a_wrong_password_gets_another_try(host: Host) -> None:
    await host.to_sign_in()
    await host.sign_in("user_one", "wrong")
    await expect(host.dialog.get_by_role("alert")).to_contain_text("The username or password is not correct.")
    await expect(host.dialog.get_by_label("Username")).to_have_value("user_one")
    await expect(host.dialog.get_by_label("Password", exact=True)).to_be_focused()
    await expect(host.dialog.get_by_label("Password", exact=True)).to_have_value("")
    await host.sign_in("user_one")
    await host.press("Share 1 account")
    await host.sees("Your accounts are connected")
    # Whichever way the success is left, it stays one.
    await host.page.keyboard.press("Escape")
    assert (await host.settled())["value"]["status"] == "OM200"


@pytest.mark.parametrize("how", ["button", "escape"])
async def test_closing_ends_the_session(host: Host, how: str) -> None:
    await host.to_sign_in()
    if how == "button":
        await host.press("Close")
    else:
        await host.page.keyboard.press("Escape")
    assert await host.settled() == CLOSED
    assert (await host.walk.show(by_server=True)).json()["session"]["state"] == "closed"
    await expect(host.dialog).to_have_count(0)
    assert host.complaints == []


async def test_a_broken_utility(host: Host) -> None:
    await host.to_sign_in()
    await host.sign_in("user_server_error")
    await host.sees("That did not work")
    await expect(host.dialog.get_by_role("alert")).to_have_text("Arizona Public Service cannot be reached right now.")
    await host.press("Try again")
    await host.sees("Sign in to Arizona Public Service")
    await host.sign_in("user_job_error")
    await host.sees("That did not work")
    await host.press("Close")
    assert await host.settled() == BROKEN


async def test_what_javascript_takes_for_the_end_of_a_line_ends_none_of_the_stream(
    page: Page, replica: Replica
) -> None:
    walk = await replica.walk().open(metadata={"note": "one\u2028two"})
    host = await Host(page, replica, walk, {"token": walk.token}).visit()
    asked_to_wait: list[str] = []  # which is the client's way where it has no stream
    page.on("request", lambda request: asked_to_wait.extend(filter(None, [request.headers.get("prefer")])))
    await host.start()
    await host.to_sign_in()
    await host.sign_in("user_one")
    await host.sees("Choose the accounts to share")
    assert asked_to_wait == []


async def test_no_accounts_leads_to_another_utility(host: Host) -> None:
    await host.to_sign_in()
    await host.sign_in("user_none")
    await expect(host.dialog.get_by_role("alert")).to_have_text("There is no service account behind this sign-in.")
    await host.press("Choose another utility")
    await host.sees("Choose your utility")


async def test_forty_accounts_of_two_utilities(host: Host) -> None:
    await host.to_sign_in()
    await host.sign_in("user_forty")
    await expect(host.dialog.get_by_role("checkbox")).to_have_count(41)
    await expect(host.dialog.get_by_role("button", name="Choose at least one account")).to_be_in_viewport()
    await host.press("Add another utility")
    await host.dialog.get_by_role("button", name="Salt River Project").click()
    await host.sign_in("user_one")
    await expect(host.dialog.get_by_role("checkbox")).to_have_count(42)
    await host.dialog.get_by_label("Select all").check()
    await host.press("Share 41 accounts")
    await host.press("Done")
    assert len((await host.settled())["value"]["serviceAccounts"]) == 41


async def test_no_more_accounts_are_chosen_than_one_link_takes(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEOPLE, "user_crowd", Person("user_crowd", accounts=201, seconds=0.0))
    await host.to_sign_in()
    await host.sign_in("user_crowd")
    await expect(host.dialog.get_by_role("status")).to_have_text("Up to 200 accounts can be shared. Choose which.")
    boxes = host.dialog.get_by_role("checkbox")
    await host.dialog.get_by_label("Select the first 200").check()
    await expect(host.dialog.get_by_role("button", name="Share 200 accounts")).to_be_enabled()
    await boxes.last.check()
    refusal = host.dialog.get_by_role("button", name="Choose at most 200 accounts")
    await expect(refusal).to_have_attribute("aria-disabled", "true")
    await refusal.click(force=True)
    await host.sees("Choose the accounts to share")
    await boxes.nth(1).uncheck()
    await host.press("Share 200 accounts")
    await host.press("Done")
    linked = (await host.settled())["value"]
    assert linked["status"] == "OM200"
    assert len(linked["serviceAccounts"]) == 200


async def test_an_unclear_link_is_told_as_such(host: Host, upstream: SandboxServer) -> None:
    await host.to_sign_in()
    await host.sign_in("user_link_lost")
    await host.dialog.get_by_label("Select all").check()
    await host.press("Share 2 accounts")
    await expect(host.dialog.get_by_role("alert")).to_contain_text("We could not confirm")
    await host.page.keyboard.press("Escape")
    assert await host.settled() == BROKEN
    assert len(upstream.world.calls.all("batch")) == 1


async def test_a_refused_link_can_be_tried_again(host: Host) -> None:
    await host.to_sign_in()
    await host.sign_in("user_link_refused")
    await host.dialog.get_by_label("Select all").check()
    await host.press("Share 2 accounts")
    await host.press("Try again")
    await host.sees("Choose the accounts to share")


async def test_closing_during_the_link_tells_what_became_of_it(host: Host, upstream: SandboxServer) -> None:
    await host.to_sign_in()
    await host.sign_in("user_one")
    upstream.world.faults.add("batch", "delay", value=0.5)
    await host.press("Share 1 account")
    await host.sees("Linking your accounts")
    await host.press("Close")
    assert (await host.settled())["value"]["status"] == "OM200"


async def test_a_bad_token_is_om410(page: Page, replica: Replica) -> None:
    walk = await replica.walk().open()
    host = await Host(page, replica, walk, {"token": walk.token[:-4] + "AAAA"}).visit()
    await host.start()
    await host.sees("That did not work")
    await host.press("Close")
    assert await host.settled() == REFUSED


async def test_oauth_in_a_popup(host: Host, context: BrowserContext) -> None:
    await host.press("Continue")
    await host.dialog.get_by_role("button", name="Pacific Gas and Electric").click()
    async with context.expect_page() as opening:
        await host.press("Continue at Pacific Gas and Electric Company")
    popup = await opening.value
    await popup.get_by_role("button", name="Deny").click()
    await expect(host.dialog.get_by_role("alert")).to_contain_text("did not confirm your sign-in")
    async with context.expect_page() as opening:
        await host.press("Continue at Pacific Gas and Electric Company")
    popup = await opening.value
    await popup.wait_for_url("**/sign-in/**")
    assert await popup.evaluate("window.opener") is None
    await popup.get_by_role("button", name="Approve").click()
    await host.press("Share 1 account")
    await host.press("Done")
    assert (await host.settled())["value"]["status"] == "OM200"
    assert host.complaints == []


async def test_leaving_the_wait_gives_the_validation_up(host: Host) -> None:
    await host.to_sign_in()
    await host.sign_in("user_never")
    await host.sees("Signing in to Arizona Public Service")
    await host.press("Back")
    await host.sees("Sign in to Arizona Public Service")
    [validation] = (await host.walk.show()).json()["session"]["validations"]
    assert (await host.walk.validation(validation["id"], wait=5)).json()["validation"]["reason"] == "canceled"


async def test_a_reload_resumes(host: Host, upstream: SandboxServer) -> None:
    await host.to_sign_in()
    async with host.page.expect_response("**/validations"):
        await host.sign_in("user_never")
    await host.sees("Signing in to Arizona Public Service")
    assert PASSWORD not in await host.stored()
    await host.page.reload()
    await host.start()
    await host.sees("Signing in to Arizona Public Service")
    let_in(upstream)
    await host.sees("Choose the accounts to share")
    await host.page.reload()
    await host.start()
    await host.sees("Choose the accounts to share")


async def test_a_lost_network_is_waited_for(host: Host, context: BrowserContext, upstream: SandboxServer) -> None:
    await host.to_sign_in()
    async with host.page.expect_response("**/validations"):
        await host.sign_in("user_never")
    await host.sees("Signing in to Arizona Public Service")
    await context.set_offline(offline=True)
    let_in(upstream)
    await expect(host.dialog.get_by_text("Your connection was lost.")).to_be_visible()
    await context.set_offline(offline=False)
    await host.sees("Choose the accounts to share")


async def test_a_sign_in_that_no_answer_came_to_is_found_again(host: Host, context: BrowserContext) -> None:
    await host.to_sign_in()
    sent: list[str] = []

    async def lose(route: Any) -> None:
        sent.append(route.request.method)
        await route.fetch()
        await route.abort("connectionreset")

    await context.route("**/validations", lose)
    await host.sign_in("user_one")
    await host.sees("Choose the accounts to share")
    assert sent == ["POST"]


async def test_a_link_that_no_answer_came_to_is_made_once(
    host: Host, context: BrowserContext, upstream: SandboxServer
) -> None:
    await host.to_sign_in()
    await host.sign_in("user_one")
    lost: list[str] = []

    async def lose(route: Any) -> None:
        if lost:
            await route.continue_()
            return
        lost.append(route.request.url)
        await route.fetch()
        await route.abort("connectionreset")

    await context.route("**/links", lose)
    await host.press("Share 1 account")
    await host.sees("Your accounts are connected")
    assert len(upstream.world.calls.all("batch")) == 1


async def test_by_keyboard_alone(page: Page, replica: Replica) -> None:
    host = await in_token_mode(page, replica)
    press = page.keyboard.press
    await page.get_by_role("button", name="Connect").focus()
    await press("Enter")
    await host.sees("Connect your utility account")
    await expect(host.dialog.get_by_role("heading")).to_be_focused()
    await press("Tab")
    await press("Enter")
    await expect(host.dialog.get_by_role("searchbox")).to_be_focused()
    await page.keyboard.type("po")
    names = host.dialog.get_by_role("listitem")
    await expect(host.dialog.get_by_role("status")).to_have_text("6 utilities")
    await page.keyboard.press("Control+A")
    await page.keyboard.type("public")
    await expect(names).to_have_text(["Arizona Public Service", "Ironbark Public Utility"])
    await press("ArrowDown")
    await press("ArrowDown")
    await expect(host.dialog.get_by_role("button", name="Ironbark")).to_be_focused()
    await press("ArrowUp")
    await press("Enter")
    await expect(host.dialog.get_by_label("Username")).to_be_focused()
    await page.keyboard.type("user_one")
    await press("Tab")
    await page.keyboard.type(PASSWORD)
    await press("Enter")
    await host.sees("Choose the accounts to share")
    await press("Tab")
    await press("Tab")
    await press("Enter")
    await host.sees("Your accounts are connected")
    await press("Tab")
    await press("Enter")
    assert (await host.settled())["value"]["status"] == "OM200"
    await expect(page.get_by_role("button", name="Connect")).to_be_focused()
    assert host.complaints == []


async def test_prefix_hits_come_first(host: Host) -> None:
    await host.press("Continue")
    await host.dialog.get_by_role("searchbox").fill("s")
    first = host.dialog.get_by_role("listitem").first
    await expect(first).to_contain_text("Salt River Project")
    await host.dialog.get_by_role("searchbox").fill("zzz")
    await expect(host.dialog.get_by_role("status")).to_have_text("No utility matches “zzz”.")
    await host.dialog.get_by_role("searchbox").fill("san diego")
    await expect(host.dialog.get_by_role("button", name="San Diego")).to_have_attribute("aria-disabled", "true")


async def test_focus_stays_inside_the_dialog(host: Host) -> None:
    await host.sees("Connect your utility account")
    inside = "document.activeElement.shadowRoot !== null || document.activeElement === document.body"
    for key in ["Tab"] * 5 + ["Shift+Tab"] * 5:
        await host.page.keyboard.press(key)
        assert await host.page.evaluate(inside)
    await host.page.get_by_role("button", name="Continue").focus()


async def test_a_small_window_is_filled_and_a_large_one_is_not(host: Host) -> None:
    await host.sees("Connect your utility account")
    # A window, and the dialog's size in it.
    sizes: dict[tuple[int, int], tuple[float, float]]
    sizes = {(450, 800): (450, 800), (740, 360): (424, 360), (740, 600): (424, 568), (1280, 900): (424, 640)}
    for (width, height), size in sizes.items():
        await host.page.set_viewport_size({"width": width, "height": height})
        box = await host.dialog.bounding_box()
        assert box is not None
        assert (box["width"], box["height"]) == size
        assert (box["x"], box["y"]) == ((width - size[0]) / 2, (height - size[1]) / 2)
        await expect(host.dialog.get_by_role("button", name="Continue")).to_be_in_viewport()


async def test_opens_again_after_it_has_settled(host: Host) -> None:
    await host.press("Close")
    assert await host.settled() == CLOSED
    await host.start()
    await host.sees("That did not work")


@pytest.mark.parametrize(
    "script",
    [
        'new Omniconnect("widget", {})',
        'new Omniconnect("nowhere", {clientId: "x"})',
        'new Omniconnect("widget", {clientId: "", token: ""})',
    ],
)
async def test_the_constructor_refuses(host: Host, script: str) -> None:
    assert (
        await host.page.evaluate(f"() => {{ try {{ {script}; }} catch (error) {{ return error.name; }} }}") == "Error"
    )


async def test_both_names_and_the_module_are_the_same_class(host: Host) -> None:
    assert await host.page.evaluate("window.Omniconnect === window.Omnimetic")
    loaded = "import('/sdk/omniconnect.mjs').then((it) => it.Omniconnect === it.Omnimetic && it.Omniconnect.name)"
    assert await host.page.evaluate(loaded) == "Omniconnect"


async def test_a_publishable_client_from_another_origin(
    page: Page, context: BrowserContext, settings: Settings, upstream: SandboxServer
) -> None:
    origin = "http://localhost:4000"
    clients = {"pub_test": ClientRule(name="Test", origins=frozenset({origin}))}
    async with running_replica(settings.model_copy(update={"clients": clients})) as replica:
        host = await Host(page, replica, replica.walk(), {"clientId": "pub_test"}, origin=origin).visit()
        await host.start()
        await host.to_sign_in()
        async with page.expect_response("**/validations"):
            await host.sign_in("user_never")
        await host.sees("Signing in to Arizona Public Service")
        [kept] = await page.evaluate("Object.values(sessionStorage).map(JSON.parse)")
        assert set(kept) == {"id", "token", "agreed"}
        await page.reload()
        await host.start()
        let_in(upstream)
        await host.sees("Choose the accounts to share")
        await host.dialog.get_by_role("checkbox").nth(1).check()
        await host.press("Share 1 account")
        await host.sees("Your accounts are connected")
        assert kept["token"] in await host.stored()
        await host.press("Done")
        assert (await host.settled())["value"]["status"] == "OM200"
        assert await host.stored() == '[{},{},""]'
        assert host.complaints == []
        assert len(context.pages) == 1


async def test_an_unknown_client_is_om410(page: Page, replica: Replica) -> None:
    host = await Host(page, replica, replica.walk(), {"clientId": "pub_unknown"}).visit()
    await host.start()
    await host.sees("That did not work")
    await host.press("Close")
    assert await host.settled() == REFUSED
