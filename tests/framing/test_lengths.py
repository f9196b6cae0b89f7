"""Where a body ends: one valid length, or chunks, and nothing that two readers could read differently."""

from typing import Final

import pytest

from tests.framing.served import Canary, Service, assert_in_step, assert_malformed
from tests.framing.wire import HOST, JSON, chunked, head, ids, named, sized

BODY: Final = b'{"ttlSeconds": 5}'
"""17 bytes; the answer to them names the field."""

BAD_LENGTHS: Final = (
    *(b"+17", b"-1", b"-17", b"17, 17", b"17,16", b"0x11", b"", b"1 7", b"17;", b"17.0", b"1e1", b"17\x0b", b"\x0b17"),
    *(
        b"99999999999999999999999",
        b"18446744073709551633",
        b"0" * 20 + b"x",
        b"\xd9\xa1\xd9\xa7",
        b'"17"',
        b"seventeen",
    ),
)
BAD_CODINGS: Final = (
    *(b"identity", b"chunked, identity", b"xchunked", b"chunkedx", b"chunked, chunked", b"chunked;q=1", b"chunked,"),
    *(
        b"",
        b"\x0bchunked",
        b"chunked\x0b",
        b"\x00chunked",
        b"chunked gzip",
        b'"chunked"',
        b"chunked, gzip",
        b"\xa0chunked",
    ),
)


def post(*lines: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    return head(b"POST /v1/sessions " + version, HOST, JSON, named("first"), *lines)


def assert_body_was_read(service: Service, *segments: bytes) -> None:
    answers = service.exchange(*segments)
    assert ids(answers) == ["first", "last"]
    assert [each["field"] for each in answers[0].json["errors"]] == ["ttlSeconds"]


def assert_never_runs(service: Service, canary: Canary, *lines: bytes, encoded: bytes | None = None) -> None:
    """As one segment and as two."""
    request, body = post(*lines), canary.request if encoded is None else encoded
    for segments in ([request + body], [request, body]):
        assert_malformed(service.exchange(*segments))
    canary.assert_unharmed()


@pytest.mark.parametrize("value", [b"17", b" 17 ", b"\t17\t", b"  17  ", b"017"])
def test_a_length_of_digits_alone_is_read(service: Service, value: bytes) -> None:
    request = post(b"Content-Length:" + value)
    assert_body_was_read(service, request + BODY)
    assert_body_was_read(service, request, BODY)


@pytest.mark.parametrize("value", BAD_LENGTHS)
def test_any_other_length_is_refused(service: Service, canary: Canary, value: bytes) -> None:
    assert_never_runs(service, canary, b"Content-Length: " + value)


@pytest.mark.parametrize("value", [b"9" * 18, b"1" + b"0" * 15, b"65537"])
def test_a_length_over_the_limit_ends_the_connection(service: Service, canary: Canary, value: bytes) -> None:
    request = post(b"Content-Length: " + value)
    for segments in ([request + canary.request], [request, canary.request]):
        answers = service.exchange(*segments)
        assert len(answers) == 1
        assert answers[0].closes
        assert answers[0].status in {400, 413}
    canary.assert_unharmed()


def test_a_length_of_many_zeros_is_read_or_refused(service: Service) -> None:
    request = post(b"Content-Length: " + b"0" * 18 + b"17")
    for segments in ([request + BODY], [request, BODY]):
        answers = service.exchange(*segments)
        assert_in_step(answers, "first")
        assert answers[0].status in {400, 413, 422}


@pytest.mark.parametrize("second", [b"17", b"16", b"0", b"017"])
def test_two_lengths_are_refused(service: Service, canary: Canary, second: bytes) -> None:
    assert_never_runs(service, canary, b"Content-Length: 17", b"Content-Length: " + second)
    assert_never_runs(service, canary, b"Content-Length: 17", b"X-Between: a", b"content-length: " + second)


@pytest.mark.parametrize("coding", [b"chunked", b"identity", b"xchunked", b"gzip, chunked"])
def test_a_length_together_with_a_coding_is_refused(service: Service, canary: Canary, coding: bytes) -> None:
    line, encoded = chunked(canary.request)
    line = line.replace(b"chunked", coding)
    for length in (b"Content-Length: 0", b"Content-Length: %d" % len(encoded), b"Content-Length: 3"):
        assert_never_runs(service, canary, length, line, encoded=encoded)
        assert_never_runs(service, canary, line, length, encoded=encoded)
        assert_never_runs(service, canary, line, length, encoded=b"0\r\n\r\n" + canary.request)


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"CHUNKED", b"\tchunked", b"chunked "])
def test_chunks_are_read(service: Service, value: bytes) -> None:
    _, encoded = chunked(BODY)
    request = post(b"Transfer-Encoding:" + value)
    assert_body_was_read(service, request + encoded)
    assert_body_was_read(service, request, encoded)
    assert_body_was_read(service, request, *(bytes([each]) for each in encoded))


