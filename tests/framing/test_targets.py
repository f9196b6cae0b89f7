"""The request line: its method, target and version (RFC 9112, section 3)."""

from typing import Final

import pytest

from tests.framing.served import Canary, Service, assert_in_step, assert_malformed
from tests.framing.wire import HOST, JSON, KEY, head, ids, named, sized


def asking(line: bytes, *lines: bytes) -> bytes:
    return head(line, HOST, named("first"), *lines)


@pytest.mark.parametrize(
    "line",
    [
        *(b"get /livez HTTP/1.1", b"Get /livez HTTP/1.1", b"FOO /livez HTTP/1.1", b"G@T /livez HTTP/1.1"),
        *(b"GET\t/livez HTTP/1.1", b"GET /livez\tHTTP/1.1", b"GET /live z HTTP/1.1", b" GET /livez HTTP/1.1"),
        *(b"GET livez HTTP/1.1", b"GET HTTP/1.1", b"GET", b"/livez HTTP/1.1", b"GET /livez HTTP/1.1 x"),
        *(b"GET /livez http/1.1", b"GET /livez HTTP/1", b"GET /livez HTTP/1.1.1", b"GET /livez HTTP/11", b"\x00"),
        *(b"GET /livez HTTP/0.9", b"GET /livez HTTP/1.2", b"GET /livez HTTP/2.0", b"GET /livez HTTP/3.0"),
        *(b"GET /livez XTTP/1.1", b"GET /livez HTTP /1.1", b"GET /livez HTTP/+1.1", b"GET /livez HTTP/1.10"),
        b"GET /livez ICE/1.0",
        *(b"GET http:///livez HTTP/1.1", b"GET http://[x/livez HTTP/1.1", b"GET http://a:99999999/livez HTTP/1.1"),
        *(b"GET  HTTP/1.1", b"GET ?query HTTP/1.1", b"GET @/livez HTTP/1.1", b"HTTP/1.1 200 OK"),
    ],
)
def test_a_request_line_against_the_grammar_is_refused(service: Service, canary: Canary, line: bytes) -> None:
    request = asking(line)
    for segments in ([request + canary.request], [line, request[len(line) :] + canary.request]):
        assert_malformed(service.exchange(*segments))
    canary.assert_unharmed()


@pytest.mark.parametrize("mark", [*range(9), *range(11, 13), *range(14, 32), *range(127, 256)])
def test_a_byte_that_no_target_has_is_refused(service: Service, mark: int) -> None:
    for target in (b"/livez%c", b"/%clivez", b"/livez?%c"):
        assert_malformed(service.exchange(asking(b"GET " + target % mark + b" HTTP/1.1")))


@pytest.mark.parametrize("request_line", [b"GET /livez\r\n", b"GET /livez\r\n\r\n", b"GET /livez\n\n", b"GET /livez\n"])
def test_http_0_9_is_refused(service: Service, request_line: bytes) -> None:
    assert_malformed(service.exchange(request_line))


@pytest.mark.parametrize(
    "start",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        bytes.fromhex("1603010200010001fc0303") + b"\x5a" * 60,
        b"\x80\x2e\x01\x00\x02",
        b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
        b"PROXY TCP4 198.51.100.1 203.0.113.1 56324 443\r\nGET /livez HTTP/1.1\r\nHost: bff.example\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"EHLO bff.example\r\n",
        b"{}\r\n\r\n",
    ],
    ids=["HTTP/2", "TLS", "SSLv2", "SOCKS", "PROXY", "SSH", "SMTP", "JSON"],
)
def test_another_protocol_is_refused(service: Service, start: bytes) -> None:
    assert_malformed(service.exchange(start))
    assert_malformed(service.exchange(start[:1], start[1:]))


