"""People who come with a token of the host's own identity provider."""

import asyncio
import json
import random
import string
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from typing_extensions import override

from service.errors import Unauthenticated
from service.link import identity
from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY
from tests.callers.provider import AUDIENCE, ISSUER, Key, Provider, encoded, new_ec, new_rsa, running_provider
from tests.conftest import MovableClock, Replica, make_settings, running_replica
from tests.fuzzing import FUZZ

KEY = {"Authorization": f"Bearer {SANDBOX_API_KEY}"}
RSA_KEY = new_rsa("rsa-1")
EC_KEY = new_ec("ec-1")
PS_KEY = new_rsa("ps-1", "PS256")
STRANGER = new_rsa("rsa-1")


class FastClock(MovableClock):
    """Monotonic time can be pushed as well: nothing here sleeps by it."""

    @override
    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_ms / 1000


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with running_provider(RSA_KEY, EC_KEY, PS_KEY) as started:
        yield started


@pytest.fixture
async def door(valkey: str, upstream: SandboxServer, prefix: str, provider: Provider) -> AsyncIterator[Replica]:
    """An instance that takes the provider's tokens."""
    settings = make_settings(
        valkey,
        upstream.url,
        prefix,
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        jwt_jwks_url=f"{provider.url}/keys",
    )
    async with running_replica(settings) as started:
        yield started


def keys_of(door: Replica) -> identity.KeySet:
    found: identity.KeySet = door.app.state.steps.access._users[ISSUER]._keys
    return found


@pytest.fixture
def clock_of_keys(door: Replica, monkeypatch: pytest.MonkeyPatch) -> FastClock:
    clock = FastClock()
    monkeypatch.setattr(keys_of(door), "_clock", clock)
    return clock


async def open_as(door: Replica, token: str, **body: Any) -> httpx.Response:
    return await door.client.post("/v1/sessions", headers={"Authorization": f"Bearer {token}"}, json=body)


@pytest.mark.parametrize("key", [RSA_KEY, EC_KEY], ids=["RS256", "ES256"])
async def test_a_user_opens_reads_and_closes_a_session_of_its_own(door: Replica, provider: Provider, key: Key) -> None:
    token = key.sign(provider.claims("person-1"))
    opened = await open_as(door, token)
    assert opened.status_code == 201, opened.text
    session = opened.json()["session"]
    assert session["subject"] == "person-1"
    user = {"Authorization": f"Bearer {token}"}
    path = f"/v1/sessions/{session['id']}"
    assert (await door.client.get(path, headers=user)).json()["session"]["state"] == "open"
    assert (await door.client.get("/v1/providers", headers=user)).status_code == 200
    assert (await door.client.delete(path, headers=user)).json()["session"]["state"] == "closed"


async def test_a_user_reads_and_closes_what_a_server_opened_for_it(door: Replica, provider: Provider) -> None:
    walk = await door.walk().open(subject="person-1")
    user = {"Authorization": f"Bearer {provider.token('person-1')}"}
    assert (await door.client.get(walk.path, headers=user)).json()["session"]["id"] == walk.id
    assert (await door.client.delete(walk.path, headers=user)).json()["session"]["outcome"]["status"] == "OM400"


async def test_a_user_acts_in_no_session_and_makes_no_tokens(door: Replica, provider: Provider) -> None:
    token = provider.token()
    session = (await open_as(door, token)).json()["session"]
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/tokens", None),
        ("POST", "/validations", {"providerId": "a"}),
        ("GET", "/validations/val_0", None),
        ("DELETE", "/validations/val_0", None),
        ("GET", "/service-accounts", None),
        ("POST", "/links", {"serviceAccountIds": ["a"]}),
    ]
    for method, path, body in calls:
        answer = await door.client.request(
            method, f"/v1/sessions/{session['id']}{path}", headers={"Authorization": f"Bearer {token}"}, json=body
        )
        assert answer.status_code == 403, (method, path, answer.text)


@pytest.mark.parametrize("body", [{"subject": "person-1"}, {"metadata": {"a": "b"}}, {"ttlSeconds": 60}], ids=str)
async def test_a_user_decides_nothing_of_its_session(door: Replica, provider: Provider, body: dict[str, Any]) -> None:
    assert (await open_as(door, provider.token(), **body)).status_code == 403


async def test_a_publishable_id_beside_a_users_token_is_ignored(door: Replica, provider: Provider) -> None:
    opened = await open_as(door, provider.token(), clientId="whoever")
    assert opened.json()["session"]["subject"] == "person-1"


async def test_an_audience_may_be_one_of_several(door: Replica, provider: Provider) -> None:
    assert (await open_as(door, provider.token(aud=["other", AUDIENCE]))).status_code == 201


