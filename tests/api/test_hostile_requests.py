"""Requests as nobody sends them by accident, byte by byte: each is answered in an envelope, and goes no further."""

import asyncio
import itertools
import json
import re
import socket
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from service.sandbox.server import SandboxServer
from service.stores.limits import Limit
from tests.conftest import Replica
from tests.fuzzing import FUZZ
from tests.walk import APS, Walk

EXAMPLES: Final = settings(
    max_examples=60 * FUZZ,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def envelope(self) -> Any:
        """The body, which must be an envelope with the id of the request."""
        assert self.headers["content-type"] == "application/json", self
        body = json.loads(self.body)
        assert body["requestId"] == self.headers["x-request-id"], self
        assert body["status"] in {"OM200", "OM400", "OM410", "OM500"}, self
        return body


def ask(
    url: str,
    target: bytes,
    *headers: tuple[bytes, bytes],
    method: bytes = b"GET",
    body: bytes = b"",
) -> Answer:
    """Send exactly these bytes, and read to the end."""
    address = httpx.URL(url)
    lines = [
        b"%s %s HTTP/1.1" % (method, target),
        b"Host: bff.example",
        b"Connection: close",
        *(b"%s: %s" % each for each in headers),
    ]
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    with socket.create_connection((address.host, address.port), timeout=20) as line:
        line.sendall(b"\r\n".join([*lines, b"", body]))
        said = b""
        while more := line.recv(65536):
            said += more
    head, _, content = said.partition(b"\r\n\r\n")
    status, *fields = head.decode("latin-1").split("\r\n")
    named = [each.partition(": ")[::2] for each in fields]
    doubled = [name for name, count in Counter(name.lower() for name, _ in named).items() if count > 1]
    assert not doubled, said
    return Answer(int(status.split(" ")[1]), {name.lower(): value for name, value in named}, content)


def bearer(token: str) -> tuple[bytes, bytes]:
    return b"Authorization", f"Bearer {token}".encode()


@pytest.fixture
async def walk(shared: Replica, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """A session with a validation that succeeded."""
    monkeypatch.setattr(shared.app.state.steps.access, "_reads_limit", Limit("session", 1_000_000, 60))
    walk = await shared.walk().open()
    assert (await walk.validate("user_quick")).json()["validation"]["state"] == "succeeded"
    return walk


# Ids in paths

UNLIKE_AN_ID: Final = (
    *(b"..", b".", b"%2e%2e", b"%2E%2E%2F", b"%252e%252e%252f", b"..%2f..%2flivez", b"..;", b"..%5c", b"%c0%ae%c0%ae"),
    *(b"a%3Fadmin=1", b"a%23x", b"a%26b=c", b"a;b=c", b"a%3bb", b"%2f%2fevil.example", b"http:%2f%2fevil.example"),
    *(b"%0d%0aX-Evil:%20yes", b"a%0aGET%20/v1/providers", b"%00", b"a%00b", b"%20", b"a%20", b"%09", b"%7f", b"%ff"),
    *("\u00e9".encode(), quote("ses_\uff10\u0661").encode(), quote("\U0001f4a9").encode(), b"%ed%a0%80", b"%u0041"),
    *(b"%", b"%2", b"%zz", b"*", b"$where", b"{session_id}", b"%7Bsession_id%7D", b"'%20OR%201=1--", b"a" * 129),
    *(b"a" * 30_000, b"ses_" + b"0" * 33, b"SES_" + b"0" * 32, b"null", b"undefined", b"0", b"-1", b"1e999"),
)
WIDGET_PATHS: Final = (
    ("GET", "/api/jobs/{job_id}"),
    ("GET", "/api/utility-user-account/{account_id}"),
    ("POST", "/api/{account_id}/utility-service-accounts/batch"),
)


def targets(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Each operation and each parameter of its path."""
    documented = [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]
    return [
        (method, path, name) for method, path in [*documented, *WIDGET_PATHS] for name in re.findall(r"{(\w+)}", path)
    ]


BODIES: Final = {
    "/validations": {"providerId": APS, "username": "user_quick", "password": "pass_good"},
    "/links": {"serviceAccountIds": ["a"]},
    "/batch": ["a"],
}


def try_id(url: str, walk: Walk, target: tuple[str, str, str], hostile: bytes) -> None:
    """One id is as given, all else is well."""
    method, path, name = target
    filled = path.replace(f"{{{name}}}", "\0").replace("{session_id}", walk.id).encode()
    filled = re.sub(rb"{\w+}", b"val_0", filled).replace(b"\0", hostile)
    body = next((json.dumps(each).encode() for end, each in BODIES.items() if path.endswith(end)), b"")
    key = "replace" if path.endswith("/tokens") else ""
    headers = [bearer(walk.server_headers["Authorization"].partition(" ")[2] if key else walk.token)]
    if body and method == "POST":
        headers.append((b"Content-Type", b"application/json"))
    answer = ask(url, filled, *headers, method=method.encode(), body=body if method == "POST" else b"")
    refused = {"not_found": 404, "method_not_allowed": 405, "malformed_request": 400}
    assert answer.status == refused.get(answer.envelope["code"]), (filled, answer)
    assert "x-evil" not in answer.headers


async def test_no_id_in_a_path_is_anything_but_an_id(shared: Replica, vendor: SandboxServer, walk: Walk) -> None:
    vendor.world.calls.clear()

    def all_of_them() -> None:
        every = targets(shared.app.openapi())
        for number, hostile in enumerate(UNLIKE_AN_ID):
            for target in every if FUZZ > 1 else every[number % 4 :: 4]:
                try_id(shared.url, walk, target, hostile)

    await asyncio.to_thread(all_of_them)
    assert [(call.method, call.path) for call in vendor.world.calls.all()] == []


# Without what ends a path, or begins the next part of one.
RAW: Final = st.binary(min_size=1, max_size=40).map(lambda raw: quote(raw, safe="!$&'()*+,;=:@%~|^{}\"<>\\`").encode())
MARKS: Final = st.lists(
    st.sampled_from([b"..", b"%2e", b"%2f", b"%5c", b"%3f", b"%23", b"%25", b"%0d%0a", b"%00", b"a", b";", b"@", b":"]),
    min_size=1,
    max_size=8,
).map(b"".join)


async def test_nor_is_any_other(shared: Replica, vendor: SandboxServer, walk: Walk) -> None:
    vendor.world.calls.clear()

    @EXAMPLES
    @given(target=st.sampled_from(targets(shared.app.openapi())), hostile=RAW | MARKS)
    def check(target: tuple[str, str, str], hostile: bytes) -> None:
        try_id(shared.url, walk, target, hostile)

    await asyncio.to_thread(check)
    assert [(call.method, call.path) for call in vendor.world.calls.all()] == []


# Headers

LONG: Final = b"x" * 20_000
VALUES: Final = (
    *(b"", b" ", b"\t", b"*", b"*/*;q=0", b",,,,", b";;;;", b'"', b'"unfinished', b"\\", b"=", b"\xe9", b"\xff\xfe"),
    *("\u20ac".encode(), b"wait", b"wait=", b"wait=-1", b"wait=9999999999999999999999", b"wait=1e9", b"wait=0x1"),
    *(b"wait=0;wait=0", b"wait=\xd9\xa1", b"W/", b'W/"x"', b"*, *", b"evt_", b"evt_" + b"9" * 200, LONG),
    *(b"evt_" + b"0" * 32 + b"_" + b"9" * 40, b"a\x0bb", b"Bearer", b"Bearer ", b"Basic YTpi", b"bearer oms_"),
    *(
        b"Bearer \xc3\xa9",
        b"Bearer oms_\xff",
        b"Bearer " + LONG,
        b"oms_" + b"0" * 32 + b"_" + b"A" * 43,
        b"Bearer a.b.c",
    ),
    *(b"gzip", b"chunked", b"text/plain", b"application/json; charset=\xff", b"127.0.0.1", b"for=1.2.3.4", b"null"),
    *(
        b"https://evil.example",
        b"http://[::1",
        b"no-cache, no-cache",
        b"a" * 64,
        b"a" * 65,
        b"../../x",
        b"%0d%0aX-Evil: yes",
    ),
)
NAMES: Final = (
    *(b"Accept", b"Prefer", b"If-None-Match", b"Idempotency-Key", b"Last-Event-ID", b"Cache-Control", b"X-Request-Id"),
    *(b"Authorization", b"Origin", b"X-Forwarded-For", b"X-Forwarded-Proto", b"Forwarded", b"X-Real-IP", b"Cookie"),
    *(b"X-User-Id", b"Content-Type", b"Content-Encoding", b"Accept-Encoding", b"Range", b"Upgrade", b"Expect", b"Via"),
    *(b"Access-Control-Request-Method", b"X-HTTP-Method-Override", b"traceparent", b"baggage", b"Sec-Fetch-Site"),
)
HEADERS: Final = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from(VALUES) | st.binary(max_size=60).map(lambda raw: re.sub(rb"[\x00\r\n]", b"", raw)),
)


def try_headers(url: str, walk: Walk, call: tuple[bytes, bytes], headers: list[tuple[bytes, bytes]]) -> None:
    """All else is well."""
    method, target = call
    given = {name for name, _ in headers}
    if b"Authorization" not in given:
        headers = [*headers, bearer(walk.token)]
    if method == b"POST" and b"Content-Type" not in given:
        headers = [*headers, (b"Content-Type", b"application/json")]
    body = json.dumps({"serviceAccountIds": ["unknown"]}).encode() if method == b"POST" else b""
    answer = ask(url, target, *headers, method=method, body=body)
    assert answer.status < 500, (headers, answer)
    assert "x-evil" not in answer.headers
    assert re.fullmatch(r"[A-Za-z0-9-]{1,64}", answer.headers["x-request-id"]), (headers, answer)
    if answer.status == 304:
        assert not answer.body
    else:
        assert answer.envelope["requestId"]


def calls_of(walk: Walk) -> list[tuple[bytes, bytes]]:
    path = walk.path.encode()
    return [(b"GET", path), (b"GET", b"/v1/providers"), (b"POST", path + b"/links")]


async def test_no_header_breaks_anything(shared: Replica, vendor: SandboxServer, walk: Walk) -> None:
    calls = calls_of(walk)
    vendor.world.calls.clear()

    def all_of_them() -> None:
        for number, (name, value) in enumerate(itertools.product(NAMES, VALUES)):
            if FUZZ > 1 or number % 5 == 0:
                try_headers(shared.url, walk, calls[number % 3], [(name, value)])

    await asyncio.to_thread(all_of_them)
    assert [(call.method, call.path) for call in vendor.world.calls.all()] == []


async def test_nor_do_several(shared: Replica, vendor: SandboxServer, walk: Walk) -> None:
    vendor.world.calls.clear()

    @EXAMPLES
    @given(call=st.sampled_from(calls_of(walk)), headers=st.lists(HEADERS, min_size=2, max_size=4))
    def check(call: tuple[bytes, bytes], headers: list[tuple[bytes, bytes]]) -> None:
        try_headers(shared.url, walk, call, headers)

    await asyncio.to_thread(check)
    assert [(call.method, call.path) for call in vendor.world.calls.all()] == []


@pytest.mark.parametrize("name", [b"Authorization", b"Idempotency-Key"])
async def test_a_header_that_is_there_twice_is_not_one(shared: Replica, walk: Walk, name: bytes) -> None:
    good = [bearer(walk.token), (b"Content-Type", b"application/json"), (b"Idempotency-Key", b"once")]
    twice = [each for each in good if each[0] == name]
    body = json.dumps({"serviceAccountIds": ["unknown"]}).encode()
    target = f"{walk.path}/links".encode()
    answer = await asyncio.to_thread(ask, shared.url, target, *good, *twice, method=b"POST", body=body)
    assert answer.envelope["code"] == ("unauthenticated" if name == b"Authorization" else "malformed_request")


# Bodies

ANY_JSON: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["9" * 5000, "\ud800", "\0", "../x", APS, "a"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["a", "__proto__", "$ne"]), inner),
    max_leaves=10,
)
FIELDS: Final = st.sampled_from(
    [
        *("providerId", "username", "password", "serviceAccountIds", "consent", "version", "acceptedAt"),
        *("resendUnknown", "subject", "metadata", "ttlSeconds", "hosted", "returnUrl", "clientId", "tenant"),
    ]
)
BROKEN: Final = (
    *(b"", b" ", b"{", b"[" * 30_000, b'{"a":' * 2000, b"NaN", b'{"ttlSeconds": Infinity}', b"9" * 5000, b"1e999"),
    *(b'{"subject": "a", "subject": "b"}', b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b'{"subject": "\xff"}', b"null"),
    *(b'{"subject": "\\ud800"}', b'{"subject": "\\u0000"}', b"{} {}", b"true", b'"text"', b"[]", b'{"a": "' + LONG * 4),
)
DOCUMENTS: Final = st.dictionaries(FIELDS, ANY_JSON, max_size=6).map(lambda it: json.dumps(it).encode()) | st.tuples(
    st.dictionaries(FIELDS, ANY_JSON, max_size=3).map(lambda it: json.dumps(it).encode()),
    st.integers(0, 200),
    st.binary(max_size=3),
).map(lambda it: it[0][: it[1]] + it[2] + it[0][it[1] :])


def try_body(url: str, call: tuple[str, str], body: bytes) -> None:
    path, token = call
    headers = (bearer(token), (b"Content-Type", b"application/json"))
    answer = ask(url, path.encode(), *headers, method=b"POST", body=body)
    assert answer.status < 500, (path, body, answer)
    assert answer.envelope["requestId"]


async def test_no_body_breaks_anything(shared: Replica, vendor: SandboxServer, walk: Walk) -> None:
    vendor.world.calls.clear()
    key = walk.server_headers["Authorization"].partition(" ")[2]
    calls = [
        ("/v1/sessions", key),
        (f"{walk.path}/validations", walk.token),
        (f"{walk.path}/links", walk.token),
        ("/api/access-token", walk.token),
        ("/api/jobs", walk.token),
        ("/api/acc/utility-service-accounts/batch", walk.token),
    ]

    def all_of_them() -> None:
        for call, body in itertools.product(calls, BROKEN):
            try_body(shared.url, call, body)

    @EXAMPLES
    @given(call=st.sampled_from(calls), body=DOCUMENTS)
    def check(call: tuple[str, str], body: bytes) -> None:
        try_body(shared.url, call, body)

    await asyncio.to_thread(all_of_them)
    await asyncio.to_thread(check)
    # None was good enough to be passed on: there is no such account, and no such provider.
    assert [call.route for call in vendor.world.calls.all() if call.route != "companies"] == []