@pytest.mark.parametrize(
    ("line", "statuses"),
    [
        (b"GET http://other.example/livez HTTP/1.1", {200}),
        (b"GET HTTP://other.example:80/livez HTTP/1.1", {200}),
        (b"GET http://other.example/none HTTP/1.1", {404}),
        (b"GET http://user@other.example/livez HTTP/1.1", {200, 400}),
        (b"GET ftp://other.example/livez HTTP/1.1", {200, 400}),
        (b"GET http://other.example HTTP/1.1", {307, 400, 404}),
        (b"GET http://other.example?query HTTP/1.1", {307, 400, 404}),
        (b"OPTIONS * HTTP/1.1", {200, 204, 400, 404, 405}),
        (b"GET * HTTP/1.1", {400, 404}),
        (b"GET /livez#fragment HTTP/1.1", {200, 400}),
        (b"GET /livez?a#b?c HTTP/1.1", {200, 400}),
        (b"GET //livez HTTP/1.1", {400, 404}),
        (b"GET //other.example/livez HTTP/1.1", {400, 404}),
        (b"GET /livez/../livez HTTP/1.1", {400, 404}),
        (b"GET /%6civez HTTP/1.1", {200, 400, 404}),
        (b"GET /livez%00 HTTP/1.1", {400}),
        (b"GET /%zz HTTP/1.1", {400, 404}),
        (b"GET  /livez HTTP/1.1", {200, 400}),
        (b"GET /livez  HTTP/1.1", {200, 400}),
        (b"PROPFIND /livez HTTP/1.1", {400, 405}),
        (b"PRI /livez HTTP/1.1", {400, 405}),
        (b"HEAD /none/ HTTP/1.0", {404, 405}),
    ],
)
def test_an_unusual_target_keeps_the_connection_in_step(
    service: Service, canary: Canary, line: bytes, statuses: set[int]
) -> None:
    if line.startswith(b"HEAD"):
        line = line.replace(b"HEAD", b"GET")  # an answer to HEAD has no body to be read
    length, body = sized(canary.request)
    for answers in (
        service.exchange(asking(line)),
        service.exchange(asking(line, length) + body),
        service.exchange(asking(line, length), body),
    ):
        assert_in_step(answers, "first")
        assert answers[0].status in statuses | {415}
    canary.assert_unharmed()


def test_the_host_of_an_absolute_target_changes_nothing(service: Service, canary: Canary) -> None:
    request = head(b"GET http://other.example%s HTTP/1.1" % canary.path, HOST, KEY, named("first"))
    answers = service.exchange(request)
    assert_in_step(answers, "first")
    assert answers[0].json["session"]["id"] == canary.session


# Control characters

CONTROLS: Final = [*range(32), 127]
ENCODED: Final = [b"%%%02X" % mark for mark in CONTROLS] + [b"%%C2%%%02X" % mark for mark in range(0x80, 0xA0)]
PATHS: Final = (
    *(b"/livez", b"/readyz", b"/metrics", b"/openapi.json", b"/docs", b"/none", b"/v1/providers", b"/v1/sessions"),
    *(b"/v1/sessions/ses_0/events", b"/api/jobs", b"/link/ses_0", b"/sdk/omniconnect.js", b"/demo", b"/logos/a"),
)


def assert_refused(service: Service, requests: list[bytes]) -> None:
    for answers in service.exchange_each([[each] for each in requests]):
        assert_in_step(answers, "first")
        assert answers[0].status == 400, answers
        assert answers[0].json["code"] == "malformed_request"


@pytest.mark.parametrize("path", PATHS)
def test_a_control_character_in_a_path_is_refused_whether_or_not_the_path_is_known(
    service: Service, path: bytes
) -> None:
    ends = [path + mark for mark in (*ENCODED, b"%0a", b"%0A%0A", b"%0D%0A", b"%7f", b"%c2%85", b"?a=b", b"/")]
    refused = [each for each in ends if b"%" in each]
    refused += [path + b"%0A?a=b", path + b"%0A/", b"/%0A" + path[1:], path.replace(b"/", b"/%0A", 1)]
    assert_refused(service, [asking(b"GET %s HTTP/1.1" % each, KEY) for each in refused])


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"])
def test_a_control_character_in_a_path_is_refused_for_every_method(
    service: Service, canary: Canary, method: bytes
) -> None:
    line, body = sized(b"{}")
    preflight = (b"Origin: http://localhost:8000", b"Access-Control-Request-Method: POST")
    targets = [path + mark for path in (canary.path, *PATHS) for mark in (b"%0A", b"%C2%85", b"%00")]
    assert_refused(service, [asking(b"%s %s HTTP/1.1" % (method, each), KEY, *preflight) for each in targets])
    assert_refused(service, [asking(b"%s %s HTTP/1.1" % (method, each), KEY, JSON, line) + body for each in targets])
    canary.assert_unharmed()


def test_a_control_character_elsewhere_is_no_reason(service: Service) -> None:
    requests = [b"GET /livez?search=%0A HTTP/1.1", b"GET /livez%250A HTTP/1.1", b"GET /livez%C2%A0 HTTP/1.1"]
    answers = service.exchange_each([[asking(each)] for each in requests])
    assert [ids(each) for each in answers] == [["first", "last"]] * 3
    assert [each[0].status for each in answers] == [200, 404, 404]