def _public_pem() -> bytes:
    public: bytes = RSA_KEY.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return public


def _hs256_with_public_key(provider: Provider) -> str:
    import hashlib  # noqa: PLC0415
    import hmac  # noqa: PLC0415
    from base64 import urlsafe_b64encode  # noqa: PLC0415

    signed = f"{encoded({'alg': 'HS256', 'typ': 'JWT', 'kid': 'rsa-1'})}.{encoded(provider.claims())}"
    signature = hmac.new(_public_pem(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def _without(name: str) -> Callable[[Provider], str]:
    return lambda provider: RSA_KEY.sign(provider.claims(**{name: None}))


def _with(**claims: Any) -> Callable[[Provider], str]:
    return lambda provider: RSA_KEY.sign(provider.claims() | claims)


def _pointing(name: str, value: Callable[[Provider], Any]) -> Callable[[Provider], str]:
    return lambda provider: STRANGER.sign(provider.claims(), **{name: value(provider)})


def _raw(claims: str) -> Callable[[Provider], str]:
    """Signed with the right key, whatever it is."""
    return lambda _: jwt.api_jws.encode(claims.encode(), RSA_KEY.private, "RS256", headers={"kid": "rsa-1"})


def _flipped(provider: Provider) -> str:
    head, claims, signature = provider.token().split(".")
    return f"{head}.{claims}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"


def _swapped(provider: Provider) -> str:
    head, _, signature = provider.token("person-1").split(".")
    return f"{head}.{encoded(provider.claims('person-2'))}.{signature}"


NOW = int(time.time())
FORGED: dict[str, Callable[[Provider], str]] = {
    "alg none": lambda provider: f"{encoded({'alg': 'none', 'kid': 'rsa-1'})}.{encoded(provider.claims())}.",
    "alg none with a signature": lambda p: f"{encoded({'alg': 'none', 'kid': 'rsa-1'})}.{encoded(p.claims())}.AAAA",
    "alg None": lambda p: f"{encoded({'alg': 'None', 'kid': 'rsa-1'})}.{encoded(p.claims())}.AAAA",
    "alg is a list": lambda p: f"{encoded({'alg': ['RS256'], 'kid': 'rsa-1'})}.{encoded(p.claims())}.AAAA",
    "alg missing": lambda p: f"{encoded({'kid': 'rsa-1'})}.{encoded(p.claims())}.AAAA",
    "HS256 with the public key": _hs256_with_public_key,
    "HS256 with the key id": lambda p: jwt.encode(p.claims(), "rsa-1" * 8, "HS256", headers={"kid": "rsa-1"}),
    "alg not in the list": lambda provider: PS_KEY.sign(provider.claims()),
    "alg of another key": lambda provider: EC_KEY.sign(provider.claims(), kid="rsa-1"),
    "wrong key": lambda provider: STRANGER.sign(provider.claims()),
    "unknown kid": lambda provider: RSA_KEY.sign(provider.claims(), kid="rsa-9"),
    "missing kid": lambda p: jwt.encode(p.claims(), RSA_KEY.private, "RS256"),
    "kid is a number": lambda p: f"{encoded({'alg': 'RS256', 'kid': 1})}.{encoded(p.claims())}.AAAA",
    "kid is a path": lambda provider: RSA_KEY.sign(provider.claims(), kid="../../dev/null"),
    "jku": _pointing("jku", lambda provider: f"{provider.url}/evil"),
    "x5u": _pointing("x5u", lambda provider: f"{provider.url}/evil"),
    "embedded jwk": _pointing("jwk", lambda _: STRANGER.public),
    "embedded x5c": _pointing("x5c", lambda _: [encoded("certificate")]),
    "crit": lambda provider: RSA_KEY.sign(provider.claims(), crit=["exp"]),
    "crit unknown": lambda provider: RSA_KEY.sign(provider.claims(), crit=["x"], x=1),
    "b64 false": lambda p: f"{encoded({'alg': 'RS256', 'kid': 'rsa-1', 'b64': False})}.{encoded(p.claims())}.AAAA",
    "expired": _with(exp=NOW - 120),
    "exp is text": _with(exp="soon"),
    "exp is infinite": _raw(json.dumps({"iss": ISSUER, "aud": AUDIENCE, "sub": "s"})[:-1] + ', "exp": 1e999}'),
    "exp is NaN": _raw(json.dumps({"iss": ISSUER, "aud": AUDIENCE, "sub": "s"})[:-1] + ', "exp": NaN}'),
    "nbf in the future": _with(nbf=NOW + 3600),
    "nbf is infinite": _raw(
        json.dumps({"iss": ISSUER, "aud": AUDIENCE, "sub": "s", "exp": NOW + 600})[:-1] + ', "nbf": 1e999}'
    ),
    "wrong iss": _with(iss="https://id.evil.example/"),
    "iss without the slash": _with(iss=ISSUER.rstrip("/")),
    "iss is a list": _raw(json.dumps({"iss": [ISSUER], "aud": AUDIENCE, "sub": "s", "exp": NOW + 600})),
    "wrong aud": _with(aud="other"),
    "aud is empty": _with(aud=[]),
    "aud is a number": _with(aud=1),
    "no exp": _without("exp"),
    "no iss": _without("iss"),
    "no aud": _without("aud"),
    "no sub": _without("sub"),
    "sub is a number": _raw(json.dumps({"iss": ISSUER, "aud": AUDIENCE, "sub": 7, "exp": NOW + 600})),
    "sub is null": _raw(json.dumps({"iss": ISSUER, "aud": AUDIENCE, "sub": None, "exp": NOW + 600})),
    "sub is empty": _with(sub=""),
    "sub is too long": _with(sub="x" * 256),
    "sub is half a character": _raw(json.dumps({"iss": ISSUER, "aud": AUDIENCE, "sub": "\ud800", "exp": NOW + 600})),
    "claims are a list": _raw("[]"),
    "claims are no JSON": _raw("claims"),
    "claims are nested": _raw('{"a":' + "[" * 4000),
    "claims hold a long number": _raw('{"exp":' + "9" * 5000 + "}"),
    "header is nested": lambda p: f"{encoded('[' * 5000)}.{encoded(p.claims())}.AAAA",
    "header is a list": lambda p: f"{encoded([1])}.{encoded(p.claims())}.AAAA",
    "header is no JSON": lambda p: f"{encoded('head')}.{encoded(p.claims())}.AAAA",
    "truncated signature": lambda provider: provider.token()[:-10],
    "no signature": lambda provider: provider.token().rpartition(".")[0] + ".",
    "flipped signature": _flipped,
    "other claims": _swapped,
    "characters beside base64": lambda provider: provider.token() + "!*",
    "padding": lambda provider: provider.token() + "==",
    "a blank inside": lambda provider: provider.token().replace(".", ". ", 1),
    "huge": lambda provider: RSA_KEY.sign(provider.claims(pad="x" * 9000)),
    "four parts": lambda provider: provider.token() + ".x",
    "doubled dot": lambda provider: provider.token().replace(".", "..", 1),
    "only dots": lambda _: "..",
    "encrypted": lambda _: "a.b.c.d.e",
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
async def test_a_forged_token_opens_nothing(
    door: Replica, provider: Provider, upstream: SandboxServer, forge: Callable[[Provider], str]
) -> None:
    assert (await open_as(door, provider.token())).status_code == 201
    session = await door.walk().open(subject="person-1")
    upstream.world.calls.clear()
    token = forge(provider)
    headers = {"Authorization": f"Bearer {token}"}
    for method, path in (("POST", "/v1/sessions"), ("GET", session.path), ("GET", "/v1/providers")):
        answer = await door.client.request(method, path, headers=headers)
        assert answer.status_code == 401, answer.text
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["code"] == "unauthenticated"
    assert upstream.world.calls.all() == []
    assert set(provider.requests) == {"/keys"}


async def test_a_token_with_one_character_changed_opens_nothing(door: Replica, provider: Provider) -> None:
    token = EC_KEY.sign(provider.claims())
    assert (await open_as(door, token)).status_code == 201
    choose = random.Random(7)  # noqa: S311 -- repeatable, not secret
    alphabet = f"{string.ascii_letters}{string.digits}-_.=+/~"
    for _ in range(40 * FUZZ):
        # But the last one, of which only two bits count.
        at, other = choose.randrange(1, len(token) - 1), choose.choice(alphabet)
        changed = choose.choice([f"{token[:at]}{other}{token[at + 1 :]}", token[:at] + token[at + 1 :], token[:at]])
        if changed != token:
            answer = await open_as(door, changed)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), changed


@pytest.mark.parametrize("subject", ["p", "p" * 255])
async def test_a_subject_has_between_1_and_255_characters(door: Replica, provider: Provider, subject: str) -> None:
    assert (await open_as(door, provider.token(subject))).status_code == 201


async def test_a_token_has_at_most_8192_characters() -> None:
    token = f"e30.{encoded({'iss': ISSUER})}."
    longest = token + "x" * (8192 - len(token))
    assert identity.issuer_of(longest) == ISSUER
    with pytest.raises(Unauthenticated):
        identity.issuer_of(f"{longest}x")


async def test_without_a_provider_no_users_token_is_good(replica: Replica, provider: Provider) -> None:
    assert (await open_as(replica, provider.token())).status_code == 401
    assert provider.requests == []


async def test_keys_are_read_once_for_many(door: Replica, provider: Provider) -> None:
    answers = await asyncio.gather(*(open_as(door, provider.token(f"person-{each}")) for each in range(10)))
    assert [each.status_code for each in answers] == [201] * 10
    assert provider.requests == ["/keys"]


async def test_a_new_key_is_taken_and_an_old_one_dies(
    door: Replica, provider: Provider, clock_of_keys: FastClock
) -> None:
    old = provider.token()
    assert (await open_as(door, old)).status_code == 201
    provider.keys = [new_rsa("rsa-2")]
    clock_of_keys.forward(31)
    assert (await open_as(door, provider.token())).status_code == 201
    assert (await open_as(door, old)).status_code == 401
    assert len(provider.requests) == 2


async def test_keys_are_read_again_in_the_background(
    door: Replica, provider: Provider, clock_of_keys: FastClock
) -> None:
    old = provider.token()
    assert (await open_as(door, old)).status_code == 201
    provider.keys = [new_rsa("rsa-2")]
    clock_of_keys.forward(601)
    assert (await open_as(door, old)).status_code == 201  # the last one
    await asyncio.sleep(0.3)
    assert len(provider.requests) == 2
    assert (await open_as(door, old)).status_code == 401


async def test_an_unknown_key_asks_at_most_once_per_half_minute(
    door: Replica, provider: Provider, clock_of_keys: FastClock
) -> None:
    assert (await open_as(door, provider.token())).status_code == 201
    clock_of_keys.forward(31)
    for each in range(12):
        answer = await open_as(door, RSA_KEY.sign(provider.claims(), kid=f"unknown-{each}"))
        assert answer.status_code == 401
    assert len(provider.requests) == 2
    clock_of_keys.forward(31)
    await open_as(door, RSA_KEY.sign(provider.claims(), kid="unknown"))
    assert len(provider.requests) == 3


BROKEN: dict[str, tuple[int, bytes]] = {
    "500": (500, b"{}"),
    "a redirect": (302, b""),
    "a web page": (200, b"<html>"),
    "no keys": (200, b'{"keys": []}'),
    "keys of another shape": (200, b'{"keys": {"a": 1}}'),
    "a list": (200, b"[]"),
    "a shared secret": (200, b'{"keys": [{"kty": "oct", "kid": "rsa-1", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}]}'),
    "nonsense": (200, b'{"keys": [1, null, {"kid": "rsa-1", "kty": "RSA", "n": "!", "e": 1}]}'),
}


@pytest.mark.parametrize(("status", "body"), BROKEN.values(), ids=BROKEN)
async def test_an_outage_of_the_provider_locks_nobody_out(
    door: Replica, provider: Provider, clock_of_keys: FastClock, status: int, body: bytes
) -> None:
    assert (await open_as(door, provider.token())).status_code == 201
    provider.status, provider.body = status, body
    for _ in range(3):
        clock_of_keys.forward(3600)
        assert (await open_as(door, provider.token())).status_code == 201
        assert (await open_as(door, RSA_KEY.sign(provider.claims(), kid="rsa-9"))).status_code == 401
    provider.status, provider.body = 200, None
    provider.keys = [new_rsa("rsa-2")]
    clock_of_keys.forward(31)
    assert (await open_as(door, provider.token())).status_code == 201


@pytest.mark.parametrize(("status", "body"), BROKEN.values(), ids=BROKEN)
async def test_a_provider_that_was_never_reached_is_an_outage_and_no_refusal(
    door: Replica, provider: Provider, clock_of_keys: FastClock, status: int, body: bytes
) -> None:
    provider.status, provider.body = status, body
    answer = await open_as(door, provider.token())
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    provider.status, provider.body = 200, None
    clock_of_keys.forward(2.1)
    assert (await open_as(door, provider.token())).status_code == 201


@pytest.mark.parametrize(("apart_seconds", "status"), [(20, 201), (90, 401)])
@pytest.mark.parametrize("claim", ["issued ahead", "expired behind"])
async def test_clocks_of_the_provider_and_of_this_service_may_be_half_a_minute_apart(
    door: Replica, provider: Provider, claim: str, apart_seconds: int, status: int
) -> None:
    now = int(time.time())
    if claim == "issued ahead":
        token = provider.token(iat=now + apart_seconds, nbf=now + apart_seconds)
    else:
        token = provider.token(iat=now - 600, exp=now - apart_seconds)
    assert (await open_as(door, token)).status_code == status


async def test_a_private_key_in_the_set_is_not_used(door: Replica, provider: Provider) -> None:
    leaked = new_rsa("leaked")
    leaked.public["d"] = "AQAB"
    provider.keys.append(leaked)
    assert (await open_as(door, provider.token())).status_code == 201
    assert (await open_as(door, leaked.sign(provider.claims()))).status_code == 401
