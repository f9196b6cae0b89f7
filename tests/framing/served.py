"""The service behind a socket, and what must hold of its answers whatever bytes it is sent."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Self

from tests.framing.wire import HOST, JSON, KEY, LAST, Answer, Connection, head, ids, named, sized

__all__ = ["Canary", "Service", "assert_in_step", "assert_malformed"]


@dataclass(frozen=True, slots=True)
class Service:
    """A served process, or a proxy in front of it."""

    port: int
    process: int
    log: Path = field(repr=False)

    def connect(self) -> Connection:
        return Connection(self.port)

    @contextmanager
    def connections(self, count: int) -> Iterator[list[Connection]]:
        """Several at once; a test may close them before."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.connect()) for _ in range(count)]

    def settle(self) -> None:
        """Return once the process has read everything that was sent before: it reads in the order of arrival."""
        with self.connect() as line:
            line.send(LAST)
            assert [answer.status for answer in line.rest()] == [200]

    def exchange(self, *segments: bytes) -> list[Answer]:
        """Send the segments one by one, then `LAST`, and read all answers."""
        return self.exchange_each([segments])[0]

    def exchange_each(self, exchanges: Sequence[Sequence[bytes]]) -> list[list[Answer]]:
        """The same on many connections at once: the n-th segments of all are read before the next ones are sent."""
        with self.connections(len(exchanges)) as lines:
            for turn in zip_longest(*exchanges, fillvalue=b""):
                for line, segment in zip(lines, turn, strict=True):
                    line.send(segment)
                self.settle()
            for line in lines:
                line.send(LAST)
            return [line.rest() for line in lines]


@dataclass(frozen=True, slots=True)
class Canary:
    """A session of somebody else; a request that hides in a body would close it."""

    service: Service
    session: str

    @classmethod
    def open(cls, service: Service) -> Self:
        line, body = sized(b'{"subject": "canary"}')
        request = head(b"POST /v1/sessions HTTP/1.1", HOST, KEY, JSON, line, named("opening"))
        opened, _ = service.exchange(request + body)
        assert opened.status == 201, opened
        return cls(service, opened.json["session"]["id"])

    @property
    def path(self) -> bytes:
        return b"/v1/sessions/" + self.session.encode()

    @property
    def request(self) -> bytes:
        """What must never run."""
        return head(b"DELETE %s HTTP/1.1" % self.path, HOST, KEY, named("canary"))

    def assert_unharmed(self) -> None:
        shown, _ = self.service.exchange(head(b"GET %s HTTP/1.1" % self.path, HOST, KEY, named("canary-read")))
        assert shown.json["session"]["state"] == "open", "bytes of a body ran as a request"


def assert_in_step(answers: Sequence[Answer], *names: str) -> None:
    """Each request and `LAST` got its own answer, or one of them was answered with the end of the connection."""
    expected = [*names, "last"]
    assert "canary" not in ids(answers)
    if ids(answers) == expected:
        return
    assert answers, "the connection ended without an answer"
    *before, last = answers
    assert ids(before) == expected[: len(before)], answers
    assert last.closes, last
    if last.id != expected[len(before)]:
        assert_malformed(answers, *ids(before))


def assert_malformed(answers: Sequence[Answer], *names: str) -> None:
    """After the answers to these, a request that cannot be read is answered in an envelope, and nothing after it."""
    assert answers, "the connection ended without an answer"
    *before, answer = answers
    assert ids(before) == [*names], answers
    assert answer.status == 400, answer
    assert answer.closes, answer
    assert answer.headers["content-type"] == "application/json", answer
    envelope = answer.json
    assert (envelope["status"], envelope["code"]) == ("OM400", "malformed_request"), answer
    assert envelope["requestId"] == answer.id, answer
    assert re.fullmatch("[A-Za-z0-9-]{1,64}", answer.id), answer
    assert answer.id not in {"canary", "last"}, answer
