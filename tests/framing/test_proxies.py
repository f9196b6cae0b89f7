"""Two clients of one proxy, whose requests share a connection to the service: neither reaches into the other's."""

from collections.abc import AsyncIterator
from typing import Final

import pytest

from tests.framing.proxies import PROXIES, proxied
from tests.framing.served import Canary, Service
from tests.framing.wire import HOST, JSON, KEY, Answer, chunked, head, named, sized

OFFERS: Final = {
    "nothing": (),
    "foo": (b"Connection: upgrade", b"Upgrade: foo"),
    "h2c": (b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAEAAEAAAAIAAAAB", b"Upgrade: h2c"),
    "websocket": (
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"Sec-WebSocket-Version: 13",
    ),
}
CODINGS: Final = {"length": sized, "chunked": chunked}
PADS: Final = {"short": b"", "long": b"\r\n" * 20_000}
"""Empty lines, which a reader skips before a request; a long body reaches the service apart from its head."""

ROUNDS: Final = 3
"""The first one may open the connection that the others share."""

each_offer = pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
each_coding = pytest.mark.parametrize("coding", CODINGS)
each_pad = pytest.mark.parametrize("pad", PADS.values(), ids=PADS)


@pytest.fixture(scope="session", params=PROXIES)
async def proxy(
    request: pytest.FixtureRequest, service: Service, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    """The service behind each proxy in turn."""
    async with proxied(request.param, service, tmp_path_factory.mktemp("proxy")) as started:
        yield started


def ask(proxy: Service, *segments: bytes) -> Answer | None:
    """The first answer on a connection of its own."""
    with proxy.connect() as line:
        for segment in segments:
            line.send(segment)
        return line.answer()


def assert_victim_is_served(proxy: Service, canary: Canary) -> None:
    """Another client of the proxy reads its session with the host's key."""
    answer = ask(proxy, head(b"GET %s HTTP/1.1" % canary.path, HOST, KEY, named("victim")))
    assert answer is not None
    assert (answer.status, answer.id) == (200, "victim")
    assert answer.json["session"]["id"] == canary.session
    assert answer.json["session"]["state"] == "open"


@each_pad
@each_coding
@each_offer
def test_a_request_within_a_body_never_runs(
    proxy: Service, canary: Canary, offer: tuple[bytes, ...], coding: str, pad: bytes
) -> None:
    line, body = CODINGS[coding](pad + canary.request)
    request = head(b"POST /v1/sessions HTTP/1.1", HOST, JSON, named("attack"), *offer, line)
    for segments in ((request + body,), (request, body), (request + body[:9], body[9:])) * ROUNDS:
        answer = ask(proxy, *segments)
        assert answer is None or answer.id not in {"canary", "victim"}
        assert_victim_is_served(proxy, canary)
    canary.assert_unharmed()


@each_pad
@each_coding
@each_offer
def test_the_beginning_of_a_request_within_a_body_takes_no_credential_of_the_next_one(
    proxy: Service, canary: Canary, offer: tuple[bytes, ...], coding: str, pad: bytes
) -> None:
    line, body = CODINGS[coding](pad + b"DELETE %s HTTP/1.1\r\nHost: bff.example\r\nX-Rest: " % canary.path)
    request = head(b"POST /v1/sessions HTTP/1.1", HOST, JSON, named("attack"), *offer, line)
    for _ in range(ROUNDS):
        ask(proxy, request + body)
        assert_victim_is_served(proxy, canary)
    canary.assert_unharmed()


@each_coding
@each_offer
def test_a_body_arrives_although_an_upgrade_is_offered(proxy: Service, offer: tuple[bytes, ...], coding: str) -> None:
    line, body = CODINGS[coding](b'{"subject": "person-7"}')
    request = head(b"POST /v1/sessions HTTP/1.1", HOST, KEY, JSON, named("offer"), *offer, line)
    for _ in range(ROUNDS):
        answer = ask(proxy, request + body)
        assert answer is not None
        assert (answer.status, answer.id) == (201, "offer")
        assert answer.json["session"]["subject"] == "person-7"


@each_coding
@pytest.mark.parametrize("line", [b"POST /none", b"PUT /v1/sessions", b"CONNECT /v1/sessions", b"GET /livez"])
def test_a_body_that_is_not_wanted_never_runs(proxy: Service, canary: Canary, line: bytes, coding: str) -> None:
    announced, body = CODINGS[coding](canary.request)
    request = head(line + b" HTTP/1.1", HOST, JSON, named("attack"), announced)
    for segments in ((request + body,), (request, body)) * ROUNDS:
        answer = ask(proxy, *segments)
        assert answer is None or answer.id not in {"canary", "victim"}
        assert_victim_is_served(proxy, canary)
    canary.assert_unharmed()


@pytest.mark.parametrize(
    "trailer", [KEY, b"Connection: close", b"Connection: upgrade", b"Content-Length: 3", b"Transfer-Encoding: chunked"]
)
def test_a_trailer_changes_nothing(proxy: Service, canary: Canary, trailer: bytes) -> None:
    encoded = chunked(b"{}")[1].removesuffix(b"\r\n") + head(trailer)
    for _ in range(ROUNDS):
        name = trailer.partition(b":")[0]
        lines = (b"Transfer-Encoding: chunked", b"Trailer: " + name, b"X-Forwarded-For: 198.51.100.6")
        answer = ask(proxy, head(b"POST /v1/sessions HTTP/1.1", HOST, JSON, named("attack"), *lines) + encoded)
        assert answer is not None
        assert answer.status in {400, 401, 429}
        assert_victim_is_served(proxy, canary)


@pytest.mark.parametrize("proxy", ["haproxy"], indirect=True)
def test_a_trailer_chooses_no_address(proxy: Service) -> None:
    """This proxy passes trailers on, and leaves the address that the head names as it is."""
    wrong = (b"X-Forwarded-For: 198.51.100.7", b"Authorization: Bearer wrong", b"Transfer-Encoding: chunked")
    request = head(b"POST /v1/sessions HTTP/1.1", HOST, JSON, *wrong)
    encoded = chunked(b"{}")[1].removesuffix(b"\r\n")
    answers = [
        ask(proxy, request + encoded + head(b"X-Forwarded-For: 203.0.113.%d" % number, b"X-Real-IP: 203.0.113.1"))
        for number in range(22)
    ]
    assert [answer and answer.status for answer in answers] == [*[401] * 20, 429, 429]
