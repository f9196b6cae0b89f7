"""Header lines by their grammar, and one host (RFC 9112, sections 3.2 and 5)."""

from collections.abc import Callable
from typing import Final

import pytest

from tests.framing.served import Canary, Service, assert_in_step, assert_malformed
from tests.framing.wire import HOST, head, ids, named
from tests.processes import resident

LIVEZ: Final = b"GET /livez HTTP/1.1"
KIB: Final = 1024
MIB: Final = 1024 * KIB


AROUND: Final = b"GET /livez HTTP/1.1\r\nHost: bff.example\r\n%bX-Request-Id: first\r\n\r\n"


def raw(lines: bytes) -> bytes:
    """A good request with these bytes among its header lines."""
    return AROUND % lines


BROKEN: Final = {
    "folded": b"X-A: b\r\n c\r\n",
    "folded with a tab": b"X-A: b\r\n\tc\r\n",
    "folded and empty": b"X-A: b\r\n \r\n",
    "folded without a value": b"X-A:\r\n b\r\n",
    "blank before the colon": b"X-A : b\r\n",
    "tab before the colon": b"X-A\t: b\r\n",
    "no colon": b"X-A\r\n",
    "no name": b": b\r\n",
    "bare CR in a value": b"X-A: b\rX-B: c\r\n",
    "bare CR before CRLF": b"X-A: b\r\r\n",
    "bare LF in a value": b"X-A: b\nX-B: c\r\n",
    "bare LF after a value": b"X-A: b\n",
    "bare LF for an empty line": b"X-A: b\r\n\n",
    "bare CR for an empty line": b"X-A: b\r\n\r\r\n",
    "bare CR in a name": b"X\r-A: b\r\n",
    "high byte in a name": b"X-\xe9: b\r\n",
    **{f"{mark:#04x} in a value": b"X-A: b%cc\r\n" % mark for mark in [*range(9), *range(11, 32), 127] if mark != 13},
    **{f"{mark:#04x} in a name": b"X%cA: b\r\n" % mark for mark in [*range(10), *range(11, 33), 127] if mark != 13},
    **{f"{mark} in a name": b"X%bA: b\r\n" % mark.encode() for mark in '"(),/;<=>?@[\\]{}'},
}


@pytest.mark.parametrize("lines", BROKEN.values(), ids=BROKEN)
def test_a_line_against_the_grammar_is_refused(service: Service, canary: Canary, lines: bytes) -> None:
    request = raw(lines)
    at = request.index(lines) + len(lines) // 2
    for segments in ([request + canary.request], [request[:at], request[at:] + canary.request]):
        assert_malformed(service.exchange(*segments))
    canary.assert_unharmed()


@pytest.mark.parametrize("first", [b" X-A: b\r\n", b"\tX-A: b\r\n", b" \r\n", b"\n"])
def test_a_blank_before_the_first_header_is_refused(service: Service, canary: Canary, first: bytes) -> None:
    request = raw(b"").replace(b"\r\n", b"\r\n" + first, 1)
    assert_malformed(service.exchange(request + canary.request))
    canary.assert_unharmed()


def test_a_request_line_that_ends_in_a_bare_lf_is_refused(service: Service) -> None:
    for end in (b"\n", b"\r", b"\r\r\n"):
        assert_malformed(service.exchange(raw(b"").replace(b"\r\n", end, 1)))


@pytest.mark.parametrize("value", [b"", b" ", b"\t", b"\xe9", b"\xc3\xa9\xff", b"a\tb", b"a: b", b'"', b"x" * 20_000])
def test_other_values_are_taken(service: Service, value: bytes) -> None:
    answers = service.exchange(raw(b"X-A:" + value + b"\r\n"))
    assert ids(answers) == ["first", "last"]
    assert answers[0].status == 200


@pytest.mark.parametrize("marks", [b"\r\n", b"\r\n\r\n\r\n", b"\n"])
def test_empty_lines_before_a_request_are_ignored(service: Service, marks: bytes) -> None:
    answers = service.exchange(marks + raw(b""))
    assert ids(answers) == ["first", "last"]
    answers = service.exchange(raw(b"") + b"\r\n", b"\r\n" + raw(b""))
    assert ids(answers) == ["first", "first", "last"]


# Host


