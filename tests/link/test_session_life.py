"""A session from its opening to the day it is forgotten."""

import datetime as dt
from typing import Any

import pytest
from redis.asyncio import Redis

from service.sandbox.server import SandboxServer
from tests.conftest import MovableClock, Replica
from tests.walk import Walk

RETENTION_SECONDS = 24 * 3600


async def test_a_new_session_is_told_once_with_its_token(shared: Replica) -> None:
    answer = await shared.client.post(
        "/v1/sessions",
        headers=shared.walk().server_headers,
        json={"subject": "person-7", "metadata": {"order": "A-1"}, "ttlSeconds": 90},
    )
    assert answer.status_code == 201
    session = answer.json()["session"]
    assert answer.headers["Location"] == f"/v1/sessions/{session['id']}"
    assert session["token"].startswith("oms_")
    assert (session["state"], session["subject"], session["metadata"]) == ("open", "person-7", {"order": "A-1"})
    lifetime = dt.datetime.fromisoformat(session["expiresAt"]) - dt.datetime.fromisoformat(session["createdAt"])
    assert lifetime == dt.timedelta(seconds=90)
    assert "outcome" not in session
    shown = await shared.client.get(answer.headers["Location"], headers=shared.walk().server_headers)
    assert session == {**shown.json()["session"], "token": session["token"]}


@pytest.mark.parametrize("content", [None, b"{}", b"null"])
async def test_everything_about_a_new_session_is_optional(shared: Replica, content: bytes | None) -> None:
    headers = shared.walk().server_headers | ({"Content-Type": "application/json"} if content else {})
    answer = await shared.client.post("/v1/sessions", headers=headers, content=content)
    session = answer.json()["session"]
    lifetime = dt.datetime.fromisoformat(session["expiresAt"]) - dt.datetime.fromisoformat(session["createdAt"])
    assert lifetime == dt.timedelta(minutes=30)
    assert (session["subject"], session["metadata"], session["validations"]) == (None, {}, [])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"ttlSeconds": 59}, "ttlSeconds"),
        ({"ttlSeconds": 4 * 3600 + 1}, "ttlSeconds"),
        ({"ttlSeconds": 90.5}, "ttlSeconds"),
        ({"ttlSeconds": "90"}, "ttlSeconds"),
        ({"ttlSeconds": True}, "ttlSeconds"),
        ({"subject": ""}, "subject"),
        ({"subject": "s" * 256}, "subject"),
        ({"subject": 7}, "subject"),
        ({"metadata": {str(number): "v" for number in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {"": "v"}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"metadata": None}, "metadata"),
        ({"surprise": 1}, ""),
        ([], ""),
    ],
)
async def test_what_a_host_may_say_of_a_session_is_limited(shared: Replica, body: Any, field: str) -> None:
    refused = await shared.client.post("/v1/sessions", headers=shared.walk().server_headers, json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert {each["field"] for each in refused.json()["errors"]} == {field}


async def test_the_limits_themselves_are_allowed(shared: Replica) -> None:
    metadata = {f"{number:064}": "v" * 512 for number in range(16)}
    await shared.walk().open(ttlSeconds=60, subject="s" * 255, metadata=metadata)
    await shared.walk().open(ttlSeconds=4 * 3600)


async def test_no_session_is_opened_if_the_vendor_refuses_us(
    replica: Replica, upstream: SandboxServer, valkey: str, prefix: str
) -> None:
    upstream.world.faults.add("token", "status", value=401)
    refused = await replica.client.post("/v1/sessions", headers=replica.walk().server_headers)
    assert refused.status_code == 502
    assert refused.json()["status"] == "OM410"
    assert refused.json()["code"] == "upstream_credentials_rejected"
    assert refused.json()["message"] == "Rejected: Incorrect secret or client id"
    async with Redis.from_url(valkey) as redis:
        assert [key async for key in redis.scan_iter(f"{prefix}:{{s:*")] == []


async def test_an_expired_session_takes_no_steps_and_is_readable_for_a_day(
    replica: Replica, clock: MovableClock, upstream: SandboxServer
) -> None:
    walk = replica.walk()
    await walk.open(ttlSeconds=60)
    await walk.validate("user_quick")
    ids = await walk.account_ids()
    clock.forward(60)
    upstream.world.calls.clear()
    for refused in (await walk.validate("user_quick"), await walk.link(ids)):
        assert (refused.status_code, refused.json()["code"]) == (410, "session_expired")
        assert refused.json()["displayMessage"]
    shown = await walk.show()
    assert (shown.status_code, shown.json()["session"]["state"]) == (200, "expired")
    assert shown.json()["session"]["outcome"] == {"status": "OM400", "message": "Rejected: User closes the widget"}
    assert (await walk.close()).json()["session"]["state"] == "expired"
    assert upstream.world.calls.all() == []
    clock.forward(RETENTION_SECONDS - 2)
    assert (await walk.show()).status_code == 200
    await _is_forgotten_after(walk, clock, 3)


async def test_a_closed_session_takes_no_steps_and_is_readable_for_a_day(
    replica: Replica, clock: MovableClock, upstream: SandboxServer
) -> None:
    walk = replica.walk()
    ids = await walk.ready("user_quick")
    upstream.world.calls.clear()
    for answer in (await walk.close(), await walk.close(), await walk.show(), await walk.show(by_server=True)):
        body = answer.json()
        assert answer.status_code == 200
        assert (body["status"], body["code"]) == ("OM400", "user_closed")
        assert body["message"] == "Rejected: User closes the widget"
        assert body["session"]["outcome"] == {"status": "OM400", "message": "Rejected: User closes the widget"}
    for refused in (await walk.validate("user_quick"), await walk.link(ids)):
        assert (refused.status_code, refused.json()["code"]) == (409, "session_closed")
    assert upstream.world.calls.all() == []
    clock.forward(RETENTION_SECONDS - 2)
    assert (await walk.show()).status_code == 200
    await _is_forgotten_after(walk, clock, 3)


async def test_a_session_is_over_and_forgotten_from_the_very_moment_on(
    replica: Replica, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = await replica.walk().open()
    record = await replica.app.state.steps.access._sessions.read(walk.id)
    forgotten = record.expires + RETENTION_SECONDS * 1000
    told = []
    for moment in (record.expires - 1, record.expires, forgotten - 1, forgotten):
        monkeypatch.setattr(clock, "now", lambda moment=moment: moment)
        answer = await walk.show(by_server=True)
        told.append((answer.status_code, answer.json().get("code")))
    assert told == [(200, None), (200, "session_expired"), (200, "session_expired"), (404, "not_found")]


async def test_a_host_may_close_a_session(shared: Replica) -> None:
    walk = await shared.walk().open()
    closed = await shared.client.delete(walk.path, headers=walk.server_headers)
    assert closed.json()["code"] == "user_closed"
    assert (await walk.show()).json()["session"]["state"] == "closed"


async def _is_forgotten_after(walk: Walk, clock: MovableClock, seconds: float) -> None:
    clock.forward(seconds)
    assert (await walk.show()).status_code == 401
    assert (await walk.show(by_server=True)).status_code == 404
    assert (await walk.client.post(f"{walk.path}/tokens", headers=walk.server_headers)).status_code == 404
