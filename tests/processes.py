"""The service as processes of their own, for tests that kill them.

They are forked from a process that has imported the service and done nothing else: importing takes most of a start.
"""

import asyncio
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final, TypeVar

import httpx

from service.cli import main as cli
from service.clock import SYSTEM_CLOCK
from service.settings import SANDBOX_API_KEY, Settings
from tests.plain import NO_TLS
from tests.walk import Walk

__all__ = ["FORKS", "ServiceProcess", "eventually", "resident", "serving"]

FORKS: Final = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["service.app", "service.serve", "tests.faults.victims"])
_START_SECONDS: Final = 30.0
_T = TypeVar("_T")


async def eventually(look: Callable[[], _T | None], *, seconds: float = 20.0) -> _T:
    """What `look` returns once that is something; for what happens in another thread or process."""
    give_up = SYSTEM_CLOCK.monotonic() + seconds
    while not (found := look()):
        assert SYSTEM_CLOCK.monotonic() < give_up, "it never happened"
        await asyncio.sleep(0.005)
    return found


def resident(process: int) -> int:
    """Bytes of memory; where there is no `/proc`, as on macOS, by what POSIX has everywhere."""
    status = Path(f"/proc/{process}/status")
    if status.exists():
        found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text(encoding="utf-8"))
    else:
        asked = ["ps", "-o", "rss=", "-p", str(process)]
        found = re.search(r"(\d+)", subprocess.run(asked, check=True, capture_output=True, text=True).stdout)  # noqa: S603 -- our own
    assert found is not None
    return int(found[1]) * 1024


class ServiceProcess:
    """One `omniconnect-bff serve`, and a client to it."""

    def __init__(self, process: ForkServerProcess, client: httpx.AsyncClient) -> None:
        self._process = process
        self.client = client

    @property
    def exit_code(self) -> int | None:
        """None as long as it runs."""
        return self._process.exitcode

    @property
    def pid(self) -> int:
        """As the system knows it."""
        pid = self._process.pid
        assert pid is not None
        return pid

    def walk(self) -> Walk:
        """A person's walk through the steps, at this process."""
        return Walk(self.client, api_key=SANDBOX_API_KEY)

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        self._process.kill()
        self._process.join()

    def terminate(self) -> None:
        """Ask it to stop."""
        self._process.terminate()

    def stand_still(self) -> None:
        """Stop it where it is; its connections stay."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let one that stands still go on."""
        os.kill(self.pid, signal.SIGCONT)


@asynccontextmanager
async def serving(settings: Settings, log: Path | None = None, /, **environ: str) -> AsyncIterator[ServiceProcess]:
    """The service in a process of its own, once it is ready.

    Args:
        settings: The common ones.
        log: A file for the log; without it nobody reads the log.
        environ: Further settings, by the names of their variables.
    """
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    with _forked({**_environ(settings), "OMNICONNECT_PORT": str(port), **environ}, log) as process:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=40, trust_env=False, verify=NO_TLS
        ) as client:
            await _ready(process, client)
            yield ServiceProcess(process, client)


def _environ(settings: Settings) -> dict[str, str]:
    keys = ",".join(f"{name}:{key.get_secret_value()}" for name, key in settings.encryption_keys.items())
    given = {
        "SANDBOX": str(settings.sandbox).lower(),
        "CLIENT_ID": settings.client_id,
        "SECRET": settings.secret.get_secret_value(),
        "UPSTREAM_URL": settings.upstream_url,
        "REDIS_URL": settings.redis_url.get_secret_value() if settings.redis_url else "",
        "REDIS_PREFIX": settings.redis_prefix,
        "REDIS_TIMEOUT": str(settings.redis_timeout),
        "ENCRYPTION_KEYS": keys,
        "POLL_SECONDS": str(settings.poll_seconds),
        "POLL_LEASE_SECONDS": str(settings.poll_lease_seconds),
        "DRAIN_SECONDS": str(settings.drain_seconds),
        "LOG_LEVEL": settings.log_level,
    }
    return {f"OMNICONNECT_{name}": value for name, value in given.items()}


def _serve(environ: Mapping[str, str], log: Path | None) -> None:
    for name in [each for each in os.environ if each.startswith("OMNICONNECT_")]:
        del os.environ[name]
    os.environ |= environ
    os.dup2(os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT, 0o600), sys.stderr.fileno())
    sys.argv[1:] = ["serve"]
    cli.main()


@contextmanager
def _forked(environ: Mapping[str, str], log: Path | None) -> Iterator[ForkServerProcess]:
    process = FORKS.Process(target=_serve, args=(environ, log), daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


async def _ready(process: ForkServerProcess, client: httpx.AsyncClient) -> None:
    give_up = SYSTEM_CLOCK.monotonic() + _START_SECONDS
    while True:
        assert process.is_alive(), f"the service ended with {process.exitcode}"
        assert SYSTEM_CLOCK.monotonic() < give_up, "the service did not become ready"
        try:
            if (await client.get("/readyz")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.02)
