"""Chunks are read by their grammar alone, and trailers are dropped (RFC 9112, section 7.1; RFC 9110, section 6.5.1)."""

from typing import Final

import pytest

from tests.framing.served import Canary, Service, assert_in_step, assert_malformed
from tests.framing.wire import HOST, JSON, KEY, chunked, head, ids, named
from tests.processes import resident

BODY: Final = b'{"ttlSeconds": 5}'
CHUNKED: Final = b"Transfer-Encoding: chunked"
MIB: Final = 2**20


def post(*lines: bytes) -> bytes:
    return head(b"POST /v1/sessions HTTP/1.1", HOST, JSON, named("first"), *lines, CHUNKED)


def with_trailers(body: bytes, *trailers: bytes) -> bytes:
    return chunked(body)[1].removesuffix(b"\r\n") + head(*trailers)


@pytest.mark.parametrize(
    "encoded",
    [
        b"11\r\n%s\r\n0\r\n\r\n",
        b"0011\r\n%s\r\n000\r\n\r\n",
        b"11;name=value\r\n%s\r\n0\r\n\r\n",
        b'11;name="quoted; value"\r\n%s\r\n0;last\r\n\r\n',
    ],
    ids=["plain", "zeros", "extension", "quoted extension"],
)
def test_chunks_of_the_grammar_are_read(service: Service, encoded: bytes) -> None:
    encoded = encoded % BODY
    for segments in ([post() + encoded], [post(), encoded], [post(), *(bytes([each]) for each in encoded)]):
        answers = service.exchange(*segments)
        assert ids(answers) == ["first", "last"]
        assert [each["field"] for each in answers[0].json["errors"]] == ["ttlSeconds"]


@pytest.mark.parametrize(
    "size",
    [
        *(b"-%x", b"+%x", b"0x%x", b" %x", b"%x ", b"%x\t", b"1000000000000000%x", b"f" * 16 + b"%x", b"%xg", b"%x,"),
        *(b"", b"\t%x", b"%x\x0b", b"%x\x00", b"%x;a\nb", b"%x;a\x00", b"%x;\rb", b"_%x", b"%x_0"),
    ],
)
def test_a_size_that_is_no_number_is_refused(service: Service, canary: Canary, size: bytes) -> None:
    line = size % len(canary.request) if b"%x" in size else size
    encoded = line + b"\r\n" + canary.request + b"\r\n0\r\n\r\n"
    for segments in ([post() + encoded], [post(), encoded], [post() + line, encoded[len(line) :]]):
        assert_malformed(service.exchange(*segments))
    canary.assert_unharmed()


@pytest.mark.parametrize(
    "encoded",
    [
        b"%(size)x\n%(body)s\r\n0\r\n\r\n",
        b"%(size)x\r%(body)s\r\n0\r\n\r\n",
        b"%(size)x\r\n%(body)s0\r\n\r\n",
        b"%(size)x\r\n%(body)s\n0\r\n\r\n",
        b"%(size)x\r\n%(body)s\r0\r\n\r\n",
        b"%(size)x\r\n%(body)s\r\n0\n\r\n",
        b"%(size)x\r\n%(body)s\r\n0\r\n\n",
        b"%(size)x\r\n%(body)sx\r\n0\r\n\r\n",
        b"3\r\nabcd\r\n%(size)x\r\n%(body)s\r\n0\r\n\r\n",
        b"0\r\nx%(body)s",
    ],
)
def test_a_chunk_that_does_not_end_where_it_says_is_refused(service: Service, canary: Canary, encoded: bytes) -> None:
    encoded %= {b"size": len(canary.request), b"body": canary.request}
    for segments in ([post() + encoded], [post(), encoded], [post(), *(bytes([each]) for each in encoded)]):
        assert_malformed(service.exchange(*segments))
    canary.assert_unharmed()


@pytest.mark.parametrize(
    "trailer",
    [
        *(b"X-Request-Id: canary", b"Host: other.example", b"Content-Type: text/plain", b"Expect: 100-continue"),
        *(b"Connection: close", b"Connection: upgrade\r\nUpgrade: foo", b"Content-Length: 3", b"Accept: text/html"),
        *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", b"Content-Encoding: gzip", b"Trailer: a"),
    ],
)
def test_a_trailer_is_no_header(service: Service, trailer: bytes) -> None:
    """Those that would change where a body ends may be refused instead."""
    encoded = with_trailers(BODY, *trailer.split(b"\r\n"))
    for segments in ([post() + encoded], [post(), encoded], [post() + encoded[:30], encoded[30:]]):
        answers = service.exchange(*segments)
        assert_in_step(answers, "first")
        if trailer.startswith((b"Content-Length", b"Transfer-Encoding")) and answers[0].status == 400:
            assert_malformed(answers)
        else:
            assert answers[0].json["code"] == "invalid_request"
            assert [each["field"] for each in answers[0].json["errors"]] == ["ttlSeconds"]
        assert not answers[0].interim


