"""The four ways in which a walk can end, as the vendor's promise would settle; and the session in every state."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from service.sandbox.server import SandboxServer
from tests.conftest import MovableClock, Replica, make_settings, running_replica
from tests.link.waiting import until


def _envelope(body: dict[str, Any]) -> tuple[str, str | None, str]:
    return body["status"], body.get("code"), body["message"]


async def test_outcome_om200_user_accounts_linked(replica: Replica) -> None:
    walk = replica.walk()
    ids = sorted(await walk.ready("user_quick"))
    assert (await walk.link(ids)).status_code == 201
    for by_server in (False, True):
        shown = await walk.show(by_server=by_server)
        assert shown.status_code == 200
        assert _envelope(shown.json()) == ("OM200", None, "Resolved: User account(s) successfully linked")
        session = shown.json()["session"]
        assert session["state"] == "linked"
        assert session["choice"] == ids
        outcome = session["outcome"]
        assert outcome.pop("accountId") == "5eedc0de00000000000acc01"
        assert outcome == {
            "status": "OM200",
            "message": "Resolved: User account(s) successfully linked",
            "serviceAccounts": [{"id": each} for each in ids],
        }


async def test_outcome_om400_user_closes_the_widget(replica: Replica) -> None:
    walk = await replica.walk().open()
    for answer in (await walk.close(), await walk.close(), await walk.show()):
        assert answer.status_code == 200
        assert _envelope(answer.json()) == ("OM400", "user_closed", "Rejected: User closes the widget")
        assert answer.json()["session"]["state"] == "closed"
        assert answer.json()["session"]["outcome"] == {
            "status": "OM400",
            "message": "Rejected: User closes the widget",
        }


async def test_outcome_om410_incorrect_secret_or_client_id(replica: Replica, upstream: SandboxServer) -> None:
    upstream.world.faults.add("token", "status", value=401, times=None)
    answer = await replica.client.post("/v1/sessions", headers=replica.walk().server_headers)
    assert answer.status_code == 502
    body = answer.json()
    assert body["code"] == "upstream_credentials_rejected"
    assert "session" not in body
    outcome = {name: body[name] for name in ("status", "message")}
    assert outcome == {"status": "OM410", "message": "Rejected: Incorrect secret or client id"}


async def test_outcome_om500_internal_server_error(replica: Replica) -> None:
    walk = replica.walk()
    ids = await walk.ready("user_link_lost")
    lost = await walk.link(ids)
    assert lost.status_code == 504
    shown = (await walk.show()).json()
    assert _envelope(shown) == ("OM500", "outcome_unknown", "Rejected: Internal server error")
    assert shown["session"]["state"] == "unknown"
    assert shown["session"]["attempts"] == lost.json()["attempts"]
    assert shown["session"]["outcome"] == {"status": "OM500", "message": "Rejected: Internal server error"}


async def test_a_session_that_goes_on_has_no_outcome(replica: Replica, upstream: SandboxServer) -> None:
    walk = replica.walk()
    ids = await walk.ready("user_quick")
    opened = (await walk.show()).json()
    assert opened["status"] == "OM200"
    assert opened["session"]["state"] == "open"
    assert "outcome" not in opened["session"]
    upstream.world.faults.add("batch", "delay", value=0.5)
    linking = asyncio.create_task(walk.link(ids))
    await until(lambda: upstream.world.calls.all("batch"))
    shown = (await walk.show()).json()
    assert shown["status"] == "OM200"
    assert shown["session"]["state"] == "linking"
    assert shown["session"]["choice"] == sorted(ids)
    assert "outcome" not in shown["session"]
    assert (await linking).status_code == 201


async def test_a_session_that_ran_out_of_time_ends_as_if_the_person_had_left(
    replica: Replica, clock: MovableClock, upstream: SandboxServer
) -> None:
    walk = replica.walk()
    ids = await walk.ready("user_quick")
    clock.forward(31 * 60)
    refused = await walk.link(ids)
    assert refused.status_code == 410
    assert refused.json()["code"] == "session_expired"
    assert not upstream.world.calls.all("batch")
    for answer in (await walk.show(), await walk.close()):
        assert answer.status_code == 200
        assert answer.json()["status"] == "OM400"
        assert answer.json()["session"]["state"] == "expired"
        assert answer.json()["session"]["outcome"]["message"] == "Rejected: User closes the widget"


async def test_a_link_in_flight_finishes_past_the_end_of_its_session(
    replica: Replica, clock: MovableClock, upstream: SandboxServer
) -> None:
    walk = replica.walk()
    ids = await walk.ready("user_quick")
    upstream.world.faults.add("batch", "delay", value=0.4)
    linking = asyncio.create_task(walk.link(ids))
    await until(lambda: upstream.world.calls.all("batch"))
    clock.forward(31 * 60)
    assert (await linking).status_code == 201
    assert (await walk.show()).json()["session"]["state"] == "linked"


@pytest.mark.parametrize("username", ["user_quick", "user_link_lost"])
async def test_what_was_decided_outlives_the_session(replica: Replica, clock: MovableClock, username: str) -> None:
    walk = replica.walk()
    await walk.link(await walk.ready(username))
    before = (await walk.show()).json()["session"]
    clock.forward(3600)
    assert (await walk.show()).json()["session"] == before


@pytest.mark.parametrize("retention_hours", [24, 72])
async def test_what_became_of_a_link_call_is_known_as_long_as_its_session_can_be_read(
    valkey: str, upstream: SandboxServer, prefix: str, retention_hours: float
) -> None:
    settings = make_settings(valkey, upstream.url, prefix, retention_hours=retention_hours)
    async with running_replica(settings) as replica, Redis.from_url(valkey, decode_responses=True) as redis:
        walk = await replica.walk().open(ttlSeconds=4 * 3600)
        await walk.link(await walk.ready("user_link_lost"))
        guards = [key async for key in redis.scan_iter(f"{prefix}:{{g:*")]
        assert len(guards) == 2
        session_ends = await redis.pexpiretime(f"{prefix}:{{s:{walk.id}}}")
        for guard in guards:
            assert await redis.pexpiretime(guard) >= session_ends
