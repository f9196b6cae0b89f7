"""Several tenants in one deployment: each has its own, and nothing crosses."""

from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from service.link import limits as figures
from service.stores.limits import Limit
from tests.api.calls import ENDPOINTS
from tests.callers.pages import page_headers, without_request_id
from tests.callers.sides import NORTH_ID, NORTH_SECRET, Both, Side, running_both
from tests.conftest import Replica, make_settings, running_replica
from tests.walk import APS, PASSWORD, Walk

UNKNOWN: Final = {"session": "ses_" + "0" * 32, "validation": "val_" + "0" * 24}


@pytest.fixture(scope="module")
async def lasting_both(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Both]:
    async with running_both(valkey, tmp_path_factory.mktemp("tenants")) as started:
        for replica in started.replicas:
            for side in (started.south, started.north):
                assert (await replica.client.get("/v1/providers", headers=side.key())).status_code == 200
                assert (await replica.client.get("/v1/providers", headers=side.user())).status_code == 200
        yield started


@pytest.fixture
def both(lasting_both: Both) -> Both:
    """The deployment, with tokens and lists in all caches, and nothing in the vendors' logs."""
    lasting_both.forget_calls()
    return lasting_both


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_one_person_links_the_same_accounts_for_each_tenant_at_its_own_vendor(both: Both) -> None:
    told: dict[str, str] = {}
    for side in (both.south, both.north):
        walk = side.walk(both.replicas[0])
        # The two sandboxes give one person's accounts the same ids: a guard that both shared would hold the second.
        chosen = await walk.ready("user_quick")
        linked = await walk.at(both.replicas[1].client).link(chosen)
        assert (linked.status_code, linked.json()["accountId"]) == (201, side.vendor.world.account_id), linked.text
        assert "Idempotency-Replayed" not in linked.headers
        told[side.api_key] = linked.text
    for side, other in ((both.south, both.north), (both.north, both.south)):
        calls = side.vendor.world.calls.all()
        assert [call.route for call in calls if call.route in {"jobs", "batch"}] == ["jobs", "batch"]
        sent = "\n".join(f"{call.path} {call.headers} {call.body}" for call in calls)
        assert [what for what, value in other.secrets.items() if value in sent] == []
        assert all(call.status in {200, 201} for call in calls)
        assert [what for what, value in other.secrets.items() if value in told[side.api_key]] == []


async def test_no_token_goes_to_another_tenants_vendor(both: Both) -> None:
    for side in (both.south, both.north):
        side.vendor.world.tokens.revoke_all()
        for replica in both.replicas:
            assert (await side.walk(replica).ready("user_quick")) != []
    tokens = {
        side.api_key: {call.headers["authorization"] for call in side.vendor.world.calls.all() if call.route != "token"}
        for side in (both.south, both.north)
    }
    assert all(tokens.values())
    assert not tokens[both.south.api_key] & tokens[both.north.api_key]


# Somebody else's


async def _ids(side: Side, replica: Replica) -> tuple[Walk, dict[str, str]]:
    walk = side.walk(replica)
    await walk.open(subject="person-1")
    validation = (await walk.validate("user_quick")).json()["validation"]["id"]
    return walk, {"session": walk.id, "validation": validation}


async def _call(client: httpx.AsyncClient, name: str, ids: dict[str, str], headers: dict[str, str]) -> httpx.Response:
    endpoint = next(each for each in ENDPOINTS if each.name == name)
    return await client.request(endpoint.method, endpoint.path.format(**ids), headers=headers, json=endpoint.body)


