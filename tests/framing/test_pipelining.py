"""Requests that do not wait for earlier answers: answered in order, bounded, and ended with their connection."""

from typing import Final

import pytest

from tests.framing.served import Canary, Service, assert_in_step, assert_malformed
from tests.framing.wire import HOST, JSON, KEY, LAST, Connection, chunked, head, ids, named, sized
from tests.processes import eventually, resident

KIB: Final = 1024
MIB: Final = 1024 * KIB
MOST_STREAMS: Final = 3
GARBAGE: Final = b"garbage\r\n\r\n"


def quick(name: str) -> bytes:
    return head(b"GET /livez HTTP/1.1", HOST, named(name))


def post(name: str, body: bytes, *, as_chunks: bool = False) -> bytes:
    line, encoded = chunked(body) if as_chunks else sized(body)
    return head(b"POST /v1/sessions HTTP/1.1", HOST, KEY, JSON, named(name), line) + encoded


class Streamed:
    """A session whose events can be streamed; closing it ends its streams."""

    def __init__(self, service: Service) -> None:
        session = service.exchange(post("opening", b"{}"))[0].json["session"]
        self._service = service
        self._token = session["token"].encode()
        self._canary = Canary(service, session["id"])

    @property
    def request(self) -> bytes:
        bearer = b"Authorization: Bearer " + self._token
        return head(b"GET %s/events HTTP/1.1" % self._canary.path, HOST, bearer, named("stream"))

    def close(self) -> None:
        closed = self._service.exchange(self._canary.request)[0]
        assert closed.json["session"]["state"] == "closed"

    def has_a_place(self) -> bool:
        with self._service.connect() as line:
            line.send(self.request)
            line.wait_for(b"\r\n")
            return line.starts_with(b"HTTP/1.1 200 ")


@pytest.fixture
def streamed(service: Service) -> Streamed:
    return Streamed(service)


def begin(line: Connection, streamed: Streamed, after: bytes) -> None:
    """Start a stream with something sent behind it in the same segment."""
    line.send(streamed.request + after)
    line.wait_for(b"session.created")


def test_requests_in_one_segment_are_answered_in_order(service: Service) -> None:
    requests = [quick("a"), post("b", b'{"subject": "b"}'), post("c", b'{"subject": "c"}', as_chunks=True), quick("d")]
    answers = service.exchange(b"".join(requests))
    assert ids(answers) == ["a", "b", "c", "d", "last"]
    assert [answer.json["session"]["subject"] for answer in answers[1:3]] == ["b", "c"]


def test_requests_are_in_step_wherever_they_are_split(service: Service, canary: Canary) -> None:
    requests = post("a", canary.request) + quick("b") + post("c", canary.request, as_chunks=True) + quick("d")
    for answers in service.exchange_each([(requests[:at], requests[at:]) for at in range(1, len(requests))]):
        assert_in_step(answers, "a", "b", "c", "d")
    canary.assert_unharmed()


@pytest.mark.parametrize("line", [b"Connection: close", b"connection: CLOSE", b"Connection: keep-alive, close"])
def test_nothing_is_answered_after_the_last_request(service: Service, canary: Canary, line: bytes) -> None:
    request = head(b"GET /livez HTTP/1.1", HOST, named("first"), line)
    for segments in ([request + canary.request], [request, canary.request]):
        answers = service.exchange(*segments)
        assert ids(answers) == ["first"]
        assert answers[0].closes
    canary.assert_unharmed()


def test_nothing_is_answered_after_http_1_0(service: Service, canary: Canary) -> None:
    request = head(b"GET /livez HTTP/1.0", HOST, named("first"))
    assert ids(service.exchange(request + canary.request)) == ["first"]
    kept = head(b"GET /livez HTTP/1.0", HOST, b"Connection: keep-alive", named("first"))
    assert_in_step(service.exchange(kept), "first")
    canary.assert_unharmed()


def test_a_request_waits_for_the_stream_before_it(service: Service, streamed: Streamed) -> None:
    with service.connect() as line:
        begin(line, streamed, quick("after"))
        streamed.close()
        line.send(LAST)
        answers = line.rest()
    assert_in_step(answers, "stream", "after")
    assert b"event: session.closed" in answers[0].body


@pytest.mark.parametrize("garbage", [GARBAGE, b"\x16\x03\x01", head(b"GET /livez HTTP/1.1", b"X-A : b")])
def test_a_malformed_request_waits_for_the_stream_before_it(
    service: Service, streamed: Streamed, garbage: bytes
) -> None:
    with service.connect() as line:
        begin(line, streamed, garbage)
        service.settle()
        streamed.close()
        answers = line.rest()
    assert b"event: session.closed" in answers[0].body
    if len(answers) > 1 or not answers[0].closes:
        assert_malformed(answers, "stream")


def test_a_malformed_request_waits_for_the_answers_before_it(service: Service, canary: Canary) -> None:
    requests = [quick("a"), post("b", b'{"subject": "b"}'), GARBAGE + canary.request]
    for segments in ([b"".join(requests)], requests):
        answers = service.exchange(*segments)
        assert_malformed(answers, "a", "b")
        assert answers[1].status == 201
    canary.assert_unharmed()


@pytest.mark.parametrize("after", [b"", quick("after"), quick("after") * 3, GARBAGE, quick("after")[:20]])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_a_stream_ends_with_its_connection(
    service: Service, streamed: Streamed, after: bytes, *, reset: bool
) -> None:
    with service.connections(MOST_STREAMS) as lines:
        for line in lines:
            begin(line, streamed, after)
        assert not streamed.has_a_place()
        for line in lines:
            if reset:
                line.reset()
    await eventually(streamed.has_a_place, seconds=2)


@pytest.mark.parametrize(
    "after",
    [post("after", b" " * 8 * MIB), post("after", b" " * 8 * MIB, as_chunks=True), quick("after") * 50_000],
    ids=["a body", "chunks", "requests"],
)
async def test_what_follows_a_stream_is_bounded(service: Service, streamed: Streamed, after: bytes) -> None:
    before = resident(service.process)
    with service.connections(MOST_STREAMS) as lines:
        for line in lines:
            begin(line, streamed, after[:KIB])
            line.offer(after[KIB:], service.settle)
        assert resident(service.process) - before < 8 * MIB
    await eventually(streamed.has_a_place, seconds=2)


def test_thousands_of_requests_in_one_segment_stay_in_order(service: Service) -> None:
    names = [f"n{number}" for number in range(5000)]
    before = resident(service.process)
    answers = service.exchange(b"".join(map(quick, names)))
    assert ids(answers) == [*names, "last"][: len(answers)]
    assert len(answers) > 1000 or answers[-1].closes
    assert resident(service.process) - before < 32 * MIB
