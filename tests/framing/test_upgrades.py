"""An offer to speak another protocol is ignored, and the body is read (RFC 9110, section 7.8)."""

from typing import Final

import pytest

from tests.framing.served import Canary, Service, assert_in_step
from tests.framing.wire import HOST, JSON, KEY, Answer, Connection, chunked, head, ids, named, sized

OFFERS: Final = {
    "foo": (b"Connection: upgrade", b"Upgrade: foo"),
    # As Java's HttpClient sends it on its first call.
    "h2c": (
        b"Connection: Upgrade, HTTP2-Settings",
        b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
        b"Upgrade: h2c",
    ),
    "websocket": (
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"Sec-WebSocket-Version: 13",
    ),
}
SPELLINGS: Final = {
    **OFFERS,
    "list": (b"Connection: keep-alive, Upgrade", b"Upgrade: foo/1, bar"),
    "lines": (b"Connection: keep-alive", b"Connection: upgrade", b"Upgrade: foo", b"Upgrade: websocket"),
    "other lines": (b"Upgrade: websocket", b"Connection: upgrade", b"Connection: keep-alive", b"Upgrade: foo"),
    "case": (b"CONNECTION: uPGRADE", b"uPGRADE: WebSocket"),
    "blanks": (b"Connection:\tupgrade ,", b"Upgrade:   foo  "),
    "no protocol": (b"Connection: upgrade", b"Upgrade:"),
    "no connection": (b"Upgrade: foo",),
    "no upgrade": (b"Connection: upgrade",),
}
CODINGS: Final = {"length": sized, "chunked": chunked}
PERSON: Final = b'{"subject": "person-7"}'

each_offer = pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
each_spelling = pytest.mark.parametrize("offer", SPELLINGS.values(), ids=SPELLINGS)
each_coding = pytest.mark.parametrize("coding", CODINGS)


def parts(offer: tuple[bytes, ...], coding: str, body: bytes, *, name: str = "offer", key: bool = True) -> list[bytes]:
    """A request's head and its body as it is sent."""
    line, encoded = CODINGS[coding](body)
    credential = (KEY,) if key else ()
    return [head(b"POST /v1/sessions HTTP/1.1", HOST, *credential, JSON, named(name), *offer, line), encoded]


def subjects(answers: list[Answer]) -> list[str | None]:
    assert {answer.status for answer in answers[:-1]} <= {201}, answers
    return [answer.json["session"]["subject"] for answer in answers[:-1]]


@each_coding
@each_spelling
@pytest.mark.parametrize("together", [True, False], ids=["one segment", "head and body"])
def test_the_body_of_an_offer_is_read(
    service: Service, offer: tuple[bytes, ...], coding: str, *, together: bool
) -> None:
    request = parts(offer, coding, PERSON)
    answers = service.exchange(b"".join(request)) if together else service.exchange(*request)
    assert ids(answers) == ["offer", "last"]
    assert subjects(answers) == ["person-7"]


@each_coding
@each_offer
def test_the_body_of_an_offer_is_read_byte_by_byte(service: Service, offer: tuple[bytes, ...], coding: str) -> None:
    request = b"".join(parts(offer, coding, PERSON))
    answers = service.exchange(*(request[at : at + 1] for at in range(len(request))))
    assert ids(answers) == ["offer", "last"]
    assert subjects(answers) == ["person-7"]


@each_coding
@each_offer
def test_the_body_of_an_offer_never_runs_wherever_it_is_split(
    service: Service, canary: Canary, offer: tuple[bytes, ...], coding: str
) -> None:
    request = b"".join(parts(offer, coding, canary.request, key=False))
    splits = [(request[:at], request[at:]) for at in range(1, len(request) + 1)]
    for answers in service.exchange_each(splits):
        assert ids(answers) == ["offer", "last"]
        assert answers[0].status == 400, "without its body the request lacks a credential"
    canary.assert_unharmed()


@each_coding
@each_spelling
def test_the_body_of_an_offer_never_runs(
    service: Service, canary: Canary, offer: tuple[bytes, ...], coding: str
) -> None:
    request = parts(offer, coding, canary.request)
    for segments in ([b"".join(request)], request, [request[0] + request[1][:1], request[1][1:]]):
        answers = service.exchange(*segments)
        assert ids(answers) == ["offer", "last"]
        assert answers[0].status == 400
    canary.assert_unharmed()


@each_coding
@each_spelling
def test_an_offer_of_http_1_0_is_answered_and_the_connection_ends(
    service: Service, canary: Canary, offer: tuple[bytes, ...], coding: str
) -> None:
    request = b"".join(parts(offer, coding, canary.request)).replace(b" HTTP/1.1", b" HTTP/1.0", 1)
    answers = service.exchange(request)
    assert len(answers) == 1
    assert_in_step(answers, "offer")
    canary.assert_unharmed()


