"""How often one may come: counted for all replicas together, told in headers."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.address import client_address
from service.app import _proxy_headers
from service.link import limits as figures
from service.link.events import MOST_STREAMS
from service.link.limits import ATTEMPTS_WINDOW_SECONDS
from service.link.validate import MOST_PASSWORDS, MOST_PENDING, MOST_VALIDATIONS
from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY, Settings
from service.stores.limits import Limit
from tests.callers.pages import CLIENTS, HOST, OTHER_HOST, open_by_page, page_headers
from tests.callers.provider import AUDIENCE, ISSUER, Provider, new_ec, running_provider
from tests.conftest import Replica, make_settings, running_replica
from tests.walk import SRP

DOORS = [figures.DOOR_BY_ADDRESS, figures.DOOR_BY_CLIENT, figures.DOOR_BY_SUBJECT, figures.DOOR_BY_KEY]
"""As they are shipped; most tests here make do with less."""

KEY = {"Authorization": f"Bearer {SANDBOX_API_KEY}"}


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with running_provider(new_ec("ec")) as started:
        yield started


@pytest.fixture
async def sites(valkey: str, upstream: SandboxServer, prefix: str, provider: Provider) -> AsyncIterator[list[Replica]]:
    """Two instances behind a proxy at 127.0.0.1."""
    settings = make_settings(
        valkey,
        upstream.url,
        prefix,
        clients=CLIENTS,
        trusted_proxies=frozenset({"127.0.0.1"}),
        refusals_per_minute=4,
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        jwt_jwks_url=provider.url,
    )
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running_replica(settings)) for _ in range(2)]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DOOR_BY_ADDRESS", Limit("address", 4, 60))
    monkeypatch.setattr(figures, "DOOR_BY_CLIENT", Limit("client", 6, 60))
    monkeypatch.setattr(figures, "DOOR_BY_SUBJECT", Limit("subject", 4, 60))
    monkeypatch.setattr(figures, "DOOR_BY_KEY", Limit("key", 8, 60))


async def by_page(site: Replica, address: str, client_id: str = "shop-web", origin: str = HOST) -> int:
    headers = page_headers(origin=origin) | {"X-Forwarded-For": address}
    return (await site.client.post("/v1/sessions", headers=headers, json={"clientId": client_id})).status_code


async def test_an_address_opens_so_many_sessions_over_all_replicas(sites: list[Replica]) -> None:
    statuses = [await by_page(sites[each % 2], "203.0.113.7") for each in range(5)]
    assert statuses == [201, 201, 201, 201, 429]
    assert await by_page(sites[0], "203.0.113.8") == 201


async def test_a_refusal_tells_when_to_come_again(site: Replica, upstream: SandboxServer) -> None:
    for _ in range(4):
        await open_by_page(site)
    upstream.world.calls.clear()
    answer = await open_by_page(site)
    assert answer.status_code == 429
    assert answer.json()["code"] == "rate_limited"
    assert answer.json()["retryable"] is True
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.headers["ratelimit-policy"] == '"address";q=4;w=60'
    assert re.fullmatch(r'"address";r=0;t=\d+', answer.headers["ratelimit"])
    assert answer.headers["access-control-allow-origin"] == HOST
    assert upstream.world.calls.all() == []


async def test_one_subscriber_of_ipv6_has_one_share(sites: list[Replica]) -> None:
    statuses = [await by_page(sites[0], f"2001:db8:1:2:{each}::{each}") for each in range(5)]
    assert statuses == [201, 201, 201, 201, 429]
    assert await by_page(sites[0], "2001:db8:1:3::1") == 201


async def test_a_client_has_its_share_whatever_the_address(sites: list[Replica]) -> None:
    statuses = [await by_page(sites[each % 2], f"203.0.113.{each}") for each in range(7)]
    assert statuses == [201] * 6 + [429]
    assert await by_page(sites[0], "203.0.113.99", "other-web", OTHER_HOST) == 201


async def test_a_subject_has_its_share(sites: list[Replica], provider: Provider) -> None:
    def opened(subject: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {provider.token(subject)}"}

    statuses = [
        (await sites[each % 2].client.post("/v1/sessions", headers=opened("a"))).status_code for each in range(5)
    ]
    assert statuses == [201, 201, 201, 201, 429]
    assert (await sites[0].client.post("/v1/sessions", headers=opened("b"))).status_code == 201


async def test_a_key_has_its_share(sites: list[Replica]) -> None:
    statuses = [(await sites[each % 2].client.post("/v1/sessions", headers=KEY)).status_code for each in range(9)]
    assert statuses == [201] * 8 + [429]


async def test_guessing_is_slowed_down_by_address(sites: list[Replica]) -> None:
    async def guess(address: str) -> httpx.Response:
        headers = {"Authorization": "Bearer guess", "X-Forwarded-For": address}
        return await sites[0].client.get("/v1/providers", headers=headers)

    answers = [await guess("203.0.113.7") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 401, 429]
    assert answers[-1].headers["RateLimit-Policy"] == '"refused";q=4;w=60'
    assert (await guess("203.0.113.8")).status_code == 401
    # Whoever has a good key is not locked out by who shares its address.
    headers = KEY | {"X-Forwarded-For": "203.0.113.7"}
    assert (await sites[0].client.get("/v1/providers", headers=headers)).status_code == 200


async def test_a_forwarded_address_is_believed_of_trusted_proxies_alone(site: Replica) -> None:
    statuses = [await by_page(site, f"203.0.113.{each}") for each in range(5)]
    assert statuses == [201, 201, 201, 201, 429]


async def test_what_a_stranger_puts_before_the_proxys_word_counts_nothing(sites: list[Replica]) -> None:
    statuses = [await by_page(sites[0], f"198.51.100.{each}, 203.0.113.7") for each in range(5)]
    assert statuses == [201, 201, 201, 201, 429]


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "unknown"),
        ("", "unknown"),
    ],
)
def test_what_an_address_is_counted_by(host: str, counted: str) -> None:
    assert client_address({"type": "http", "client": (host, 1)}) == counted


def test_a_unix_socket_has_no_address() -> None:
    assert client_address({"type": "http", "client": None}) == "unknown"


def test_the_figures_are_those_that_the_readme_tells() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^  \| [a-z][^|]* \| (.*\d.*) \|$", readme, re.MULTILINE)
    told = [[int(each.replace(",", "")) for each in re.findall(r"\d[\d,]*\d|\d", row)] for row in rows]
    default = {name: field.default for name, field in Settings.model_fields.items()}
    assert {each.window_seconds for each in DOORS} == {60}
    assert told == [
        [60, 6, 64, 600, 60, 6000],
        [default["refusals_per_minute"]],
        [default["account_attempts"], ATTEMPTS_WINDOW_SECONDS // 60, MOST_PASSWORDS],
        [default["address_attempts"], ATTEMPTS_WINDOW_SECONDS // 60],
        [
            figures.SIGN_INS_BY_ADDRESS.most,
            figures.SIGN_INS_BY_CLIENT.most,
            MOST_PENDING,
            MOST_VALIDATIONS,
            figures.READINGS_BY_SESSION.most,
        ],
        [default["session_reads"], MOST_STREAMS],
    ]
    assert [each.most for each in DOORS] == [60, 600, 60, 6000]


async def test_session_routes_tell_what_is_left(site: Replica) -> None:
    walk = await site.walk().open()
    left = []
    for path in ("", "/service-accounts", ""):
        answer = await site.client.get(walk.path + path, headers=walk.headers)
        assert answer.headers["ratelimit-policy"] == '"session";q=300;w=60'
        found = re.fullmatch(r'"session";r=(\d+);t=\d+', answer.headers["ratelimit"])
        assert found
        left.append(int(found[1]))
    assert left == [299, 298, 297]


async def test_servers_are_told_no_quota_of_a_session(site: Replica) -> None:
    walk = await site.walk().open()
    assert "ratelimit" not in (await walk.show(by_server=True)).headers


async def test_servers_and_users_have_shares_of_their_own_in_reading_a_session(
    sites: list[Replica], provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for site in sites:
        monkeypatch.setattr(site.app.state.steps.access, "_reads_limit", Limit("session", 3, 60))
    walk = await sites[0].walk().open(subject="person-1")
    user = {"Authorization": f"Bearer {provider.token('person-1')}"}
    stranger = {"Authorization": f"Bearer {provider.token('person-2')}"}

    async def statuses(headers: dict[str, str]) -> list[int]:
        return [(await sites[each % 2].client.get(walk.path, headers=headers)).status_code for each in range(4)]

    assert await statuses(stranger) == [404] * 4  # as for a session that does not exist
    for reader in (walk.server_headers, user, walk.headers):
        assert await statuses(reader) == [200, 200, 200, 429]
    refused = await sites[0].client.post(f"{walk.path}/tokens", headers=walk.server_headers)
    assert (refused.status_code, refused.headers["ratelimit-policy"]) == (429, '"session";q=3;w=60')


async def test_a_session_has_its_accounts_read_anew_so_often(
    site: Replica, upstream: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (figures.READINGS_BY_SESSION.most, figures.READINGS_BY_SESSION.window_seconds) == (300, 60)
    monkeypatch.setattr(figures, "READINGS_BY_SESSION", Limit("vendor-reads", 5, 60))
    walk = site.walk()
    await walk.ready("user_quick")
    await walk.validate("user_quick", provider=SRP)
    upstream.world.calls.clear()
    statuses = [(await walk.accounts(**{"Cache-Control": "no-cache"})).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert len(upstream.world.calls.all("account")) == 4
    assert (await walk.accounts()).status_code == 200


async def test_a_session_has_its_share_over_both_apis(site: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.app.state.steps.access, "_reads_limit", Limit("session", 2, 60))
    walk = await site.walk().open()
    statuses = [
        (await site.client.get(path, headers=walk.headers)).status_code
        for path in (walk.path, "/api/utility-companies", walk.path)
    ]
    assert statuses == [200, 200, 429]


@pytest.mark.parametrize(("trusted", "peer"), [("10.1.2.3/8", "10.200.0.1"), ("127.0.0.1", "::ffff:127.0.0.1")])
def test_trusted_proxies_are_known_with_host_bits_and_on_a_listener_of_ipv6(trusted: str, peer: str) -> None:
    middleware: Any = _proxy_headers(make_settings("redis://x", "http://127.0.0.1", "x", trusted_proxies={trusted}))[0]
    known = middleware.cls(None, **middleware.kwargs).trusted_hosts
    assert peer in known
    assert "192.0.2.1" not in known
