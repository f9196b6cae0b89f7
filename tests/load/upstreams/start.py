"""Starting the upstreams, and counting what reached them."""

import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import orjson

from tests.load.nginx import nginx
from tests.load.processes import Place, Server, StartFailed, free_port
from tests.load.upstreams.answers import PREFIX, answers

__all__ = ["Crowd", "Upstream", "crowd", "instant", "late"]

_COUNTS: Final = re.compile(rb"(\d+) (\d+) (\d+)")


class Upstream:
    """An upstream with fixed answers.

    Attributes:
        url: The vendor's base URL.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.url = f"{server.origin}{PREFIX}"
        self._asked = 0

    def requests(self) -> int:
        """How many it has been sent, without those that asked this."""
        self._asked += 1
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as connection:
            connection.sendall(b"GET /_status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            answer = b""
            while (found := _COUNTS.search(answer)) is None:
                part = connection.recv(4096)
                if not part:
                    raise StartFailed("the upstream does not tell its requests")
                answer += part
        return int(found[3]) - self._asked


class Crowd:
    """The sandbox with many people."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.url = f"{server.origin}{PREFIX}"

    def calls(self) -> dict[str, int]:
        """Calls so far, by kind."""
        counted: dict[str, int] = self._ask("calls")
        return counted

    def finish_jobs(self) -> float:
        """End all running jobs; returns when, on the monotonic clock."""
        return float(self._ask("finish"))

    def told(self) -> dict[str, float]:
        """When each user name's end was first told."""
        times: dict[str, float] = self._ask("told")
        return times

    def slow_tokens(self) -> float:
        """Let tokens take a while; returns how long."""
        return float(self._ask("slow-tokens"))

    def _ask(self, command: str) -> Any:
        asked, told = self.server.process.stdin, self.server.process.stdout
        if asked is None or told is None:
            raise StartFailed("the upstream cannot be spoken to")
        with suppress(BrokenPipeError):
            asked.write(f"{command}\n".encode())
            asked.flush()
        answer = told.readline()
        if not answer:
            raise StartFailed(f"the upstream has ended:\n{self.server.last_words()}")
        return orjson.loads(answer)


@contextmanager
def instant(place: Place) -> Iterator[Upstream]:
    """An nginx that answers at once."""
    port = free_port()
    locations = "\n".join(
        f"location = {PREFIX}{path} {{ return {status} '{body.decode()}'; }}"
        for (_, path), (status, body) in answers().items()
    )
    server = f"listen 127.0.0.1:{port} backlog=4096;\nlocation = /_status {{ stub_status; }}\n{locations}"
    with nginx(place, "instant upstream", server, port=port, core=place.cores.load) as started:
        yield Upstream(started)


@contextmanager
def late(place: Place, seconds: float) -> Iterator[Upstream]:
    """One that answers after a while."""
    port = free_port()
    module = "tests.load.upstreams.late"
    with place.python("late upstream", module, str(port), str(seconds), port=port, core=place.cores.load) as server:
        server.wait_until_ready("/_status")
        yield Upstream(server)


@contextmanager
def crowd(place: Place, people: int) -> Iterator[Crowd]:
    """The sandbox with so many of each kind of person."""
    port = free_port()
    command = [sys.executable, "-m", "tests.load.upstreams.crowd", str(port), str(people)]
    with place.server("crowd", command, port=port, core=place.cores.load, spoken_to=True) as server:
        server.wait_until_ready("/_sandbox")
        yield Crowd(server)
