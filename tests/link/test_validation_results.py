"""Step 2b from outside: how each kind of sign-in ends, and how that is told."""

import asyncio
import json
from urllib.parse import parse_qs, urlsplit

import pytest
from redis.asyncio import Redis

from service.link import validate
from service.link.settle import digest_of
from service.sandbox.server import SandboxServer
from service.stores.records import Intent
from tests.conftest import MovableClock, Replica
from tests.walk import APS, PASSWORD, PGE, SCE, SRP, Walk, sign_in

KESTREL = "5eedc0de000000000000010b"
UTILITY_SENTENCE = "Rejected: Internal server error"


@pytest.mark.parametrize(
    ("username", "accounts"),
    [("user_good", 2), ("user_one", 1), ("user_none", 0), ("user_forty", 40), ("user_quick", 2)],
)
async def test_a_good_sign_in_succeeds_within_the_wait(shared: Replica, username: str, accounts: int) -> None:
    walk = await shared.walk().open()
    answer = await walk.validate(username)
    assert answer.status_code == 201
    body = answer.json()
    assert body["status"] == "OM200"
    assert body["validation"] == {"id": body["validation"]["id"], "state": "succeeded", "providerId": APS}
    assert answer.headers["Location"] == f"{walk.path}/validations/{body['validation']['id']}"
    assert answer.headers["Preference-Applied"] == "wait=20"
    assert "Retry-After" not in answer.headers
    found = await walk.accounts()
    assert found.status_code == 200
    assert len(found.json()["serviceAccounts"]) == accounts


async def test_what_a_dead_process_left_of_a_link_is_in_nobodys_way(shared: Replica) -> None:
    walk = await shared.walk().open()
    sessions = shared.app.state.steps.attach._sessions
    session = await sessions.read(walk.id)
    assert session is not None
    intent = Intent("att_" + "0" * 24, session.created, digest_of(["a"]), ["a"])
    begun = await sessions.begin_link(
        session, intent, now=session.created, most_intents=1, most_keys=1, idempotency=None
    )
    assert begun == "begun"
    answer = await walk.validate("user_quick")
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize(
    ("username", "password", "state", "reason", "status", "message"),
    [
        ("user_bad", PASSWORD, "rejected", "incorrect_credentials", "OM400", None),
        ("user_good", "wrong", "rejected", "incorrect_credentials", "OM400", None),
        ("nobody", PASSWORD, "rejected", "incorrect_credentials", "OM400", None),
        ("user_server_error", PASSWORD, "failed", "utility_unavailable", "OM500", UTILITY_SENTENCE),
        ("user_job_error", PASSWORD, "failed", "utility_unavailable", "OM500", UTILITY_SENTENCE),
    ],
)
async def test_a_bad_sign_in_is_told_in_a_read_that_worked(
    shared: Replica, *, username: str, password: str, state: str, reason: str, status: str, message: str | None
) -> None:
    walk = await shared.walk().open()
    posted = await walk.validate(username, password)
    assert posted.status_code == 201
    body = posted.json()
    assert (body["status"], body["code"]) == (status, reason)
    assert body["retryable"] is False
    assert body["displayMessage"]
    assert message is None or body["message"] == message
    assert (body["validation"]["state"], body["validation"]["reason"]) == (state, reason)
    read = await walk.validation(body["validation"]["id"])
    assert read.status_code == 200
    assert {**read.json(), "requestId": ""} == {**body, "requestId": ""}
    assert (await walk.show()).json()["session"]["state"] == "open"


async def test_without_prefer_the_answer_is_202_and_a_later_read_waits(shared: Replica) -> None:
    walk = await shared.walk().open()
    started = await walk.validate("user_good", wait=None)
    assert started.status_code == 202
    validation = started.json()["validation"]
    assert validation["state"] == "pending"
    assert started.headers["Location"] == f"{walk.path}/validations/{validation['id']}"
    assert started.headers["Retry-After"] == "1"
    assert "Preference-Applied" not in started.headers
    finished = await walk.validation(validation["id"], wait=20)
    assert finished.status_code == 200
    assert finished.headers["Preference-Applied"] == "wait=20"
    assert "Retry-After" not in finished.headers
    assert finished.json()["validation"]["state"] == "succeeded"


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        (["wait=0"], "wait=0"),
        (["respond-async, wait=0"], "wait=0"),
        (["respond-async", "WAIT = 0; x=y"], "wait=0"),
        (['wait="0"'], "wait=0"),
        (["wait=-1"], None),
        (["wait=soon"], None),
        (["wait"], None),
        (["waiting=1"], None),
    ],
)
async def test_prefer_is_read_as_rfc_7240_says(shared: Replica, prefer: list[str], applied: str | None) -> None:
    walk = await shared.walk().open()
    started = await walk.validate("user_never", wait=None)
    headers = [*walk.headers.items(), *(("Prefer", each) for each in prefer)]
    path = f"{walk.path}/validations/{started.json()['validation']['id']}"
    answer = await shared.client.get(path, headers=headers)
    assert answer.status_code == 200
    assert answer.headers.get("Preference-Applied") == applied
    assert answer.headers["Retry-After"] == "1"


