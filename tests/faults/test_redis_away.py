"""What stays open without Redis, and what says that it does not: the table of the README."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import pytest

from service.errors import StoreUnavailable
from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY, SANDBOX_PUBLISHABLE_CLIENT
from tests.api.calls import ENDPOINTS
from tests.cli.conftest import ROOT
from tests.conftest import Replica, make_settings, running_replica
from tests.faults.redis_line import RedisLine
from tests.link.waiting import until
from tests.walk import APS, Walk

KEY: Final = f"Bearer {SANDBOX_API_KEY}"
ORIGIN: Final = "http://localhost:8000"
TABLE: Final = """\
| without Redis | answer |
|---|---|
| `/livez`, `/metrics`, `/openapi.json`, `/docs`, `/sdk/...`, the hosted page itself | as ever |
| `/readyz` | 200, with `"store": "unavailable"` |
| `GET /v1/providers` with an API key | 200, from memory or with a token that this process fetches for itself |
| `GET /v1/providers` with a session token or a `clientId` | 503 `store_unavailable` |
| opening, reading and closing sessions, validations, service accounts, links, event streams | 503 `store_unavailable` |
| all of `/api` | 503 `store_unavailable` |
| a validation or a link call that is under way | goes on; its result is written down once Redis is back |
"""


@pytest.fixture
async def line(valkey: str) -> AsyncIterator[RedisLine]:
    async with RedisLine(valkey) as running:
        yield running


@pytest.fixture
async def replica(line: RedisLine, upstream: SandboxServer, prefix: str) -> AsyncIterator[Replica]:
    async with running_replica(make_settings(line.url, upstream.url, prefix, redis_timeout=0.1)) as running:
        yield running


async def _open_calls(replica: Replica) -> list[httpx.Response]:
    paths = ["/livez", "/metrics", "/openapi.json", "/docs", "/sdk/omniconnect.js", "/link/ses_1", "/readyz"]
    calls = [replica.client.get(path) for path in paths]
    return await asyncio.gather(*calls, replica.client.get("/v1/providers", headers={"Authorization": KEY}))


async def _closed_calls(replica: Replica, walk: Walk) -> list[httpx.Response]:
    calls = []
    for each in ENDPOINTS:
        path = each.path.format(session=walk.id, validation="val_1")
        headers = {"Authorization": KEY} if each.by_key else walk.headers
        calls.append(replica.client.request(each.method, path, json=each.body, headers=headers))
    page = {"Origin": ORIGIN}
    calls.append(replica.client.get(f"/v1/providers?clientId={SANDBOX_PUBLISHABLE_CLIENT}", headers=page))
    calls.append(replica.client.get(walk.path, headers={"Authorization": KEY}))
    account = "5eedc0de00000000000acc01"
    widget: list[tuple[str, str, object]] = [
        ("POST", "/api/access-token", {"clientId": SANDBOX_PUBLISHABLE_CLIENT, "secret": "-", "name": "-"}),
        ("GET", "/api/utility-companies", None),
        ("POST", "/api/jobs", {"username": "user_quick", "password": "pass_good", "utilityCompanyId": APS}),
        ("GET", "/api/jobs/1", None),
        ("GET", "/api/utility-user-account/1", None),
        ("POST", f"/api/{account}/utility-service-accounts/batch", ["a"]),
    ]
    for method, path, body in widget:
        headers = page if path == "/api/access-token" else page | walk.headers
        calls.append(replica.client.request(method, path, json=body, headers=headers))
    return await asyncio.gather(*calls)


@pytest.mark.parametrize("trouble", ["black_hole", "refused"])
async def test_what_needs_no_redis_answers_as_ever_and_all_else_says_that_it_cannot(
    replica: Replica, line: RedisLine, upstream: SandboxServer, trouble: str
) -> None:
    walk = await replica.walk().open()
    before = len(upstream.world.calls.all())
    if trouble == "refused":
        await line.cut()
    else:
        line.trouble = "black_hole"
    for answer in await _closed_calls(replica, walk):
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable"), answer.request.url
        assert int(answer.headers["Retry-After"]) > 0
    assert len(upstream.world.calls.all()) == before, "nothing was sent for whoever was refused"
    opened = await _open_calls(replica)
    assert [each.status_code for each in opened] == [200] * len(opened), [each.request.url for each in opened]

    async def is_told() -> bool:
        return bool((await replica.client.get("/readyz")).json()["store"] == "unavailable")

    await until(is_told)
    await line.heal()


def test_the_readme_says_so() -> None:
    assert TABLE in (ROOT / "README.md").read_text(encoding="utf-8"), TABLE


async def test_leases_that_are_not_renewed_are_logged_and_no_round_of_a_process_that_holds_none(
    replica: Replica, line: RedisLine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = replica.app.state.steps.validations._watchers._jobs
    renew, failed = jobs.renew, asyncio.Event()

    async def renew_and_tell(*known: Any, **options: Any) -> Any:
        try:
            return await renew(*known, **options)
        except StoreUnavailable:
            failed.set()
            raise

    monkeypatch.setattr(jobs, "renew", renew_and_tell)
    walk = await replica.walk().open()
    await line.cut()
    for _ in range(2):  # when the second one fails, the first one has been logged or not
        failed.clear()
        await failed.wait()
    assert "leases_not_renewed" not in caplog.text
    await line.heal()
    assert (await walk.validate("user_never", wait=None)).status_code == 202
    await line.cut()
    await until(lambda: '"event":"leases_not_renewed"' in caplog.text)
    assert '"jobs":1' in caplog.text
