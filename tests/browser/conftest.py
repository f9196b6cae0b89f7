"""A real browser: Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import AsyncIterator
from typing import Final

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright
from redis.asyncio import Redis

from service.sandbox.server import SandboxServer
from tests.conftest import Replica, make_settings, running_replica

_PROGRAMS: Final = ("chromium-headless-shell", "chromium", "google-chrome")
"""The first is the same engine without windows, and costs a quarter of the time."""

_FLAGS: Final = (
    "--no-sandbox",  # root has no other way, and all pages here are our own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Pages that a test makes up have no address, and would not be let through to this machine's.
    "--disable-features=LocalNetworkAccessChecks",
)

_PREFIX: Final = "browser"  # each test process has a Valkey of its own


def let_in(upstream: SandboxServer) -> None:
    """The utility has kept everybody waiting; now it is content."""
    waiting = [job.id for job in upstream.world._known.jobs.values() if not job.finished]
    assert waiting
    for job_id in waiting:
        upstream.world.finish(job_id, "success")


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Chromium, once per test process."""
    path = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if path is None:
        pytest.skip("no Chromium here; the whole build installs it")
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        yield launched
        await launched.close()


@pytest.fixture
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """A browser without a past."""
    opened = await browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    opened.set_default_timeout(10_000)
    yield opened
    await opened.close()


@pytest.fixture
async def page(context: BrowserContext) -> Page:
    """An empty page."""
    return await context.new_page()


@pytest.fixture(scope="session")
async def _lasting(valkey: str, omniconnect_sandbox_server: SandboxServer) -> AsyncIterator[Replica]:
    settings = make_settings(valkey, omniconnect_sandbox_server.url, _PREFIX)
    async with running_replica(settings) as started:
        yield started


@pytest.fixture
async def replica(_lasting: Replica, valkey: str, upstream: SandboxServer) -> Replica:  # noqa: ARG001 -- reset by it
    """One instance for all tests of this process, which has forgotten those before."""
    async with Redis.from_url(valkey) as store:
        keys = [key async for key in store.scan_iter(f"{_PREFIX}:*", count=1000)]
        if keys:
            await store.unlink(*keys)
    return _lasting