@each_spelling
@pytest.mark.parametrize("segments", [1, 2])
def test_a_request_after_an_offer_without_a_body_is_answered(
    service: Service, offer: tuple[bytes, ...], segments: int
) -> None:
    first = head(b"GET /livez HTTP/1.1", HOST, named("offer"), *offer)
    second = head(b"GET /livez HTTP/1.1", HOST, named("after"))
    answers = service.exchange(first + second) if segments == 1 else service.exchange(first, second)
    assert ids(answers) == ["offer", "after", "last"]
    assert [answer.status for answer in answers] == [200, 200, 200]


@each_coding
@each_offer
def test_an_offer_between_other_requests_keeps_them_in_step(
    service: Service, canary: Canary, offer: tuple[bytes, ...], coding: str
) -> None:
    before = head(b"GET /livez HTTP/1.1", HOST, named("before"))
    hidden = parts(offer, coding, canary.request, name="hidden")
    read = parts(offer, coding, PERSON, name="read")
    after = parts((), coding, b'{"subject": "person-8"}', name="after")
    answers = service.exchange(b"".join([before, *hidden, *read, *after]))
    assert ids(answers) == ["before", "hidden", "read", "after", "last"]
    assert subjects(answers[2:]) == ["person-7", "person-8"]
    canary.assert_unharmed()


@each_coding
@each_offer
def test_two_offers_in_a_row_are_both_read(service: Service, offer: tuple[bytes, ...], coding: str) -> None:
    first = parts(offer, coding, PERSON, name="first")
    second = parts(offer, coding, b'{"subject": "person-8"}', name="second")
    for segments in ([b"".join([*first, *second])], [*first, *second], [first[0], first[1] + second[0], second[1]]):
        answers = service.exchange(*segments)
        assert ids(answers) == ["first", "second", "last"]
        assert subjects(answers) == ["person-7", "person-8"]


def open_stream(service: Service, line: Connection) -> Canary:
    """Start the events of a new session on this connection; closing the session ends them."""
    opening = head(b"POST /v1/sessions HTTP/1.1", HOST, KEY, b"Content-Length: 0")
    session = service.exchange(opening)[0].json["session"]
    bearer = b"Authorization: Bearer " + session["token"].encode()
    line.send(head(b"GET /v1/sessions/%s/events HTTP/1.1" % session["id"].encode(), HOST, bearer, named("stream")))
    line.wait_for(b"session.created")
    return Canary(service, session["id"])


@each_coding
@each_offer
def test_an_offer_waits_for_the_answer_before_it(
    service: Service, canary: Canary, offer: tuple[bytes, ...], coding: str
) -> None:
    with service.connect() as line:
        streamed = open_stream(service, line)
        for segment in parts(offer, coding, canary.request):
            line.send(segment)
            service.settle()
        service.exchange(streamed.request)  # ends the stream
        line.send(head(b"GET /livez HTTP/1.1", HOST, b"Connection: close", named("last")))
        answers = line.rest()
    assert_in_step(answers, "stream", "offer")
    assert answers[0].body.count(b"event: session.closed") == 1
    canary.assert_unharmed()


@each_coding
@pytest.mark.parametrize("target", [b"other.example:80", b"/v1/sessions", b"http://other.example/v1/sessions", b"*"])
@pytest.mark.parametrize("offer", [(), OFFERS["foo"]], ids=["connect", "offering"])
def test_the_body_of_connect_never_runs(
    service: Service, canary: Canary, target: bytes, coding: str, offer: tuple[bytes, ...]
) -> None:
    first, body = parts(offer, coding, canary.request)
    first = first.replace(b"POST /v1/sessions ", b"CONNECT " + target + b" ", 1)
    for segments in ([first + body], [first, body], [first + body[:1], body[1:]]):
        answers = service.exchange(*segments)
        assert_in_step(answers, "offer")
        assert answers[0].status in {400, 404, 405}
    canary.assert_unharmed()


@pytest.mark.parametrize("target", [b"other.example:80", b"/livez"])
def test_connect_opens_no_tunnel(service: Service, target: bytes) -> None:
    request = head(b"CONNECT " + target + b" HTTP/1.1", HOST, named("connect"))
    after = head(b"GET /livez HTTP/1.1", HOST, named("after"))
    for segments in ([request + after], [request, after]):
        answers = service.exchange(*segments)
        assert_in_step(answers, "connect", "after")
        assert answers[0].status in {400, 404, 405}
