"""`integrity=`, as a page of another origin uses it."""

import base64
import hashlib

import pytest
from playwright.async_api import Page

from service import __version__
from tests.conftest import Replica

ELSEWHERE = "http://localhost:4000"
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Host</title>
<script src="{address}" integrity="{integrity}" crossorigin="anonymous"></script></html>"""


async def _class_name(page: Page, address: str, integrity: str) -> str:
    """What the script left in a page of another origin."""
    body = _PAGE.format(address=address, integrity=integrity)
    await page.route(f"{ELSEWHERE}/", lambda route: route.fulfill(body=body, content_type="text/html"))
    await page.goto(f"{ELSEWHERE}/")
    found: str = await page.evaluate("typeof Omniconnect === 'function' ? Omniconnect.name : ''")
    return found


@pytest.mark.parametrize("version", ["", f"{__version__}/"], ids=["newest", "pinned"])
async def test_the_hash_that_is_told_lets_the_script_run(page: Page, replica: Replica, version: str) -> None:
    told = (await replica.client.get("/sdk/integrity.json")).json()["omniconnect.js"]
    assert await _class_name(page, f"{replica.url}/sdk/{version}omniconnect.js", told) == "Omniconnect"


async def test_another_hash_blocks_it(page: Page, replica: Replica) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    other = "sha384-" + base64.b64encode(hashlib.sha384(b"another script").digest()).decode()
    assert not await _class_name(page, f"{replica.url}/sdk/omniconnect.js", other)
    assert any("integrity" in each for each in said)
