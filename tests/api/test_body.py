"""Bodies that are too long, not declared as JSON or readable in two ways are refused before any route runs."""

import asyncio
import json
import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Annotated, Any

import httpx
import orjson
import pytest
import uvicorn
from fastapi import Body
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from service.api.body import announces_body, read_body
from service.api.dispatch import Dispatcher, RaisedInstead, Resolver
from service.api.routing import RouteKind, make_router
from service.api.strict_json import parse_json
from service.errors import BodyTooLarge, MalformedRequest, ServiceError, UnsupportedMediaType
from service.protocol import HttpProtocol, is_malformed
from tests.plain import NO_TLS

CANARY = "hunter2-canary"
STATUS = {BodyTooLarge: 413, MalformedRequest: 400, UnsupportedMediaType: 415}
MESSAGES = {
    "encoding": "The request body is not valid UTF-8",
    "bom": "The request body must not start with a byte order mark",
    "json": "The request body is not valid JSON",
    "depth": "The request body is nested too deeply",
    "keys": "The request body has an object with duplicate keys",
    "finite": "The request body has a number that is not finite",
    "digits": "The request body has an integer with too many digits",
    "nul": "The request body has a string with a NUL character",
    "surrogate": "The request body has a string with a lone surrogate",
}


# JSON

BAD = [
    ("encoding", b'"\xff"'),
    ("encoding", b'"\xed\xa0\x80"'),  # a surrogate, encoded
    ("encoding", b'"\xc0\x80"'),  # NUL, overlong
    ("encoding", '{"a": 1}'.encode("utf-16")),
    ("json", '{"a": 1}'.encode("utf-16-le")),
    ("bom", b"\xef\xbb\xbf{}"),
    ("json", b" "),
    ("json", b"{"),
    ("json", b"{} {}"),
    ("json", b"{'a': 1}"),
    ("json", b'{"a": 1,}'),
    ("json", b'{"a" 1}'),
    ("json", b"[1] // comment"),
    ("json", b'"unfinished'),
    ("json", b'"bad \\x escape"'),
    ("json", b'"\\ud8"'),
    ("json", b'"raw \n line"'),
    ("json", b'"raw \x00 NUL"'),
    ("json", b"01"),
    ("json", b"+1"),
    ("json", b"1_000"),
    ("json", "\u0661".encode()),
    ("json", b"\xc2\xa0{}"),
    ("finite", b"NaN"),
    ("finite", b'{"a": [Infinity]}'),
    ("finite", b"-Infinity"),
    ("finite", b"1e999"),
    ("finite", b"[-1e999]"),
    ("finite", b"9" * 400 + b".0"),
    ("digits", b"1" * 33),
    ("digits", b"-" + b"1" * 33),
    ("digits", b"9" * 60_000),
    ("keys", b'{"a": 1, "a": 1}'),
    ("keys", b'{"a": 1, "\\u0061": 2}'),
    ("keys", b'[{"b": {"a": 1, "a": 2}}]'),
    ("depth", b"[" * 33 + b"]" * 33),
    ("depth", b"[" * 60_000),
    ("depth", b'{"a":' * 33 + b"1" + b"}" * 33),
    ("depth", b'["]]]",' * 33 + b"1" + b"]" * 33),
    ("depth", b'["\\"]",' * 33 + b"1" + b"]" * 33),
    ("surrogate", b'"\\ud800"'),
    ("surrogate", b'["\\udfff"]'),
    ("surrogate", b'"\\ud83d \\ude00"'),
    ("surrogate", b'"\\ude00\\ud83d"'),
    ("surrogate", b'{"\\uD83D": 1}'),
    ("nul", b'"\\u0000"'),
    ("nul", b'{"a": ["b\\u0000"]}'),
    ("nul", b'{"\\u0000": 1}'),
    ("nul", b'"\\\\\\u0000"'),
]

