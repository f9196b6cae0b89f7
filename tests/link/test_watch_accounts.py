"""Step 3: what the person may choose from is read once, merged, sealed, and read again when asked."""

import asyncio
import json
from typing import Any

import pytest
from redis.asyncio import Redis

from service.sandbox.server import SandboxServer
from tests.conftest import Replica
from tests.walk import APS, PGE, SRP, sign_in


async def test_accounts_of_all_validations_are_merged_by_id(shared: Replica) -> None:
    walk = await shared.walk().open()
    validations = [
        (await walk.validate("user_good", provider=provider)).json()["validation"] for provider in (APS, SRP, APS)
    ]
    body = (await walk.accounts()).json()
    assert [each["providerId"] for each in body["utilityAccounts"]] == [APS, SRP]
    assert {each["validationId"] for each in body["utilityAccounts"]} <= {each["id"] for each in validations}
    ids = [each["id"] for each in body["serviceAccounts"]]
    assert len(ids) == len(set(ids)) == 4
    assert {each["utilityAccountId"] for each in body["serviceAccounts"]} == {
        each["id"] for each in body["utilityAccounts"]
    }


async def test_fields_that_nobody_asked_for_are_dropped(shared: Replica, vendor: SandboxServer) -> None:
    walk = shared.walk()
    await walk.ready("user_good")
    answer = await walk.accounts()
    account_id = vendor.world.calls.all("account")[0].path.rsplit("/", 1)[1]
    account = vendor.world.account(account_id)
    assert account is not None
    told = json.dumps(account.as_json())
    assert "internalRating" in told
    assert "rateCode" in told
    assert "internalRating" not in answer.text
    assert "rateCode" not in answer.text
    assert set(answer.json()) == {"status", "message", "requestId", "utilityAccounts", "serviceAccounts"}


async def test_somebody_without_service_accounts_gets_an_empty_list(shared: Replica) -> None:
    walk = await shared.walk().open()
    await walk.validate("user_none")
    answer = await walk.accounts()
    assert (answer.status_code, answer.json()["serviceAccounts"]) == (200, [])
    assert len(answer.json()["utilityAccounts"]) == 1


@pytest.mark.parametrize("username", [None, "user_bad", "user_never"])
async def test_without_a_success_there_is_nothing_to_choose_from(shared: Replica, username: str | None) -> None:
    walk = await shared.walk().open()
    if username is not None:
        await walk.validate(username, wait=None if username == "user_never" else 20)
    answer = await walk.accounts()
    assert (answer.status_code, answer.json()["code"]) == (409, "validation_required")


async def test_accounts_are_read_once_and_then_kept(shared: Replica, vendor: SandboxServer) -> None:
    walk = shared.walk()
    await walk.ready()
    vendor.world.calls.clear()
    first, second = await walk.accounts(), await walk.accounts()
    assert first.json()["serviceAccounts"] == second.json()["serviceAccounts"]
    assert vendor.world.calls.all("account") == []


class Held:
    """Reads of the vendor that wait until so many have asked for the accounts."""

    def __init__(self, shared: Replica, monkeypatch: pytest.MonkeyPatch, *, until: int) -> None:
        accounts = shared.app.state.steps.accounts
        list_accounts, read_account = accounts.list, accounts._client.read_utility_account
        self.first_has_asked = asyncio.Event()
        all_have_asked = asyncio.Event()
        asked: list[None] = []

        async def list_counted(*args: Any, **options: Any) -> Any:
            asked.append(None)
            if len(asked) == until:
                all_have_asked.set()
            return await list_accounts(*args, **options)

        async def read_late(*args: Any) -> Any:
            self.first_has_asked.set()
            await all_have_asked.wait()
            return await read_account(*args)

        monkeypatch.setattr(accounts, "list", list_counted)
        monkeypatch.setattr(accounts._client, "read_utility_account", read_late)