@pytest.mark.parametrize("value", BAD_CODINGS)
def test_any_other_coding_is_refused(service: Service, canary: Canary, value: bytes) -> None:
    line = b"Transfer-Encoding: " + value
    assert_never_runs(service, canary, line, encoded=chunked(canary.request)[1])
    assert_never_runs(service, canary, line, encoded=b"0\r\n\r\n" + canary.request)


@pytest.mark.parametrize("second", [b"chunked", b"identity", b"xchunked", b"", b"gzip"])
def test_a_coding_after_chunked_is_refused(service: Service, canary: Canary, second: bytes) -> None:
    lines = (b"Transfer-Encoding: chunked", b"Transfer-Encoding: " + second)
    assert_never_runs(service, canary, *lines, encoded=chunked(canary.request)[1])
    assert_never_runs(service, canary, *lines, encoded=b"0\r\n\r\n" + canary.request)


@pytest.mark.parametrize(
    "lines",
    [
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: ,chunked",),
        (b"Transfer-Encoding: identity, chunked",),
    ],
)
def test_a_coding_before_chunked_is_refused(service: Service, canary: Canary, lines: tuple[bytes, ...]) -> None:
    _, encoded = chunked(canary.request)
    for segments in ([post(*lines) + encoded], [post(*lines), encoded]):
        answers = service.exchange(*segments)
        assert_in_step(answers, "first")
        assert (answers[0].status, answers[0].json["code"]) == (400, "malformed_request")
        assert answers[0].closes
    canary.assert_unharmed()


@pytest.mark.parametrize(
    "name", [b"Transfer-Encoding ", b"Transfer-Encoding\t", b" Transfer-Encoding", b"Transfer Encoding"]
)
def test_a_blank_within_the_name_of_a_header_is_refused(service: Service, canary: Canary, name: bytes) -> None:
    line, encoded = chunked(canary.request)
    assert_never_runs(service, canary, line.replace(b"Transfer-Encoding", name), encoded=encoded)
    length = name.replace(b"Transfer", b"Content").replace(b"Encoding", b"Length")
    assert_never_runs(service, canary, length + b": %d" % len(canary.request))


@pytest.mark.parametrize("lines", [(), (b"Connection: keep-alive",)], ids=["plain", "kept alive"])
def test_chunks_in_http_1_0_end_the_connection(service: Service, canary: Canary, lines: tuple[bytes, ...]) -> None:
    line, encoded = chunked(canary.request)
    request = post(*lines, line, version=b"HTTP/1.0")
    for segments in ([request + encoded], [request, encoded], [request + b"0\r\n\r\n" + canary.request]):
        answers = service.exchange(*segments)
        assert len(answers) == 1
        assert_in_step(answers, "first")
    canary.assert_unharmed()


def test_a_read_with_a_body_has_it_read(service: Service, canary: Canary) -> None:
    for line, body in (sized(canary.request), chunked(canary.request)):
        for method in (b"GET", b"DELETE", b"OPTIONS", b"QUERY", b"PATCH"):
            request = head(method + b" /livez HTTP/1.1", HOST, named("first"), line)
            for segments in ([request + body], [request, body]):
                assert_in_step(service.exchange(*segments), "first")
    canary.assert_unharmed()


def test_more_bytes_than_the_length_says_are_the_next_request(service: Service, canary: Canary) -> None:
    request = post(b"Content-Length: 17") + BODY
    assert_malformed(service.exchange(request + b"xxxx"), "first")
    after = head(b"GET /livez HTTP/1.1", HOST, named("after"))
    assert_in_step(service.exchange(request + after), "first", "after")
    canary.assert_unharmed()
