"""A refusal does not wait for the body, and the rest of that connection is not read (RFC 9112, section 9.6)."""

from typing import Final, NamedTuple

import pytest

from tests.framing.served import Canary, Service, assert_in_step
from tests.framing.wire import HOST, JSON, KEY, chunked, head, ids, named, sized

CODINGS: Final = {"length": sized, "chunked": chunked}
ECHO: Final = b'{"ttlSeconds": 5}'
"""A body whose answer names the field."""


class Early(NamedTuple):
    """A request that is refused by its head alone."""

    line: bytes
    credential: tuple[bytes, ...]
    status: int

    def head(self, *lines: bytes) -> bytes:
        return head(self.line + b" HTTP/1.1", HOST, *self.credential, JSON, named("first"), *lines)


EARLY: Final = {
    "no such path": Early(b"POST /none", (KEY,), 404),
    "no such method": Early(b"PUT /v1/sessions", (KEY,), 405),
    "wrong credential": Early(
        b"POST /v1/sessions", (b"Authorization: Bearer wrong", b"X-Forwarded-For: 198.51.100.3"), 401
    ),
    "no bearer credential": Early(
        b"POST /v1/sessions/ses_0/tokens",
        (b"Authorization: x", b"X-Forwarded-For: 198.51.100.4"),
        401,
    ),
}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("early", EARLY.values(), ids=EARLY)
def test_a_refusal_before_the_body_ends_the_connection(
    service: Service, canary: Canary, early: Early, coding: str
) -> None:
    announced, body = CODINGS[coding](canary.request)
    request = early.head(announced)
    for segments in ([request + body], [request, body], [request, body[:5], body[5:]]):
        answers = service.exchange(*segments)
        assert ids(answers) == ["first"]
        assert answers[0].status == early.status
        assert answers[0].closes
    canary.assert_unharmed()


@pytest.mark.parametrize("coding", CODINGS)
def test_a_refusal_comes_while_the_body_is_still_being_sent(service: Service, canary: Canary, coding: str) -> None:
    announced, body = CODINGS[coding](canary.request)
    with service.connect() as line:
        line.send(head(b"POST /none HTTP/1.1", HOST, KEY, JSON, named("first"), announced) + body[:5])
        answer = line.answer()
        assert answer is not None
        assert (answer.status, answer.closes) == (404, True)
        line.send(body[5:])
        assert line.rest() == []
    canary.assert_unharmed()


@pytest.mark.parametrize("line", [b"GET /none", b"POST /none", b"DELETE /livez", b"POST /livez"])
@pytest.mark.parametrize("length", [(), (b"Content-Length: 0",)], ids=["no body", "empty body"])
def test_a_refusal_of_a_request_without_a_body_keeps_the_connection(
    service: Service, line: bytes, length: tuple[bytes, ...]
) -> None:
    answers = service.exchange(head(line + b" HTTP/1.1", HOST, named("first"), *length))
    assert ids(answers) == ["first", "last"]


@pytest.mark.parametrize("coding", CODINGS)
def test_a_body_that_is_too_large_ends_the_connection(service: Service, canary: Canary, coding: str) -> None:
    announced, body = CODINGS[coding](canary.request * 2000)
    request = head(b"POST /v1/sessions HTTP/1.1", HOST, KEY, JSON, named("first"), announced)
    for segments in ([request + body], [request, body]):
        answers = service.exchange(*segments)
        assert ids(answers) == ["first"]
        assert answers[0].status == 413
        assert answers[0].closes
    canary.assert_unharmed()


@pytest.mark.parametrize("coding", CODINGS)
def test_a_body_that_stops_leaves_nothing_behind(service: Service, canary: Canary, coding: str) -> None:
    announced, body = CODINGS[coding](canary.request)
    for end in (len(body) // 2, len(body) - 1):
        with service.connect() as line:
            line.send(head(b"POST /v1/sessions HTTP/1.1", HOST, KEY, JSON, named("first"), announced) + body[:end])
            service.settle()
            line.end()
            assert [answer.status for answer in line.rest()] in ([], [400])
    canary.assert_unharmed()


# Expect: 100-continue (RFC 9110, section 10.1.1)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("expectation", [b"100-continue", b"100-Continue"])
def test_a_body_is_asked_for_when_it_is_wanted(service: Service, coding: str, expectation: bytes) -> None:
    announced, body = CODINGS[coding](ECHO)
    with service.connect() as line:
        expecting = b"Expect: " + expectation
        line.send(head(b"POST /v1/sessions HTTP/1.1", HOST, JSON, named("first"), expecting, announced))
        line.wait_for(b"HTTP/1.1 100 ")
        line.send(body)
        answer = line.answer()
        assert answer is not None
        assert answer.interim == (100,)
        assert [each["field"] for each in answer.json["errors"]] == ["ttlSeconds"]
        line.send(head(b"GET /livez HTTP/1.1", HOST, b"Connection: close", named("last")))
        assert ids(line.rest()) == ["last"]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("early", EARLY.values(), ids=EARLY)
def test_a_body_is_not_asked_for_when_the_request_is_refused(
    service: Service, canary: Canary, early: Early, coding: str
) -> None:
    announced, body = CODINGS[coding](canary.request)
    request = early.head(b"Expect: 100-continue", announced)
    answers = service.exchange(request, body)
    assert ids(answers) == ["first"]
    assert (answers[0].status, answers[0].closes, answers[0].interim) == (early.status, True, ())
    canary.assert_unharmed()


@pytest.mark.parametrize("coding", CODINGS)
def test_a_body_that_does_not_wait_is_read(service: Service, canary: Canary, coding: str) -> None:
    announced, body = CODINGS[coding](canary.request)
    request = head(b"POST /v1/sessions HTTP/1.1", HOST, KEY, JSON, named("first"), b"Expect: 100-continue", announced)
    after = head(b"GET /livez HTTP/1.1", HOST, named("after"))
    assert_in_step(service.exchange(request + body + after), "first", "after")
    assert_in_step(service.exchange(request, body + after), "first", "after")
    canary.assert_unharmed()


@pytest.mark.parametrize("expectation", [b"200-ok", b"100-continue, 200-ok", b"", b"100", b"100-continue;q=1"])
def test_an_unknown_expectation_keeps_the_connection_in_step(
    service: Service, canary: Canary, expectation: bytes
) -> None:
    announced, body = sized(canary.request)
    expecting = b"Expect: " + expectation
    request = head(b"POST /v1/sessions HTTP/1.1", HOST, KEY, JSON, named("first"), expecting, announced)
    for segments in ([request + body], [request, body]):
        answers = service.exchange(*segments)
        assert_in_step(answers, "first")
        assert answers[0].status in {400, 417}
    canary.assert_unharmed()


def test_http_1_0_is_given_no_interim_answer(service: Service) -> None:
    announced, body = sized(ECHO)
    request = head(b"POST /v1/sessions HTTP/1.0", HOST, JSON, named("first"), b"Expect: 100-continue", announced)
    for segments in ([request + body], [request, body]):
        answers = service.exchange(*segments)
        assert ids(answers) == ["first"]
        assert answers[0].interim == ()
        assert [each["field"] for each in answers[0].json["errors"]] == ["ttlSeconds"]


def test_an_expectation_without_a_body_changes_nothing(service: Service) -> None:
    for length in ((), (b"Content-Length: 0",)):
        request = head(b"GET /livez HTTP/1.1", HOST, named("first"), b"Expect: 100-continue", *length)
        assert_in_step(service.exchange(request), "first")