GOOD = [
    b"{}",
    b' \t\r\n{"a": [1, 2.5, -3e2, true, false, null]}\n',
    b'"text"',
    b"0",
    b"9" * 32,
    b"-" + b"9" * 32,
    b"1e308",
    b"1e-999",
    b"[" * 32 + b"]" * 32,
    b"[" + b",".join([b"{}"] * 100) + b"]",
    b'["' + b"[{" * 100 + b'"]',
    b'["\\"' + b"[{" * 100 + b'\\\\"]',
    b'[{"a": 1}, {"a": 1}]',
    b'"\\ud83d\\ude00 \\u00e9"',
    b'"\\\\u0000 \\\\ud800"',
    '"\ufeff \ue000 😀"'.encode(),
]


@pytest.mark.parametrize(("flaw", "raw"), BAD, ids=lambda value: repr(value)[:40])
def test_bad_json_is_refused_with_a_constant_message(flaw: str, raw: bytes) -> None:
    with pytest.raises(MalformedRequest) as refused:
        parse_json(raw, max_depth=32)
    assert str(refused.value) == MESSAGES[flaw]


@pytest.mark.parametrize("raw", GOOD, ids=lambda value: repr(value)[:40])
def test_good_json_passes(raw: bytes) -> None:
    parse_json(raw, max_depth=32)
    json.loads(raw)


@pytest.mark.parametrize(
    "raw",
    [
        f'{{"password": "{CANARY}" "}}',
        f'{{"password": "{CANARY}", "password": "{CANARY}"}}',
        f'{{"{CANARY}": 1, "{CANARY}": 1}}',
        f'{{"password": "{CANARY}\\u0000"}}',
        f'{{"{CANARY}\\ud800": 1}}',
        f'{{"password": "{CANARY}", "a": 1e999}}',
        f'{{"password": "{CANARY}", "a": {"1" * 50}}}',
        f'["{CANARY}", {"[" * 50}',
        f'"{CANARY}\udcff"',
    ],
)
def test_no_refusal_holds_any_of_the_body(raw: str) -> None:
    with pytest.raises(MalformedRequest) as refused:
        parse_json(raw.encode(errors="surrogateescape"), max_depth=32)
    assert CANARY not in str(refused.value) + repr(refused.value) + repr(vars(refused.value))
    assert refused.value.__context__ is None
    assert refused.value.__cause__ is None


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(1 - 10**32, 10**32 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=20,
)


@given(value=VALUES, ensure_ascii=st.booleans(), indent=st.sampled_from([None, 2]))
def test_whatever_json_can_say_within_the_limits_passes(value: object, *, ensure_ascii: bool, indent: int) -> None:
    parse_json(json.dumps(value, ensure_ascii=ensure_ascii, indent=indent).encode(), max_depth=32)


@given(raw=st.binary() | st.text(alphabet='{}[]",:\\u0d8e1. ').map(str.encode))
def test_any_bytes_are_json_or_refused_with_a_constant_message(raw: bytes) -> None:
    message = None
    try:
        parse_json(raw, max_depth=4)
    except MalformedRequest as refused:
        message = str(refused)
    assert message in MESSAGES.values() if message else _depth(json.loads(raw)) <= 4


@given(value=VALUES, text=TEXTS, at=st.integers(0, 5))
def test_depth_is_what_nests_whatever_strings_hold(value: object, text: str, at: int) -> None:
    value = [value, text, "[{"]
    raw = json.dumps(value).encode()
    if _depth(value) > at:
        with pytest.raises(MalformedRequest, match="nested too deeply"):
            parse_json(raw, max_depth=at)
    else:
        parse_json(raw, max_depth=at)


def _depth(value: object) -> int:
    match value:
        case list():
            return 1 + max(map(_depth, value), default=0)
        case dict():
            return 1 + max(map(_depth, value.values()), default=0)
        case float():
            assert math.isfinite(value)
    return 0


# Over a socket