@pytest.mark.parametrize("reverse", [False, True], ids=["south asks north's", "north asks south's"])
async def test_another_tenants_ids_look_like_unknown_ones_whoever_asks(both: Both, *, reverse: bool) -> None:
    asking, asked = (both.north, both.south) if reverse else (both.south, both.north)
    replica = both.replicas[0]
    owner, theirs = await _ids(asked, replica)
    own_walk, own = await _ids(asking, replica)
    both.forget_calls()
    callers = {
        "key": asking.key(),
        "user of the same name": asking.user("person-1"),
        "page": page_headers(origin=asking.origin),
        "session": own_walk.headers,
    }
    compared = 0
    for endpoint in ENDPOINTS:
        if "{" not in endpoint.path:
            continue
        for who, headers in callers.items():
            # Of its own session, with another tenant's validation; else with another tenant's session.
            for ids in (theirs, {**own, "validation": theirs["validation"]}):
                if ids["session"] == own["session"] and "{validation}" not in endpoint.path:
                    continue
                unknown = {name: UNKNOWN[name] if ids[name] == theirs[name] else ids[name] for name in ids}
                told = await _call(replica.client, endpoint.name, ids, headers)
                expected = await _call(replica.client, endpoint.name, unknown, headers)
                assert told.status_code == expected.status_code, (endpoint.name, who)
                assert told.status_code in {401, 403, 404}, (endpoint.name, who)
                assert without_request_id(told) == without_request_id(expected), (endpoint.name, who)
                compared += 1
    assert compared == 4 * 9 + 4 * 2
    assert both.upstream_calls() == []
    # All of it is there, for its owner.
    assert (await owner.validation(theirs["validation"])).json()["validation"]["state"] == "succeeded"


async def test_accounts_that_another_tenants_session_learned_cannot_be_chosen(both: Both) -> None:
    replica = both.replicas[0]
    chosen = await both.south.walk(replica).ready("user_quick")
    walk = await both.north.walk(replica).open()
    both.forget_calls()
    told, expected = await walk.link(chosen), await walk.link(["nobodys"])
    assert told.status_code == expected.status_code == 404
    assert without_request_id(told) == without_request_id(expected)
    assert both.upstream_calls() == []


async def test_the_widgets_client_id_chooses_the_tenant_and_takes_no_other_tenants_session(both: Both) -> None:
    replica = both.replicas[0]

    async def ask(side: Side, presented: str = "x") -> httpx.Response:
        headers = page_headers(origin=side.origin)
        return await replica.client.post(
            "/api/access-token", headers=headers, json={"clientId": side.page, "secret": presented}
        )

    for side in (both.south, both.north):
        opened = await ask(side)
        assert opened.json()["id"] == side.vendor.world.account_id
        headers = page_headers(opened.json()["token"], origin=side.origin)
        both.forget_calls()
        body = {"username": "user_quick", "password": PASSWORD, "utilityCompanyId": APS}
        started = await replica.client.post("/api/jobs", headers=headers, json=body)
        assert started.status_code == 201
        job = f"/api/jobs/{started.json()['id']}"
        while (await replica.client.get(job, headers=headers)).json()["status"] == "pending":
            pass
        assert len(side.vendor.world.calls.all("jobs")) == 1
        other = both.north if side is both.south else both.south
        assert other.vendor.world.calls.all("jobs") == []
    south = await both.south.walk(replica).open()
    assert (await ask(both.south, south.token)).json()["token"] == south.token
    both.forget_calls()
    told, expected = await ask(both.north, south.token), await ask(both.north, f"oms_{'0' * 32}_{'A' * 43}")
    assert told.status_code == expected.status_code == 401
    assert without_request_id(told) == without_request_id(expected)
    assert both.upstream_calls() == []


async def test_a_page_of_one_tenant_is_no_page_of_the_other(both: Both) -> None:
    for page, origin in ((both.south.page, both.north.origin), (both.north.page, both.south.origin)):
        headers = page_headers(origin=origin)
        answer = await both.replicas[0].client.post("/v1/sessions", headers=headers, json={"clientId": page})
        assert answer.status_code == 401


