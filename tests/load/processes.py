"""Processes of a run: each pinned to a core, measured from outside, and gone when the run is, however that ends."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.stores.embedded import EmbeddedStore
from tests.load.machine import Cores

__all__ = ["ROOT", "Place", "Server", "StartFailed", "free_port", "free_ports", "opened_place"]

ROOT: Final = Path(__file__).parent.parent.parent
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.002
_SETTLE_SECONDS: Final = 20.0
_SETTLE_STEP_SECONDS: Final = 0.25
_IDLE_SHARE: Final = 0.05
_TAIL_BYTES: Final = 2000


class StartFailed(Exception):
    """A process that a row needs did not come up."""


class Server:
    """One process and its children.

    Attributes:
        origin: Scheme, host and port.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], *, port: int, log: Path) -> None:
        self.name = name
        self.process = process
        self.port = port
        self.origin = f"http://127.0.0.1:{port}"
        self._log = log

    def cpu_seconds(self) -> float:
        """User and system time so far (proc_pid_stat(5))."""
        ticks = 0
        for pid in self._tree():
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        """Memory that it holds now, in units of 2 ** 20 bytes."""
        kilobytes = 0
        for pid in self._tree():
            with suppress(OSError):
                found = re.search(
                    r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="ascii"), re.MULTILINE
                )
                kilobytes += int(found[1]) if found else 0
        return kilobytes / 1024

    def wait_until_ready(self, path: str = "/") -> None:
        """Return when it answers a GET with a status below 500.

        Raises:
            StartFailed: It ended, or did not come up in time.
        """
        give_up = time.monotonic() + _START_SECONDS
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        while time.monotonic() < give_up and self.process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(request)
                if connection.recv(12).startswith((b"HTTP/1.1 2", b"HTTP/1.1 4")):
                    return
            time.sleep(_LOOK_SECONDS)
        raise StartFailed(f"{self.name} did not become ready:\n{self.last_words()}")

    def settle(self) -> None:
        """Wait until it does nothing any more, so that what one measurement left behind is not in the next."""
        give_up = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < give_up:
            before = self.cpu_seconds()
            time.sleep(_SETTLE_STEP_SECONDS)
            if self.cpu_seconds() - before <= _IDLE_SHARE * _SETTLE_STEP_SECONDS:
                return

    def last_words(self) -> str:
        """The end of what it wrote."""
        return self._log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")

    def stop(self) -> None:
        """End it, in order if it does so at once."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _tree(self) -> list[int]:
        found, unseen = [], [self.process.pid]
        while unseen:
            pid = unseen.pop()
            found.append(pid)
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with suppress(OSError):
                    unseen += map(int, children.read_text(encoding="ascii").split())
        return found


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run happens.

    Attributes:
        home: A directory that is removed with the run.
    """

    cores: Cores
    home: Path

    @contextmanager
    def server(
        self,
        name: str,
        command: Sequence[str],
        *,
        port: int,
        core: int,
        environ: Mapping[str, str] | None = None,
        spoken_to: bool = False,
        cwd: Path = ROOT,
    ) -> Iterator[Server]:
        """A process on a core; `spoken_to` gives it pipes instead of a log for its output."""
        # A run that is killed takes them with it: the kernel tells them that their parent is gone.
        pinned = ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", str(core), *command]
        handle, log = tempfile.mkstemp(prefix=f"{name.replace(' ', '-')}-", suffix=".log", dir=self.home)
        inherited = {each: value for each, value in os.environ.items() if not each.startswith("OMNICONNECT_")}
        try:
            process = subprocess.Popen(  # noqa: S603 -- our own commands
                pinned,
                cwd=cwd,
                env={**inherited, "PYTHONPATH": str(ROOT), **(environ or {})},
                stdin=subprocess.PIPE if spoken_to else subprocess.DEVNULL,
                stdout=subprocess.PIPE if spoken_to else handle,
                stderr=handle,
            )
        finally:
            os.close(handle)
        server = Server(name, process, port=port, log=Path(log))
        try:
            yield server
        finally:
            server.stop()

    @contextmanager
    def python(
        self, name: str, *arguments: str, port: int, core: int, environ: Mapping[str, str] | None = None
    ) -> Iterator[Server]:
        """`python -m` something, with this interpreter."""
        with self.server(name, [sys.executable, "-m", *arguments], port=port, core=core, environ=environ) as server:
            yield server

    @contextmanager
    def store(self) -> Iterator[str]:
        """URL of a Valkey on the load's core, where this process is."""
        with EmbeddedStore() as store:
            yield store.url


@contextmanager
def opened_place(cores: Cores) -> Iterator[Place]:
    """A place on the machine; this process moves to the load's core meanwhile."""
    mine = os.sched_getaffinity(0)
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="omniconnect-load-", ignore_cleanup_errors=True))
        os.sched_setaffinity(0, {cores.load})
        stack.callback(os.sched_setaffinity, 0, mine)
        yield Place(cores, Path(home))


def free_port() -> int:
    """A port that nobody listens at."""
    return free_ports(1)[0]


def free_ports(how_many: int) -> list[int]:
    """Different ports that nobody listens at."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(how_many)]
        return [each.getsockname()[1] for each in sockets]
