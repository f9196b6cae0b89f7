"""Streams of requests, good and damaged, in any segments: never more answers than a strict reading has requests."""

from typing import Final

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.framing.reading import Reading, read
from tests.framing.served import Canary, Service
from tests.framing.wire import HOST, JSON, KEY, LAST, Answer, chunked, head, named, sized
from tests.fuzzing import FUZZ

EXAMPLES: Final = settings(
    max_examples=300 * FUZZ,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
HIDDEN: Final = head(b"GET /livez HTTP/1.1", HOST, named("canary"))
BODIES: Final = st.sampled_from(
    [b"", b"{}", b'{"ttlSeconds": 5}', HIDDEN, HIDDEN * 2, b"\r\n" + HIDDEN, b"0\r\n\r\n" + HIDDEN]
)
REQUEST_LINES: Final = st.sampled_from(
    [
        *(b"POST /v1/sessions HTTP/1.1", b"POST /none HTTP/1.1", b"GET /livez HTTP/1.1", b"PUT /v1/sessions HTTP/1.1"),
        *(b"CONNECT /livez HTTP/1.1", b"CONNECT other.example:80 HTTP/1.1", b"OPTIONS * HTTP/1.1"),
        *(b"POST http://other.example/v1/sessions HTTP/1.1", b"POST /v1/sessions HTTP/1.0", b"DELETE /livez HTTP/1.1"),
    ]
)
LINES: Final = st.lists(
    st.sampled_from(
        [
            *(b"Connection: upgrade", b"Connection: keep-alive", b"Connection: close", b"Upgrade: foo"),
            *(b"Upgrade: websocket", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c", b"Expect: 100-continue"),
            *(b"X-A: b", b"X-A:", b"Trailer: X-A", b"TE: trailers", KEY, JSON),
        ]
    ),
    max_size=4,
)
DAMAGING: Final = st.lists(
    st.sampled_from(
        [
            *(b"Content-Length: 0", b"Content-Length: 5", b"Content-Length: +5", b"Content-Length : 5", b" folded"),
            *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding : chunked"),
            *(b"Transfer-Encoding: xchunked", b"Transfer-Encoding:\x0bchunked", b"X-A: b\nX-B: c", b"X-A: b\rX-B: c"),
            *(HOST, b"X-A: \x00", b"no colon", b"", b"Content-Length: 5, 5", b"Content-Length: 0x5"),
        ]
    ),
    max_size=2,
)
TRAILERS: Final = st.lists(
    st.sampled_from(
        [b"X-A: b", b"X-Request-Id: canary", b"Connection: upgrade", b"Connection: close", b"Host: a", KEY, b"no colon"]
    ),
    max_size=2,
)
SCRAPS: Final = st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b"\0", b"1", b":", b";"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request, with a body that may hide others."""
    body = draw(BODIES)
    line, encoded = draw(st.sampled_from([sized, chunked]))(body)
    if line.startswith(b"Transfer"):
        encoded = encoded.removesuffix(b"\r\n") + b"".join(each + b"\r\n" for each in draw(TRAILERS)) + b"\r\n"
    lines = [HOST, JSON, line, *draw(LINES), *draw(DAMAGING if draw(st.integers(0, 3)) == 0 else st.just([]))]
    first, *others = draw(st.permutations(lines))
    return head(draw(REQUEST_LINES), named(f"n{draw(st.integers(0, 999))}"), first, *others) + encoded


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Several requests, now and then with a few bytes changed, in segments of any size."""
    data = b"".join(draw(st.lists(requests(), min_size=1, max_size=4)))
    if draw(st.booleans()):
        at, gone = draw(st.integers(0, len(data) - 1)), draw(st.integers(0, 2))
        data = data[:at] + draw(SCRAPS) + data[at + gone :]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=3)))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def exchange(service: Service, segments: list[bytes], reading: Reading) -> list[Answer]:
    """All answers; a connection on which the service rightly waits for more is ended from here."""
    with service.connect() as line:
        for segment in segments:
            line.send(segment)
            service.settle()
        if reading.incomplete:
            line.end()
        return line.rest()


def test_no_stream_gets_more_answers_than_it_has_requests(service: Service, canary: Canary) -> None:
    @EXAMPLES
    @given(segments=streams())
    def check(segments: list[bytes]) -> None:
        segments = [*segments, LAST]
        reading = read(b"".join(segments))
        answers = exchange(service, segments, reading)
        assert len(answers) <= len(reading.names)
        for answer, name in zip(answers, reading.names, strict=False):
            assert name is None or answer.id == name or answer.closes
            assert name == "canary" or answer.id != "canary"
        if not reading.incomplete and len(answers) < len(reading.names):
            assert answers
            assert answers[-1].closes

    check()
    canary.assert_unharmed()
