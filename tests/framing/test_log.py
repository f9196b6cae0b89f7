"""A stranger who sends what nobody can read fills no log: one line each at most, and none of a library."""

import json
from collections.abc import Sequence
from typing import Any, Final

import pytest

from tests.framing.served import Service
from tests.framing.wire import HOST, head

REQUESTS: Final = {
    "garbage": b"garbage\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01",
    "a bad header": head(b"GET /livez HTTP/1.1", HOST, b"X-A : b"),
    "no host": head(b"GET /none HTTP/1.1"),
    "a bad length": head(b"POST /none HTTP/1.1", HOST, b"Content-Length: -1"),
    "a bad chunk": head(b"POST /none HTTP/1.1", HOST, b"Transfer-Encoding: chunked") + b"xyz\r\n",
    "an upgrade": head(b"GET /none HTTP/1.1", HOST, b"Connection: upgrade", b"Upgrade: foo"),
    "a websocket": head(b"GET /none HTTP/1.1", HOST, b"Connection: upgrade", b"Upgrade: websocket"),
    "an upgrade with a body": head(
        b"POST /none HTTP/1.1", HOST, b"Connection: upgrade", b"Upgrade: h2c", b"Content-Length: 2"
    )
    + b"{}",
    "connect": head(b"CONNECT other.example:80 HTTP/1.1", HOST),
    "a huge head": head(b"GET /none HTTP/1.1", HOST, b"X-A: " + b"x" * 80_000),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a control character": head(b"GET /none%0A HTTP/1.1", HOST),
}


def lines_for(service: Service, requests: Sequence[bytes]) -> list[dict[str, Any]]:
    """What the service logs of these, without what it logs of probes."""
    before = service.log.stat().st_size
    service.exchange_each([[each] for each in requests])
    service.settle()
    lines = service.log.read_bytes()[before:].splitlines()
    return [line for line in map(json.loads, lines) if line.get("route") != "/livez"]


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_one_line_each(service: Service, request_: bytes) -> None:
    lines = lines_for(service, [request_] * 10)
    assert len(lines) == 10
    assert [line for line in lines if "logger" in line or line["level"] not in {"debug", "info"}] == []


def test_nothing_of_the_request_is_logged(service: Service) -> None:
    secret = b"secret-of-somebody"
    requests = [
        each.replace(b"none", secret).replace(b"garbage", secret).replace(b"xyz", secret) for each in REQUESTS.values()
    ]
    lines = lines_for(service, requests)
    assert lines
    assert secret.decode() not in json.dumps(lines)