router = make_router("", "test", RouteKind.PAGE)


@router.api_route("/", methods=["POST", "PUT", "GET", "DELETE"])
async def echo(value: Annotated[Any, Body()] = None) -> Response:
    return Response(orjson.dumps(value), headers={"X-App": "reached"})


def render(_: Scope, error: RaisedInstead) -> Response:
    assert isinstance(error, ServiceError)
    return JSONResponse({"code": error.code, "message": error.message}, STATUS[type(error)])


async def lifespan(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """There is nothing to start."""


APP = Resolver(
    Dispatcher(lifespan=lifespan, on_error=render, closing=lambda: False, is_malformed=is_malformed),
    routes=router.routes,
    operations_port=None,
    is_malformed=is_malformed,
)


@pytest.fixture(scope="module")
async def address() -> AsyncIterator[tuple[str, int]]:
    server = uvicorn.Server(uvicorn.Config(APP, http=HttpProtocol, lifespan="off", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        yield listener.getsockname()
        server.should_exit = True
        await serving


@pytest.fixture
async def client(address: tuple[str, int]) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url="http://{}:{}".format(*address), trust_env=False, verify=NO_TLS) as client:
        yield client


JSON = {"Content-Type": "application/json"}
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "GET", "DELETE"])
async def test_what_a_good_body_says_reaches_the_handler(client: httpx.AsyncClient, method: str) -> None:
    answer = await client.request(method, "/", content=b' {"a": 1.5} ', headers=JSON)
    assert answer.status_code == 200
    assert answer.content == b'{"a":1.5}'