async def test_a_wait_is_granted_up_to_25_seconds(shared: Replica) -> None:
    walk = await shared.walk().open()
    answer = await walk.validate("user_quick", wait=999_999_999)
    assert answer.headers["Preference-Applied"] == "wait=25"


async def test_one_provider_is_validated_once_at_a_time(shared: Replica, vendor: SandboxServer) -> None:
    walk = await shared.walk().open()
    first = await walk.validate("user_never", wait=None)
    second = await walk.validate("user_good", wait=None)
    assert second.status_code == 409
    assert second.json()["code"] == "already_in_progress"
    assert second.json()["status"] == "OM400"
    assert second.headers["Location"] == first.headers["Location"]
    assert int(second.headers["Retry-After"]) >= 1
    assert len(vendor.world.calls.all("jobs")) == 1
    assert (await walk.validate("user_quick", provider=SRP)).status_code == 201


async def test_parallel_tries_for_one_provider_send_one(replicas: list[Replica], upstream: SandboxServer) -> None:
    walk = await replicas[0].walk().open()
    walks = [walk.at(replica.client) for replica in replicas] * 5
    answers = await asyncio.gather(*(each.validate("user_never", wait=None) for each in walks))
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 14
    assert len(upstream.world.calls.all("jobs")) == 1


async def test_three_validations_may_be_pending(shared: Replica, vendor: SandboxServer) -> None:
    walk = await shared.walk().open()
    invented = [f"5eedc0de00000000000001{number:02x}" for number in range(1, 5)]
    for provider in invented[:3]:
        assert (await walk.validate("user_never", provider=provider, wait=None)).status_code == 202
    refused = await walk.validate("user_never", provider=invented[3], wait=None)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_attempts")
    assert (refused.json()["retryable"], refused.json()["displayMessage"]) == (True, None)
    assert "are pending" in refused.json()["message"]
    assert refused.headers["RateLimit-Policy"] == '"pending";q=3;w=5'
    assert refused.headers["Retry-After"] == "5"
    assert len(vendor.world.calls.all("jobs")) == 3


async def test_a_session_has_five_passwords(replica: Replica, upstream: SandboxServer, clock: MovableClock) -> None:
    walk = await replica.walk().open(ttlSeconds=600)
    for number in range(5):
        tried = await walk.validate(f"user_{number}", "wrong")
        assert tried.json()["validation"]["state"] == "rejected"
    clock.forward(100)
    refused = await walk.validate("user_good")
    assert refused.status_code == 429
    assert refused.json()["code"] == "too_many_attempts"
    assert refused.json()["status"] == "OM400"
    left = int(refused.headers["Retry-After"])
    assert 480 <= left <= 500
    assert refused.headers["RateLimit-Policy"] == f'"attempts";q=5;w={left}'
    assert refused.headers["RateLimit"] == f'"attempts";r=0;t={left}'
    assert len(upstream.world.calls.all("jobs")) == 5
    assert (await walk.validate(None, provider=PGE, wait=None)).status_code == 202


async def test_a_session_has_twenty_validations(shared: Replica) -> None:
    walk = await shared.walk().open(ttlSeconds=600)
    for _ in range(20):
        started = await walk.validate(None, provider=PGE, wait=None)
        assert started.status_code == 202
        await shared.client.delete(started.headers["Location"], headers=walk.headers)
    refused = await walk.validate(None, provider=PGE, wait=None)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_attempts")
    assert refused.json()["retryable"] is False
    left = int(refused.headers["Retry-After"])
    assert 580 <= left <= 600
    assert refused.headers["RateLimit-Policy"] == f'"validations";q=20;w={left}'


@pytest.mark.parametrize(("left_ms", "told"), [(999_500, "1000"), (400, "1")])
async def test_who_has_had_all_passwords_is_told_to_wait_for_the_sessions_end(
    replica: Replica, clock: MovableClock, monkeypatch: pytest.MonkeyPatch, left_ms: int, told: str
) -> None:
    walk = await replica.walk().open()
    validations = replica.app.state.steps.validations
    end = (await validations._sessions.read(walk.id)).expires
    await validations._tokens.get()
    monkeypatch.setattr(validate, "MOST_PASSWORDS", 0)
    monkeypatch.setattr(clock, "now", lambda: end - left_ms)
    assert (await walk.validate()).headers["Retry-After"] == told


