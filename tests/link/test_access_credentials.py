"""What opens the door, and what does not. Whose what is: `tests/callers/test_ownership.py`."""

import asyncio
import hashlib
import json
import re
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY
from service.stores.limits import Limit
from tests.api.calls import ENDPOINTS
from tests.conftest import Replica
from tests.walk import Walk

UNKNOWN = "ses_" + "0" * 32
BAD_AUTHORIZATION: dict[str, list[tuple[str, str | bytes]]] = {
    "none": [],
    "empty": [("Authorization", "")],
    "no credential": [("Authorization", "Bearer")],
    "no scheme": [("Authorization", SANDBOX_API_KEY)],
    "another scheme": [("Authorization", f"Basic {SANDBOX_API_KEY}")],
    "unknown key": [("Authorization", "Bearer nobody")],
    "with a prefix of a key": [("Authorization", f"Bearer {SANDBOX_API_KEY[:-1]}")],
    "longer than a key": [("Authorization", f"Bearer {SANDBOX_API_KEY}x")],
    "two in one": [("Authorization", f"Bearer {SANDBOX_API_KEY} {SANDBOX_API_KEY}")],
    "non-ASCII": [("Authorization", b"Bearer \xe9\xff")],
    "UTF-8": [("Authorization", "Bearer schlüssel".encode())],
    "non-ASCII session token": [("Authorization", b"Bearer oms_\xe9")],
    "5000 characters": [("Authorization", "Bearer " + "x" * 5000)],
    "5000 characters of token": [("Authorization", "Bearer oms_" + "0" * 5000)],
    "two headers": [("Authorization", f"Bearer {SANDBOX_API_KEY}"), ("Authorization", f"Bearer {SANDBOX_API_KEY}")],
    "malformed token": [("Authorization", "Bearer oms_zz")],
    "token of no session": [("Authorization", f"Bearer oms_{'0' * 32}_{'A' * 43}")],
    "token with a pattern": [("Authorization", f"Bearer oms_{'*' * 32}_{'A' * 43}")],
    "dots": [("Authorization", "Bearer a.b.c")],
}


@pytest.mark.parametrize("headers", BAD_AUTHORIZATION.values(), ids=BAD_AUTHORIZATION)
async def test_nobody_gets_in_without_a_good_credential(
    shared: Replica, vendor: SandboxServer, headers: list[tuple[str, str | bytes]]
) -> None:
    for endpoint in ENDPOINTS:
        sent = [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers]
        path = endpoint.path.format(session=UNKNOWN, validation="val_0")
        answer = await shared.client.request(endpoint.method, path, headers=sent, json=endpoint.body)
        assert answer.status_code == 401, (endpoint.name, answer.text)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert (answer.json()["status"], answer.json()["code"]) == ("OM400", "unauthenticated")
    assert vendor.world.calls.all() == []


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
async def test_the_scheme_may_be_written_in_any_case(shared: Replica, scheme: str) -> None:
    answer = await shared.client.get("/v1/providers", headers={"Authorization": f"{scheme} {SANDBOX_API_KEY}"})
    assert answer.status_code == 200