def test_a_request_after_trailers_is_in_step(service: Service, canary: Canary) -> None:
    after = head(b"GET /livez HTTP/1.1", HOST, named("after"))
    for trailer in (b"X-A: b", b"Connection: close", b"Connection: upgrade", b"Upgrade: foo"):
        encoded = with_trailers(canary.request, trailer)
        for segments in ([post() + encoded + after], [post(), encoded, after]):
            assert_in_step(service.exchange(*segments), "first", "after")
    canary.assert_unharmed()


def test_a_credential_in_a_trailer_is_none(service: Service) -> None:
    encoded = with_trailers(b"{}", KEY)
    request = post(b"X-Forwarded-For: 198.51.100.1")
    for segments in ([request + encoded], [request, encoded]):
        answers = service.exchange(*segments)
        assert_in_step(answers, "first")
        assert answers[0].status == 401


def test_an_address_in_a_trailer_is_not_counted(service: Service) -> None:
    wrong = (b"X-Forwarded-For: 198.51.100.2", b"Authorization: Bearer wrong")
    statuses = []
    for number in range(22):
        encoded = with_trailers(b"{}", b"X-Forwarded-For: 203.0.113.%d" % number)
        answers = service.exchange(post(*wrong) + encoded)
        assert_in_step(answers, "first")
        statuses.append(answers[0].status)
    assert statuses == [*[401] * 20, 429, 429], "each bad credential counts for the address that the head names"


@pytest.mark.parametrize(
    "trailer",
    [b"X-A : b", b"no colon", b" X-A: b", b"X-A: b\r\n folded", b"X-A: \x00", b"X-A: a\rb", b"X-A: a\nX-B: b"],
)
def test_a_trailer_against_the_grammar_is_refused(service: Service, canary: Canary, trailer: bytes) -> None:
    encoded = with_trailers(canary.request, *trailer.split(b"\r\n")) + canary.request
    for segments in ([post() + encoded], [post(), encoded]):
        assert_malformed(service.exchange(*segments))
    canary.assert_unharmed()


ENDLESS: Final = {
    "a long trailer": (b"0\r\nX-A: ", b"x" * 1024, b"\r\n\r\n"),
    "many trailers": (b"0\r\n", b"X-A: bbbbbbb\r\n", b"\r\n"),
    "a long name": (b"0\r\n", b"x" * 1024, b": a\r\n\r\n"),
    "a long extension": (b"1;", b"x" * 1024, b"\r\n1\r\n0\r\n\r\n"),
    "many extensions": (b"1", b";name=value", b"\r\n1\r\n0\r\n\r\n"),
    "zeros": (b"", b"0" * 1024, b"1\r\n1\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize(("begin", "part", "end"), ENDLESS.values(), ids=ENDLESS)
def test_what_stands_beside_the_body_is_bounded(service: Service, begin: bytes, part: bytes, end: bytes) -> None:
    """The connection may end without an answer: the client is still sending."""
    answers = service.exchange(post() + begin + part * (2 * MIB // len(part)) + end)
    assert len(answers) <= 1
    assert all(answer.closes and answer.status >= 400 for answer in answers)


def test_endless_trailers_take_no_memory(service: Service) -> None:
    before = resident(service.process)
    with service.connections(16) as lines:
        for line in lines:
            line.send(post() + b"0\r\n" + b"X-A: bbbbbbb\r\n" * (2 * MIB // 14))
        service.settle()
        assert resident(service.process) - before < 8 * MIB


def test_many_small_chunks_are_one_body(service: Service) -> None:
    encoded = b"".join(b"1\r\n%c\r\n" % each for each in BODY + b" " * 20_000) + b"0\r\n\r\n"
    answers = service.exchange(post() + encoded)
    assert ids(answers) == ["first", "last"]
    assert [each["field"] for each in answers[0].json["errors"]] == ["ttlSeconds"]