async def test_users_are_known_by_their_issuers_keys_alone(both: Both) -> None:
    """Both providers' keys have the same id, and both name the same audience and subject."""
    replica = both.replicas[0]

    async def opened(headers: dict[str, str]) -> int:
        return (await replica.client.post("/v1/sessions", headers=headers, json={})).status_code

    assert await opened(both.south.user()) == await opened(both.north.user()) == 201
    both.forget_calls()
    assert await opened(both.south.user(iss=both.north.issuer)) == 401
    assert await opened(both.north.user(iss=both.south.issuer)) == 401
    assert await opened(both.north.user(iss="https://id.nobody.example/")) == 401
    assert await opened(both.north.user(iss=None)) == 401
    assert both.upstream_calls() == []


async def test_people_are_sent_back_to_their_own_tenants_addresses(both: Both) -> None:
    for side, other in ((both.south, both.north), (both.north, both.south)):
        statuses = []
        for name in (side, other):
            url = f"https://{'south' if name is both.south else 'north'}.example/linked"
            body = {"hosted": {"returnUrl": url}}
            answer = await both.replicas[0].client.post("/v1/sessions", headers=side.key(), json=body)
            statuses.append(answer.status_code)
        assert statuses == [201, 422]


async def test_a_hosted_page_is_entered_whichever_tenants_it_is(both: Both) -> None:
    replica = both.replicas[0]
    for side, url in ((both.south, "https://south.example/linked"), (both.north, "https://north.example/linked")):
        body = {"hosted": {"returnUrl": url}}
        session = (await replica.client.post("/v1/sessions", headers=side.key(), json=body)).json()["session"]
        entered = await replica.client.post(
            f"/link/{session['id']}/enter", json={"secret": session["url"].partition("#")[2], "begin": True}
        )
        walk = side.walk(replica)
        walk.id, walk.token = session["id"], entered.json()["token"]
        both.forget_calls()
        assert (await walk.validate("user_quick")).json()["validation"]["state"] == "succeeded"
        assert len(side.vendor.world.calls.all("jobs")) == 1


# What is counted, cached and kept


@pytest.mark.parametrize("how", ["subject", "address", "account"])
async def test_what_one_tenant_has_used_up_the_other_still_has(
    both: Both, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "DOOR_BY_SUBJECT", Limit("subject", 2, 60))
    monkeypatch.setattr(figures, "DOOR_BY_ADDRESS", Limit(f"address-{how}", 2, 60))
    replica = both.replicas[0]

    async def use(side: Side) -> int:
        if how == "subject":
            answer = await replica.client.post("/v1/sessions", headers=side.user("counted"), json={})
        elif how == "address":
            headers = page_headers(origin=side.origin)
            answer = await replica.client.post("/v1/sessions", headers=headers, json={"clientId": side.page})
        else:
            walk = await side.walk(replica).open()
            answer = await walk.validate("counted@example.org", "wrong", wait=None)
        return answer.status_code

    allowed = 5 if how == "account" else 2
    good = 202 if how == "account" else 201
    assert [await use(both.south) for _ in range(allowed + 1)] == [good] * allowed + [429]
    assert [await use(both.north) for _ in range(allowed + 1)] == [good] * allowed + [429]


async def test_a_vendor_that_refuses_one_tenant_refuses_no_other(both: Both) -> None:
    replica, world = both.replicas[0], both.north.vendor.world
    walk = both.north.walk(replica)
    await walk.ready(
        "user_good"
    )  # a token that no call could use, and then the secret, would be refused twice in a row
    world.tokens.revoke_all()
    world.secrets = frozenset({"sandbox-another"})
    try:
        refused = await replica.client.get("/v1/sessions/x", headers=both.north.key())
        assert refused.status_code == 404  # the caller is known all the same
        assert (await walk.validate("user_quick")).json()["code"] == "upstream_credentials_rejected"
        assert await both.south.walk(replica).ready("user_quick")
        assert (await replica.client.get("/readyz")).json()["upstream"] == "ok"
    finally:
        world.secrets = frozenset({NORTH_SECRET})
    assert await both.north.walk(replica).ready("user_quick")