async def test_a_validation_that_is_refused_is_nobodys_to_poll(replica: Replica, valkey: str, prefix: str) -> None:
    walk = await replica.walk().open()
    assert (await walk.validate(None, provider=PGE, wait=None)).status_code == 202
    assert (await walk.validate(None, provider=PGE, wait=None)).status_code == 409
    async with Redis.from_url(valkey) as redis:
        [holders] = [key async for key in redis.scan_iter(f"{prefix}:{{j:*}}:holders")]
        assert await redis.hlen(holders) == 1


@pytest.mark.parametrize("provider", [PGE, KESTREL])
async def test_oauth_signs_in_at_the_utilitys_page(shared: Replica, vendor: SandboxServer, provider: str) -> None:
    walk = await shared.walk().open()
    started = await walk.validate(None, provider=provider, wait=None)
    validation = started.json()["validation"]
    page = validation["authorizeUrl"]
    query = parse_qs(urlsplit(page).query)
    sent = vendor.world.calls.all("jobs")
    assert query["state"][0].startswith("jobId=")
    assert query["response_type"] == ["code"]
    for secret in ("sandbox-secret", walk.token, sent[0].headers["authorization"].removeprefix("Bearer ")):
        assert secret not in page
    assert json.loads(sent[0].body)["username"] == "username"
    assert (await sign_in(shared.client, page)).status_code == 200
    finished = (await walk.validation(validation["id"], wait=20)).json()
    assert finished["validation"] == {"id": validation["id"], "state": "succeeded", "providerId": provider}
    ids = {each["id"] for each in (await walk.accounts()).json()["serviceAccounts"]}
    assert len(ids) == 3


async def test_oauth_that_is_denied_is_an_incorrect_credential(shared: Replica) -> None:
    walk = await shared.walk().open()
    validation = (await walk.validate(None, provider=PGE, wait=None)).json()["validation"]
    await sign_in(shared.client, validation["authorizeUrl"], approve=False)
    finished = (await walk.validation(validation["id"], wait=20)).json()
    assert (finished["status"], finished["code"]) == ("OM400", "incorrect_credentials")


