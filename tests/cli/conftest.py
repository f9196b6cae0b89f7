"""The command line as people run it: processes, signals, ports."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from service.settings import SANDBOX_API_KEY
from tests.plain import NO_TLS

__all__ = ["Running", "environment", "run"]

COMMAND: Final = (sys.executable, "-m", "service")
ROOT: Final = Path(__file__).parents[2]
PATIENCE_SECONDS: Final = 30.0


def environment(**more: str) -> dict[str, str]:
    """What processes get: nothing of the service's from outside."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMNICONNECT_", "BFF_"))}
    return kept | {"COLUMNS": "200", "NO_COLOR": "1", **more}


def run(*arguments: str, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(  # noqa: S603 -- our own command
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=environment(**env),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


class Running:
    """A process that runs until it is told to end, and what it wrote."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self.process = subprocess.Popen(  # noqa: S603 -- our own command
            [*COMMAND, *arguments],
            cwd=ROOT,
            env=environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._new: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.lines.append(line)
                self._new.put(line)
        self._new.put(None)

    def line(self, holding: str) -> str:
        """The next line on standard error that holds a text."""
        while (line := self._new.get(timeout=PATIENCE_SECONDS)) is not None:
            if holding in line:
                return line
        raise AssertionError("".join(self.lines))

    @contextmanager
    def serving(self) -> Iterator[httpx.Client]:
        """A client to it, as soon as it is ready."""
        url = json.loads(self.line('"event":"serving"'))["url"]
        headers = {"Authorization": f"Bearer {SANDBOX_API_KEY}"}
        with httpx.Client(
            base_url=url, timeout=PATIENCE_SECONDS, trust_env=False, verify=NO_TLS, headers=headers
        ) as client:
            until(lambda: ready(client))
            yield client

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def events(self) -> list[dict[str, Any]]:
        """What it logged; all of it must be JSON."""
        return [json.loads(line) for line in self.lines]


def ready(client: httpx.Client) -> bool:
    """Whether the service is ready."""
    try:
        return client.get("/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def until(true: Callable[[], bool]) -> None:
    """Poll."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Start processes that end with the test."""
    running: list[Running] = []

    def start_one(*arguments: str, **env: str) -> Running:
        running.append(Running(*arguments, **env))
        return running[-1]

    yield start_one
    finish(*running)


def finish(*running: Running) -> None:
    """End processes, in order if they can."""
    for each in running:
        if each.process.poll() is None:
            each.end(signal.SIGINT)
        if each.process.stdout is not None:
            each.process.stdout.close()


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's."""
    path = Path(tempfile.mkdtemp(prefix="bff-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def sandbox() -> Iterator[str]:
    """URL of a service that `sandbox` runs, its people in a hurry."""
    running = Running("sandbox", "--upstream-port", "0", OMNICONNECT_PORT="0", OMNICONNECT_POLL_SECONDS="0.05")
    upstream = running.line("levers").rsplit(maxsplit=1)[-1]
    with running.serving() as client:
        httpx.post(f"{upstream}/settings", json={"speed": 0.02}, trust_env=False, verify=NO_TLS).raise_for_status()
        yield str(client.base_url)
    finish(running)