async def _chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_a_chunked_body_of_unknown_length_is_put_together(client: httpx.AsyncClient) -> None:
    answer = await client.post("/", content=_chunks(b'{"a"', b": ", b"1}"), headers=JSON)
    assert answer.content == b'{"a":1}'


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}])
@pytest.mark.parametrize("content", [None, b"", _chunks], ids=["none", "empty", "chunked"])
async def test_an_empty_body_needs_no_declaration(
    client: httpx.AsyncClient, content: bytes | Callable[[], AsyncIterator[bytes]] | None, headers: dict[str, str]
) -> None:
    answer = await client.post("/", content=content() if callable(content) else content, headers=headers)
    assert answer.headers["X-App"] == "reached"
    assert answer.content == b"null"


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json; profile=x",
    ],
)
async def test_json_may_be_declared_in_these_ways(client: httpx.AsyncClient, content_type: str) -> None:
    answer = await client.post(
        "/", content=b"{}", headers={"Content-Type": content_type, "Content-Encoding": "identity"}
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Content-Type", "")],
        [("Content-Type", "text/plain")],
        [("Content-Type", "text/plain; application/json")],
        [("Content-Type", "application/json-patch+json")],
        [("Content-Type", "application/x-www-form-urlencoded")],
        [("Content-Type", "application/json; charset=latin-1")],
        [("Content-Type", "application/json; charset=utf-8; charset=utf-16")],
        [("Content-Type", "application/json"), ("Content-Type", "text/plain")],
        [("Content-Type", "application/json"), ("Content-Encoding", "gzip")],
        [("Content-Type", "application/json"), ("Content-Encoding", "identity"), ("Content-Encoding", "br")],
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_any_other_declaration_is_refused(
    client: httpx.AsyncClient, method: str, headers: list[tuple[str, str]]
) -> None:
    answer = await client.request(method, "/", content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert answer.json()["code"] == "unsupported_media_type"
    assert answer.headers.get("Connection") != "close"


async def test_bad_json_is_refused_without_an_echo(client: httpx.AsyncClient) -> None:
    answer = await client.post("/", content=f'{{"password": "{CANARY}}}'.encode(), headers=JSON)
    assert answer.status_code == 400
    assert answer.json() == {"code": "malformed_request", "message": MESSAGES["json"]}


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_as_long_as_the_cap_passes(client: httpx.AsyncClient, *, chunked: bool) -> None:
    body = b'"' + b"x" * 65_534 + b'"'
    answer = await client.post("/", content=_chunks(body) if chunked else body, headers=JSON)
    assert answer.content == body


async def test_one_byte_over_the_cap_is_refused_and_closes(address: tuple[str, int]) -> None:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(CHUNKED + b"10001\r\n" + b"x" * 65_537)  # and no more: what is left unread may reset the connection
    answer = await reader.read()  # ends because the connection is closed
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close\r\n" in answer.lower()
    assert b"body_too_large" in answer
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("length", ["65537", "200000000", "999999999999999999"])
async def test_a_length_over_the_cap_is_refused_before_anything_is_sent(address: tuple[str, int], length: str) -> None:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n".encode())
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 413 ")  # and no "100 Continue" before it
    writer.close()
    await writer.wait_closed()


async def test_an_endless_body_is_cut_off(address: tuple[str, int]) -> None:
    _, writer = await asyncio.open_connection(*address)
    writer.write(CHUNKED)
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    sent = 0
    with suppress(ConnectionError):
        while sent < 200_000_000:
            writer.write(chunk)
            await writer.drain()
            sent += len(chunk)
    assert sent < 20_000_000  # what the kernel's buffers took
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_body_shorter_than_its_length_reaches_nobody(address: tuple[str, int]) -> None:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{}")
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


# Message by message


class Wire:
    """A client that sends the given messages, and nothing more than it is asked for."""

    def __init__(self, *messages: Message) -> None:
        self.unread = list(messages)

    async def receive(self) -> Message:
        return self.unread.pop(0)


def part(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def http_scope(**headers: str) -> Scope:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": "/", "headers": lines, "state": {"head": dict(lines)}}


async def test_a_length_that_lies_is_found_out_as_soon_as_the_cap_is_passed() -> None:
    wire = Wire(part(b"x" * 8, more=True), part(b"x", more=True), part(b"x" * 100, more=True))
    with pytest.raises(BodyTooLarge):
        await read_body(http_scope(content_length="2"), wire.receive, max_bytes=8)
    assert len(wire.unread) == 1


@pytest.mark.parametrize("length", ["9", "9" * 19, "9" * 5000])
async def test_a_length_over_the_cap_reads_nothing(length: str) -> None:
    wire = Wire(part(b"x" * 9, more=False))
    with pytest.raises(BodyTooLarge):
        await read_body(http_scope(content_length=length), wire.receive, max_bytes=8)
    assert len(wire.unread) == 1


async def test_a_client_that_leaves_while_sending_ends_the_request() -> None:
    wire = Wire(part(b"{", more=True), {"type": "http.disconnect"})
    with pytest.raises(ClientDisconnect):
        await read_body(http_scope(), wire.receive)


async def test_a_body_that_does_not_come_in_time_is_waited_for_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.body._BODY_SECONDS", 0.01)

    async def never() -> Message:
        waiting: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        return await waiting

    with pytest.raises(MalformedRequest, match="did not arrive in time"):
        await read_body(http_scope(), never)


async def test_a_disconnect_after_the_body_is_left_to_the_handler() -> None:
    wire = Wire(part(b"{", more=True), part(b"}", more=False), {"type": "http.disconnect"})
    assert await read_body(http_scope(), wire.receive) == b"{}"
    assert wire.unread == [{"type": "http.disconnect"}]


@pytest.mark.parametrize(
    ("headers", "announced"),
    [
        ({}, False),
        ({"content_length": "0"}, False),
        ({"content_length": "1"}, True),
        ({"content_length": "00"}, True),
        ({"transfer_encoding": "chunked"}, True),
    ],
)
def test_a_request_has_a_body_if_it_announces_one(headers: dict[str, str], *, announced: bool) -> None:
    assert announces_body(http_scope(**headers)) is announced
