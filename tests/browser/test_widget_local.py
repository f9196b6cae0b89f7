"""The vendor's widget in its `local` build, signing in at the utility's own page."""

from playwright.async_api import BrowserContext, Page

from tests.browser.test_widget import PGE, SHOP, Shop, replica
from tests.conftest import Replica

__all__ = ["replica"]


async def test_sign_in_at_the_utilitys_own_page(
    page: Page,
    context: BrowserContext,
    replica: Replica,
) -> None:
    shop = await (await Shop(page, replica, "local", SHOP).visit()).start()
    await shop.choose(PGE)
    async with context.expect_page() as opened:
        await shop.press("Sign in at the utility")
    popup = await opened.value
    await popup.wait_for_url("**/sign-in/**")
    await popup.get_by_role("checkbox").first.check()
    await popup.get_by_role("button", name="Approve").click()
    settled = await shop.settled()
    assert settled["status"] == "OM200"
    assert len(settled["serviceAccounts"]) == 1