async def test_a_provider_without_sign_in_page_is_not_available(shared: Replica, vendor: SandboxServer) -> None:
    walk = await shared.walk().open()
    listed = (await shared.client.get("/v1/providers", headers=walk.headers)).json()["providers"]
    assert [each["available"] for each in listed if each["id"] == SCE] == [False]
    refused = await walk.validate(None, provider=SCE)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "providerId")
    assert vendor.world.calls.all("jobs") == []


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"providerId": PGE, "username": "user_good", "password": PASSWORD}, ["password"]),
        ({"providerId": APS}, ["username", "password"]),
        ({"providerId": APS, "username": "user_good"}, ["password"]),
        ({"providerId": APS, "password": PASSWORD}, ["username"]),
        ({"providerId": APS, "username": "", "password": ""}, ["username", "password"]),
        ({"providerId": APS, "username": "u" * 321, "password": "p" * 1025}, ["username", "password"]),
        ({"providerId": "../jobs", "username": "u", "password": "p"}, ["providerId"]),
        ({"providerId": APS, "username": "u", "password": "p", "extra": 1}, [""]),
        ({"providerId": 7, "username": "u", "password": "p"}, ["providerId"]),
    ],
)
async def test_credentials_that_do_not_fit_are_sent_nowhere(
    shared: Replica, vendor: SandboxServer, body: dict[str, object], fields: list[str]
) -> None:
    walk = await shared.walk().open()
    refused = await shared.client.post(f"{walk.path}/validations", headers=walk.headers, json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert [each["field"] for each in refused.json()["errors"]] == fields
    assert vendor.world.calls.all("jobs") == []


async def test_an_unknown_provider_is_not_found(shared: Replica, vendor: SandboxServer) -> None:
    walk = await shared.walk().open()
    refused = await walk.validate(provider="0" * 24)
    assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
    assert vendor.world.calls.all("jobs") == []


async def test_a_session_that_is_over_says_so_before_anything_else_is_looked_at(shared: Replica) -> None:
    walk = await shared.walk().open()
    await walk.close()
    for refused in (await walk.validate(provider="0" * 24), await walk.validate(None)):
        assert (refused.status_code, refused.json()["code"]) == (409, "session_closed")


async def test_a_validation_that_is_given_up_stays_so_when_it_succeeds_later(
    shared: Replica, vendor: SandboxServer
) -> None:
    walk = await shared.walk().open()
    started = (await walk.validate("user_never", wait=None)).json()["validation"]
    path = f"{walk.path}/validations/{started['id']}"
    for _ in range(2):
        given_up = await shared.client.delete(path, headers=walk.headers)
        assert given_up.status_code == 200
        assert (given_up.json()["status"], given_up.json()["code"]) == ("OM400", "canceled")
        assert given_up.json()["validation"]["state"] == "failed"
    job = list(vendor.world._known.jobs)[-1]
    vendor.world.finish(job, "success")
    again = await walk.validation(started["id"], wait=1)
    assert again.json()["validation"]["reason"] == "canceled"
    assert (await walk.accounts()).json()["code"] == "validation_required"
    # The provider is free for another try, which is a job of its own.
    assert (await walk.validate("user_quick")).json()["validation"]["state"] == "succeeded"


async def test_giving_up_does_not_undo_a_success(shared: Replica) -> None:
    walk = await shared.walk().open()
    done = (await walk.validate("user_quick")).json()["validation"]
    given_up = await shared.client.delete(f"{walk.path}/validations/{done['id']}", headers=walk.headers)
    assert given_up.json()["validation"]["state"] == "succeeded"
    assert len(await walk.account_ids()) == 2


async def test_nobody_polls_for_a_session_that_was_closed(shared: Replica) -> None:
    walk = await shared.walk().open()
    started = (await walk.validate("user_never", wait=None)).json()["validation"]
    waiting = asyncio.create_task(walk.validation(started["id"], wait=20))
    await walk.close()
    assert (await waiting).json()["validation"]["reason"] == "canceled"


async def _pending_after(walk: Walk, clock: MovableClock, seconds: float, *, provider: str, password: bool) -> str:
    started = (await walk.validate("user_never" if password else None, provider=provider, wait=None)).json()
    clock.forward(seconds)
    answer = (await walk.validation(started["validation"]["id"], wait=20 if seconds % 10 else 0)).json()
    state: str = answer["validation"].get("reason", answer["validation"]["state"])
    if state == "timed_out":
        assert (answer["status"], answer["code"], answer["message"]) == ("OM500", "timed_out", UTILITY_SENTENCE)
    return state


async def test_a_password_has_three_minutes(replica: Replica, clock: MovableClock) -> None:
    walk = await replica.walk().open()
    assert await _pending_after(walk, clock, 170, provider=APS, password=True) == "pending"
    assert await _pending_after(walk, clock, 181, provider=SRP, password=True) == "timed_out"


async def test_oauth_has_fifteen_minutes(replica: Replica, clock: MovableClock) -> None:
    walk = await replica.walk().open(ttlSeconds=4 * 3600)
    assert await _pending_after(walk, clock, 890, provider=PGE, password=False) == "pending"
    assert await _pending_after(walk, clock, 901, provider=KESTREL, password=False) == "timed_out"


@pytest.mark.parametrize(("username", "provider", "seconds"), [("user_never", APS, 180), (None, PGE, 900)])
async def test_its_time_is_counted_from_its_beginning(
    replica: Replica,
    clock: MovableClock,
    monkeypatch: pytest.MonkeyPatch,
    *,
    username: str | None,
    provider: str,
    seconds: int,
) -> None:
    walk = await replica.walk().open()
    now = clock.now()
    with monkeypatch.context() as still:
        still.setattr(clock, "now", lambda: now)
        await walk.validate(username, provider=provider, wait=None)
    [validation] = (await replica.app.state.steps.validations._sessions.read(walk.id)).validations
    assert validation.deadline == now + seconds * 1000


async def test_no_validation_outlives_its_session(replica: Replica, clock: MovableClock) -> None:
    walk = await replica.walk().open(ttlSeconds=60)
    assert await _pending_after(walk, clock, 61, provider=PGE, password=False) == "timed_out"


async def test_a_revoked_token_is_replaced_in_mid_validation(replica: Replica, upstream: SandboxServer) -> None:
    walk = replica.walk()
    assert len(await walk.ready("user_token_revoked")) == 2
    [posted] = upstream.world.calls.all("jobs")
    [job] = upstream.world._known.jobs
    polls = [call for call in upstream.world.calls.all("job") if call.path.endswith(job)]
    assert (polls[0].status, polls[0].headers["authorization"]) == (401, posted.headers["authorization"])
    assert {call.status for call in polls[1:]} == {200}
    assert len({call.headers["authorization"] for call in polls[1:]}) == 1


async def test_a_sign_in_page_is_shown_only_while_it_helps(shared: Replica) -> None:
    walk = await shared.walk().open()
    validation = (await walk.validate(None, provider=PGE, wait=None)).json()["validation"]
    assert (await walk.show()).json()["session"]["validations"] == [validation]
    given_up = await shared.client.delete(f"{walk.path}/validations/{validation['id']}", headers=walk.headers)
    assert "authorizeUrl" not in given_up.json()["validation"]