async def test_a_picture_is_found_in_its_own_tenants_list(both: Both) -> None:
    for side, query in ((both.south, ""), (both.north, "?tenant=north")):
        listed = await both.replicas[0].client.get("/v1/providers", headers=side.key())
        logo = next(each["logo"] for each in listed.json()["providers"] if each["id"] == APS)
        here = f"/logos/{APS}{query}"
        assert logo == (here if query else logo)
        assert (await both.replicas[0].client.get(here)).status_code == 200
    nowhere = await both.replicas[0].client.get(f"/logos/{APS}?tenant=nowhere")
    unknown = await both.replicas[0].client.get("/logos/nowhere")
    assert nowhere.status_code == 404
    assert without_request_id(nowhere) == without_request_id(unknown)


async def test_the_first_tenants_keys_in_redis_keep_their_names(
    both: Both, valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployment that gets a second tenant goes on with the sessions, tokens, links and counters of the first."""
    monkeypatch.setattr(figures, "DOOR_BY_ADDRESS", Limit("address-named", 60, 60))
    headers, body = page_headers(origin=both.south.origin), {"clientId": both.south.page}
    assert (await both.replicas[0].client.post("/v1/sessions", headers=headers, json=body)).status_code == 201
    for side in (both.south, both.north):
        await side.walk(both.replicas[0]).open()
    async with Redis.from_url(valkey, decode_responses=True) as store:
        names = {each async for each in store.scan_iter(f"{both.settings.redis_prefix}:*")}
        tenants = {await store.hget(each, "tenant") for each in names if each.count("{s:") and each.endswith("}")}
    prefix = both.settings.redis_prefix
    assert f"{prefix}:{{t:default-9a1d332ebab6}}:token" in names, sorted(names)
    assert f"{prefix}:{{l:address-named:127.0.0.1}}" in names, sorted(names)
    assert len(tenants) == 2


async def test_a_tenant_that_becomes_the_first_one_keeps_its_sessions_and_no_others(both: Both, valkey: str) -> None:
    walk = both.north.walk(both.replicas[0])
    chosen = await walk.ready("user_one")
    south = await both.south.walk(both.replicas[0]).open()
    alone = make_settings(
        valkey,
        both.north.vendor.url,
        both.settings.redis_prefix,
        client_id=NORTH_ID,
        secret=SecretStr(NORTH_SECRET),
    )
    async with running_replica(alone) as moved:
        linked = await walk.at(moved.client).link(chosen)
        assert linked.status_code == 201, linked.text
        both.forget_calls()
        assert (await south.at(moved.client).show()).status_code == 401
        assert both.upstream_calls() == []
    assert (await walk.show()).json()["session"]["state"] == "linked"


async def test_any_tenants_secret_in_a_page_is_told_once(both: Both) -> None:
    replica = both.replicas[1]
    for side in (both.south, both.north):
        with capture_logs() as logs:
            for _ in range(2):
                body: dict[str, Any] = {"clientId": side.page, "secret": NORTH_SECRET}
                headers = page_headers(origin=side.origin)
                assert (await replica.client.post("/api/access-token", headers=headers, json=body)).status_code == 200
        assert [each["event"] for each in logs].count("secret_in_page") == 1
        assert NORTH_SECRET not in str(logs)


async def test_nobody_uses_up_the_reads_of_another_tenants_caller_of_the_same_name(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = both.replicas[0]
    monkeypatch.setattr(replica.app.state.steps.access, "_reads_limit", Limit("session", 3, 60))
    walk = await both.south.walk(replica).open(subject="person-1")
    for _ in range(4):
        assert (await replica.client.get(walk.path, headers=both.north.user("person-1"))).status_code == 404
    assert (await replica.client.get(walk.path, headers=both.south.user("person-1"))).status_code == 200
