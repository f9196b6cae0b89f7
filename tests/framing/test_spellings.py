"""A path in any spelling is one thing to all layers: what one takes for a route, no other takes for something else.

The layers show by themselves: the log names the route, the CORS headers its kind, the answer the handler that ran. A
spelling that is a route is answered as its plain spelling is; all others are answered as nothing that there is.
"""

import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from service.sandbox.server import SandboxServer
from tests.conftest import make_settings
from tests.framing.served import Service
from tests.framing.wire import HOST, JSON, KEY, Answer, head, sized
from tests.fuzzing import FUZZ
from tests.processes import serving

EXAMPLES: Final = settings(
    max_examples=60 * FUZZ,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
AT_ONCE: Final = 12
ORIGIN: Final = "https://page.example"
CLIENTS: Final = json.dumps({"page": {"origins": [ORIGIN]}})
PLAIN: Final = {
    "/livez": b"/livez",
    "/readyz": b"/readyz",
    "/metrics": b"/metrics",
    "/openapi.json": b"/openapi.json",
    "/docs": b"/docs",
    "/v1/providers": b"/v1/providers",
    "/v1/sessions": b"/v1/sessions",
    "/v1/sessions/{session_id}": b"/v1/sessions/ses_0",
    "/v1/sessions/{session_id}/events": b"/v1/sessions/ses_0/events",
    "/v1/sessions/{session_id}/service-accounts": b"/v1/sessions/ses_0/service-accounts",
    "/v1/sessions/{session_id}/validations/{validation_id}": b"/v1/sessions/ses_0/validations/val_0",
}
OPERATIONS: Final = frozenset({"/livez", "/readyz", "/metrics"})
SCRAPS: Final = [
    *(b"%0A", b"%0a", b"%00", b"%09", b"%7F", b"%20", b"%C2%85", b"%C2%A0", b"%E2%80%8B", b"%EF%BC%8F", b"%FF"),
    *(b"/", b"//", b"/.", b"/..", b"/%2e", b"/%2E%2E", b"%2F", b"%2f", b"%5C", b"\\", b";a=b", b"%3B", b"?", b"%3F"),
    *(b"?a=/metrics", b"%23", b"%", b"%25", b"%250A", b".", b"~", b"%zz", b":", b"@", b"*", b"{", b"%u002F"),
]


@pytest.fixture(scope="module")
async def services(
    valkey: str, omniconnect_sandbox_server: SandboxServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Service, Service]]:
    """The public listener of a process, and its listener for operations."""
    given = make_settings(valkey, omniconnect_sandbox_server.url, f"t{uuid.uuid4().hex[:12]}")
    log = tmp_path_factory.mktemp("spellings") / "log"
    async with serving(given, log, OMNICONNECT_METRICS_PORT="0", OMNICONNECT_CLIENTS=CLIENTS) as started:
        told = next(line for line in map(json.loads, log.read_bytes().splitlines()) if line["event"] == "serving")
        ports = [httpx.URL(told[each]).port or 0 for each in ("url", "operations")]
        yield Service(ports[0], started.pid, log), Service(ports[1], started.pid, log)


@st.composite
def targets(draw: st.DrawFn) -> bytes:
    """A path that is served, with a few marks put in, encoded, doubled, dropped or written in the other case."""
    target = draw(st.sampled_from([*PLAIN.values()]))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.one_of(st.just(len(target)), st.integers(1, len(target))))
        end = min(at + draw(st.integers(0, 1)), len(target))
        there = target[at:end]
        scraps = st.sampled_from([*SCRAPS, b"", there.swapcase(), there * 2, b"%%%02X" % there[0] if there else b"/"])
        target = target[:at] + draw(scraps) + target[end:]
    return draw(st.sampled_from([b"", b"", b"http://other.example"])) + target


@dataclass(frozen=True)
class Seen:
    """What the layers made of a request.

    Attributes:
        route: As the log names it.
        answer: Status, media type and code of what the handler, or whoever refused in its place, answered.
        headers: What depends on the kind of route.
        other_origins: Whether pages of other origins may read it.
        preflight: Whether they may send it.
    """

    route: str
    answer: tuple[int, str | None, str | None]
    headers: Mapping[str, str | None]
    other_origins: bool
    preflight: bool
    body: bytes


def look(service: Service, requests: Sequence[tuple[bytes, bytes]]) -> list[Seen]:
    """Send methods and targets, each as it is and as a preflight."""
    names = [f"n{uuid.uuid4().hex}" for _ in requests]
    origin = b"Origin: " + ORIGIN.encode()
    length, body = sized(b"{}")
    sent, asked = [], []
    for (method, target), name in zip(requests, names, strict=True):
        lines = [HOST, KEY, origin, b"X-Request-Id: " + name.encode()]
        has_body = method in {b"POST", b"PUT"}
        sent.append(head(b"%s %s HTTP/1.1" % (method, target), *lines, *([JSON, length] if has_body else [])))
        sent[-1] += body if has_body else b""
        preflight = b"Access-Control-Request-Method: GET"
        asked.append(head(b"OPTIONS %s HTTP/1.1" % target, HOST, origin, preflight))
    before = service.log.stat().st_size
    answers = service.exchange_each([[each] for each in sent])
    preflights = service.exchange_each([[each] for each in asked])
    told = map(json.loads, service.log.read_bytes()[before:].splitlines())
    routes = {line["request_id"]: line["route"] for line in told if line["event"] == "request"}
    return [
        _seen(routes[name], answer, preflight)
        for name, (answer, *_), (preflight, *_) in zip(names, answers, preflights, strict=True)
    ]


def _seen(route: str, answer: Answer, preflight: Answer) -> Seen:
    kind = answer.headers.get("content-type")
    body: Any = answer.json if kind == "application/json" else None
    code = body.get("code") if isinstance(body, dict) else None
    shown = ("cache-control", "content-security-policy", "vary", "allow")
    return Seen(
        route,
        (answer.status, kind, code),
        {name: answer.headers.get(name) for name in shown},
        "access-control-allow-origin" in answer.headers,
        "access-control-allow-methods" in preflight.headers,
        answer.body,
    )


def assert_one_reading(seen: Seen, plain: Mapping[str, Seen], target: bytes) -> None:
    """The layers agree, with one another and with how they take the plain spelling."""
    if seen.route != "none":
        assert replace(seen, body=b"") == plain[seen.route], target
    elif seen.answer[0] == 400:
        assert seen.answer[2] == "malformed_request", target
        assert not seen.other_origins, target
        assert not seen.preflight, target
    else:
        assert seen.answer == (404, "application/json", "not_found"), target
        assert seen.other_origins, target
        assert seen.preflight, target


@pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE", b"PUT"])
def test_each_spelling_of_a_path_is_one_thing_to_all_layers(services: tuple[Service, Service], method: bytes) -> None:
    plain = [
        {each.route: replace(each, body=b"") for each in look(service, [(method, target) for target in PLAIN.values()])}
        for service in services
    ]
    assert plain[0].keys() - {"none"} == PLAIN.keys() - {"/metrics"}
    assert plain[1].keys() - {"none"} == OPERATIONS

    @EXAMPLES
    @given(spelled=st.lists(targets(), min_size=AT_ONCE, max_size=AT_ONCE), listener=st.integers(0, 1))
    def check(spelled: list[bytes], listener: int) -> None:
        for target, seen in zip(spelled, look(services[listener], [(method, each) for each in spelled]), strict=True):
            assert_one_reading(seen, plain[listener], target)
            assert listener == 1 or b"omniconnect_requests" not in seen.body, target

    check()