async def test_no_cache_reads_again_once_for_all_who_ask(
    shared: Replica, vendor: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = shared.walk()
    ids = await walk.ready()
    vendor.world.calls.clear()
    Held(shared, monkeypatch, until=30)
    answers = await asyncio.gather(*(walk.accounts(**{"Cache-Control": "max-age=0, No-Cache"}) for _ in range(30)))
    assert {answer.status_code for answer in answers} == {200}
    assert all([each["id"] for each in answer.json()["serviceAccounts"]] == ids for answer in answers)
    assert len(vendor.world.calls.all("account")) == 1


async def test_who_asked_first_may_leave_and_the_others_are_answered(
    shared: Replica, vendor: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = shared.walk()
    ids = await walk.ready()
    vendor.world.calls.clear()
    held = Held(shared, monkeypatch, until=2)
    first = asyncio.create_task(walk.accounts(**{"Cache-Control": "no-cache"}))
    await held.first_has_asked.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    answer = await walk.accounts(**{"Cache-Control": "no-cache"})
    assert [each["id"] for each in answer.json()["serviceAccounts"]] == ids
    assert len(vendor.world.calls.all("account")) == 1


async def test_accounts_that_the_vendor_failed_on_are_read_when_asked_for(
    shared: Replica, vendor: SandboxServer
) -> None:
    walk = await shared.walk().open()
    vendor.world.faults.add("account", "status", value=500, times=None)
    assert (await walk.validate("user_good")).json()["validation"]["state"] == "succeeded"
    failed = await walk.accounts()
    assert (failed.status_code, failed.json()["code"]) == (502, "upstream_error")
    vendor.world.faults.clear()
    assert len((await walk.accounts()).json()["serviceAccounts"]) == 2


async def test_what_a_job_itself_named_may_be_chosen(shared: Replica) -> None:
    walk = await shared.walk().open()
    started = (await walk.validate(None, provider=PGE, wait=None)).json()["validation"]
    await sign_in(shared.client, started["authorizeUrl"])
    await walk.validation(started["id"], wait=20)
    ids = await walk.account_ids()
    assert len(ids) == 3
    assert (await walk.link(ids)).status_code == 201


async def test_names_addresses_meters_and_tokens_are_sealed_in_redis(
    replica: Replica, upstream: SandboxServer, valkey: str, prefix: str
) -> None:
    walk = replica.walk()
    await walk.ready()
    bearer = upstream.world.calls.all("account")[0].headers["authorization"].removeprefix("Bearer ")
    shown = (await walk.accounts()).json()
    meters = [each["meterNumber"] for each in shown["serviceAccounts"] if "meterNumber" in each]
    streets = [each["address"]["street"] for each in shown["serviceAccounts"]]
    names = [each["name"] for each in shown["utilityAccounts"]]
    assert meters
    stored = await _everything(valkey, prefix)
    assert walk.id in stored
    for text in (*meters, *streets, *names, "User Good", bearer, walk.token, "user_good", "pass_good", "Tempe"):
        assert text not in stored


async def _everything(url: str, prefix: str) -> str:
    found: list[Any] = []
    async with Redis.from_url(url, decode_responses=True) as client:
        redis: Any = client
        async for key in redis.scan_iter(f"{prefix}:*"):
            kind = await redis.type(key)
            read = {"hash": redis.hgetall, "string": redis.get, "zset": lambda name: redis.zrange(name, 0, -1)}
            found.append((key, await read[kind](key)))
    return json.dumps(found)


async def test_what_is_read_again_is_sealed_anew_only_if_it_has_changed(shared: Replica, vendor: SandboxServer) -> None:
    walk, sessions = shared.walk(), shared.app.state.steps.access._sessions
    await walk.ready("user_good")
    kept = (await sessions.read(walk.id)).sealed_accounts
    for _ in range(2):
        await walk.accounts(**{"Cache-Control": "no-cache"})
    assert len(vendor.world.calls.all("account")) == 3
    assert (await sessions.read(walk.id)).sealed_accounts == kept


async def test_whoever_has_left_sees_no_accounts_any_more(replica: Replica, upstream: SandboxServer) -> None:
    walk = replica.walk()
    await walk.ready()
    await walk.close()
    upstream.world.calls.clear()
    answer = await walk.accounts()
    assert (answer.status_code, answer.json()["code"]) == (409, "session_closed")
    assert not upstream.world.calls.all()


async def test_a_linked_session_shows_its_accounts_without_asking_the_vendor(
    replica: Replica, upstream: SandboxServer
) -> None:
    walk = replica.walk()
    ids = await walk.ready()
    await walk.link(ids)
    upstream.world.calls.clear()
    answer = await walk.accounts(**{"Cache-Control": "no-cache"})
    assert [each["id"] for each in answer.json()["serviceAccounts"]] == ids
    assert not upstream.world.calls.all()