def asking(*lines: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    return head(b"GET /livez " + version, *lines, named("first"))


def test_a_request_without_a_host_is_refused(service: Service, canary: Canary) -> None:
    assert_malformed(service.exchange(asking() + canary.request))
    assert_malformed(service.exchange(head(b"GET http://bff.example/livez HTTP/1.1") + canary.request))
    canary.assert_unharmed()


@pytest.mark.parametrize("second", [HOST, b"Host: other.example", b"host: bff.example", b"Host:"])
def test_a_request_with_two_hosts_is_refused(service: Service, canary: Canary, second: bytes) -> None:
    assert_malformed(service.exchange(asking(HOST, second) + canary.request))
    assert_malformed(service.exchange(asking(second, b"X-A: b", HOST) + canary.request))
    canary.assert_unharmed()


@pytest.mark.parametrize(
    "value",
    [
        *(b"a b", b"a, b", b"user@bff.example", b"bff.example/", b"bff.example/path", b"/", b"bff.example?", b"a#b"),
        *(
            b"http://bff.example",
            b"bff.example:80:80",
            b"bff.example:http",
            b"bff.example:-1",
            b"[::1",
            b"::1",
            b"a\\b",
        ),
        *(b"bff\xe9.example", b'"bff.example"', b"<bff>", b"bff.example:80, other.example", b"a\tb", b"[::1]x"),
    ],
)
def test_a_host_that_is_none_is_refused(service: Service, canary: Canary, value: bytes) -> None:
    assert_malformed(service.exchange(asking(b"Host: " + value) + canary.request))
    canary.assert_unharmed()


@pytest.mark.parametrize(
    "value",
    [
        *(b"bff.example", b"bff.example:8000", b"BFF.example", b"127.0.0.1", b"127.0.0.1:80", b"[::1]", b"[::1]:8000"),
        *(b"localhost", b"bff_internal", b"xn--bcher-kva.example", b"bff.example.", b"a", b"\tbff.example "),
    ],
)
def test_any_other_host_is_taken(service: Service, value: bytes) -> None:
    answers = service.exchange(asking(b"Host:" + value))
    assert ids(answers) == ["first", "last"]
    assert answers[0].status == 200


def test_http_1_0_needs_no_host(service: Service) -> None:
    answers = service.exchange(asking(version=b"HTTP/1.0"))
    assert ids(answers) == ["first"]
    assert answers[0].status == 200
    assert answers[0].closes


def test_a_second_host_of_http_1_0_is_refused(service: Service) -> None:
    assert_malformed(service.exchange(asking(HOST, HOST, version=b"HTTP/1.0")))


# Size


HUGE: Final[dict[str, Callable[[int], bytes]]] = {
    "a value": lambda size: b"X-A: " + b"x" * size + b"\r\n",
    "a name": lambda size: b"x" * size + b": b\r\n",
    "many lines": lambda size: b"X-A: b\r\n" * (size // 8),
    "many small lines": lambda size: b"a:\r\n" * (size // 4),
}


@pytest.mark.parametrize("part", HUGE)
@pytest.mark.parametrize("size", [72 * KIB, 2 * KIB * KIB])
def test_a_huge_head_is_refused(service: Service, canary: Canary, part: str, size: int) -> None:
    request = raw(HUGE[part](size))
    for segments in ([request + canary.request], [request[:-2], request[-2:] + canary.request]):
        assert_malformed(service.exchange(*segments))
    canary.assert_unharmed()


@pytest.mark.parametrize("size", [72 * KIB, 2 * KIB * KIB])
def test_a_huge_target_is_refused(service: Service, size: int) -> None:
    request = raw(b"").replace(b"/livez", b"/" + b"x" * size)
    assert_malformed(service.exchange(request))
    assert_malformed(service.exchange(request[:KIB], request[KIB:]))


def test_a_head_that_never_ends_is_refused(service: Service) -> None:
    """The connection may end without an answer: the client is still sending."""
    for begin, part in ((b"G" * KIB, b"G" * KIB), (LIVEZ + b"\r\n", b"X-A: b\r\n"), (b"", b"\r\n")):
        with service.connect() as line:
            line.offer(begin + part * (2 * KIB * KIB // len(part)), service.settle)
            if answers := line.rest():
                assert_malformed(answers)


def test_a_head_of_usual_size_is_taken(service: Service) -> None:
    for part in HUGE.values():
        answers = service.exchange(raw(part(16 * KIB - 200)))
        assert_in_step(answers, "first")
        assert answers[0].status in {200, 400}
    answers = service.exchange(raw(HUGE["a value"](24 * KIB)))
    assert ids(answers) == ["first", "last"]


def test_lines_that_nobody_reads_take_no_memory(service: Service) -> None:
    """One segment may hold tens of thousands of lines, and each would be a few objects."""
    request = raw(b"a:\r\n" * 60_000)
    service.exchange(request)
    before = resident(service.process)
    with service.connections(20) as lines:
        for line in lines:
            line.send(request)
        service.settle()
        assert resident(service.process) - before < 20 * MIB


@pytest.mark.parametrize("host", [b"a" * 513, b"a" * 60_000, b"a." * 400])
def test_a_host_that_no_name_has_room_for_is_refused(service: Service, host: bytes) -> None:
    assert_malformed(service.exchange(head(b"GET /livez HTTP/1.1", b"Host: " + host)))


@pytest.mark.parametrize("query", [b"a&" * 31_000, b"a=b&" * 32, b"clientId=" + b"x" * 2048, b"%41" * 1000])
def test_a_query_is_not_read_if_it_is_long(service: Service, query: bytes) -> None:
    """It would be read before the caller is known."""
    [answer] = service.exchange(head(b"GET /v1/providers?%s HTTP/1.1" % query, HOST, named("first")))
    assert (answer.status, answer.json["code"]) == (400, "malformed_request")


def test_a_query_may_have_some_parameters(service: Service) -> None:
    (answer, _) = service.exchange(head(b"GET /livez?%s HTTP/1.1" % (b"a=b&" * 31), HOST, named("first")))
    assert answer.status == 200


def test_of_the_media_types_that_are_accepted_the_first_ones_count(service: Service) -> None:
    for others, status in ((1, 401), (63, 401), (64, 406), (8000, 406)):
        accept = b"Accept: " + b"a/b;q=0," * others + b"*/*"
        (answer, _) = service.exchange(head(b"GET /v1/sessions/ses_0 HTTP/1.1", HOST, named("first"), accept))
        assert answer.status == status