async def test_a_session_token_opens_no_sessions_and_makes_no_tokens(shared: Replica) -> None:
    walk = await shared.walk().open()
    for path in ("/v1/sessions", f"{walk.path}/tokens"):
        refused = await shared.client.post(path, headers=walk.headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert refused.json()["status"] == "OM400"


@pytest.mark.parametrize(
    "session_id",
    [
        "..",
        "%2e%2e",
        "%252e%252e",
        "a%3Fadmin=1",
        "a%23x",
        "%0d%0aX:1",
        "ses_",
        "ses_" + "g" * 32,
        "*",
        "%7Bx%7D",
        f"{UNKNOWN}%00",
        f"{UNKNOWN}%0a",
        "x" * 4000,
    ],
)
async def test_ids_of_another_form_are_not_found_and_looked_for_nowhere(
    shared: Replica, vendor: SandboxServer, monkeypatch: pytest.MonkeyPatch, session_id: str
) -> None:
    walk = await shared.walk().open()
    vendor.world.calls.clear()
    sessions, looked_for = shared.app.state.steps.access._sessions, set[str]()
    read = sessions.read_counted

    async def noted(wanted: str, **rest: Any) -> Any:
        looked_for.add(wanted)
        return await read(wanted, **rest)

    monkeypatch.setattr(sessions, "read_counted", noted)
    for path in (f"/v1/sessions/{session_id}", f"{walk.path}/validations/{session_id}"):
        for headers in (walk.headers, walk.server_headers):
            status, body = await _raw_get(shared.url, path, headers)
            unreadable = {400} if re.search("%0|%7f", path) else set()  # a control character
            assert status in unreadable or status in ({403, 404} if "/validations/" in path else {404}), path
            assert body["status"] == "OM400"
    assert looked_for <= {walk.id}
    assert vendor.world.calls.all() == []


async def test_a_new_token_kills_the_old_one(shared: Replica) -> None:
    walk = await shared.walk().open()
    old = walk.token
    replaced = await shared.client.post(f"{walk.path}/tokens", headers=walk.server_headers)
    assert replaced.status_code == 201
    walk.token = replaced.json()["session"]["token"]
    assert (await walk.show()).status_code == 200
    walk.token = old
    assert (await walk.show()).status_code == 401


async def test_a_bad_credential_is_told_before_a_bad_body(shared: Replica) -> None:
    for credential, status in (("nobody", 401), (SANDBOX_API_KEY, 422)):
        headers = {"Authorization": f"Bearer {credential}"}
        answer = await shared.client.post("/v1/sessions", headers=headers, json={"unknown": 1})
        assert answer.status_code == status


async def test_a_key_has_at_most_512_characters(shared: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    access = shared.app.state.steps.access
    [known] = access._api_keys.values()
    keys = ["k" * 512, "k" * 513]
    monkeypatch.setattr(access, "_api_keys", {hashlib.sha256(key.encode()).hexdigest(): known for key in keys})
    answers = [await shared.client.get("/v1/providers", headers={"Authorization": f"Bearer {key}"}) for key in keys]
    assert [answer.status_code for answer in answers] == [200, 401]


async def test_another_tenants_session_looks_unknown(shared: Replica, valkey: str) -> None:
    walk = await shared.walk().open()
    assert (await walk.show()).status_code == 200
    async with Redis.from_url(valkey) as redis:
        await redis.hset(shared.app.state.steps.access._sessions._keys.session(walk.id), "tenant", "another")
    assert (await walk.show()).status_code == 401
    assert (await shared.client.get(walk.path, headers=walk.server_headers)).status_code == 404


async def test_a_token_is_stored_as_its_sha_256_alone(replica: Replica, valkey: str, prefix: str) -> None:
    walk = await replica.walk().open()
    async with Redis.from_url(valkey, decode_responses=True) as redis:
        stored = await redis.hgetall(f"{prefix}:{{s:{walk.id}}}")
    assert stored["token"] == hashlib.sha256(walk.token.encode()).hexdigest()
    assert walk.token not in str(stored)
    assert walk.token.rsplit("_", 1)[1] not in str(stored)


async def test_a_session_may_be_read_300_times_a_minute(shared: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shared.app.state.steps.access._reads_limit.most == 300
    monkeypatch.setattr(shared.app.state.steps.access, "_reads_limit", Limit("session", 5, 60))
    walk = await shared.walk().open()
    answers = [await walk.show() for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    refused = answers[-1]
    assert (refused.json()["code"], refused.json()["retryable"]) == ("rate_limited", True)
    left = int(refused.headers["Retry-After"])
    assert 1 <= left <= 60
    assert refused.headers["RateLimit-Policy"] == '"session";q=5;w=60'
    assert refused.headers["RateLimit"] == f'"session";r=0;t={left}'
    # Another session and the host's server are not touched by it.
    assert (await (await shared.walk().open()).show()).status_code == 200
    assert (await walk.show(by_server=True)).status_code == 200


async def test_who_knows_only_the_id_cannot_use_up_its_reads(shared: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.app.state.steps.access, "_reads_limit", Limit("session", 5, 60))
    walk = await shared.walk().open()
    forged = Walk(shared.client, api_key="")
    forged.id, forged.token = walk.id, walk.token[:-4] + "AAAA"
    for _ in range(8):
        assert (await forged.show()).status_code == 401
    assert (await walk.show()).status_code == 200


async def _raw_get(url: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """A GET whose path is sent as it is written; clients resolve dots by themselves."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: test",
        "Connection: close",
        *(f"{name}: {headers[name]}" for name in headers),
    ]
    writer.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return int(head.split(b" ", 2)[1]), json.loads(body)
