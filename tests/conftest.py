"""The real parts: a Valkey of our own, the sandbox upstream, and the service, each behind a real socket."""

import asyncio
import base64
import contextlib
import io
import logging
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast

import httpx
import orjson
import pytest
import structlog
import uvicorn
from pydantic import SecretStr
from typing_extensions import override

from service.app import create_app
from service.clock import SYSTEM_CLOCK, Clock, Millis
from service.protocol import HttpProtocol
from service.sandbox.pytest_plugin import omniconnect_sandbox, omniconnect_sandbox_server
from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY, SANDBOX_CLIENT_ID, SANDBOX_SECRET, Settings
from service.stores.embedded import EmbeddedStore
from service.telemetry import configure_logs
from service.wiring import Timing
from tests.plain import NO_TLS
from tests.walk import Walk

__all__ = ["omniconnect_sandbox", "omniconnect_sandbox_server"]

ENCRYPTION_KEYS: Final = {"test": SecretStr(base64.b64encode(b"k" * 32).decode())}


class _Recorded(io.RawIOBase):
    """Where the service's own lines go in tests: to pytest, as records."""

    @override
    def write(self, line: Any) -> int:
        text = bytes(line).decode()
        level = logging.getLevelNamesMapping()[orjson.loads(text)["level"].upper()]
        logging.getLogger("omniconnect").log(level, text.rstrip())
        return len(line)


@pytest.fixture(scope="session", autouse=True)
def _logs() -> None:
    configure_logs("DEBUG")
    logging.getLogger("omniconnect").setLevel(logging.DEBUG)
    structlog.configure(logger_factory=structlog.BytesLoggerFactory(cast("BinaryIO", _Recorded())))


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A shell starts what is to run in the background with SIGINT ignored, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """URL of a real Valkey; tests keep apart by prefix."""
    with EmbeddedStore() as store:
        yield store.url


@pytest.fixture
def upstream(omniconnect_sandbox: SandboxServer) -> SandboxServer:
    """The vendor, as good as new."""
    return omniconnect_sandbox


@pytest.fixture
def prefix() -> str:
    """Keeps this test's keys apart from all others'."""
    return f"t{uuid.uuid4().hex[:12]}"


class MovableClock:
    """Wall time that tests push forward; monotonic time stays real, since sleeps do."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now(self) -> Millis:
        return Millis(SYSTEM_CLOCK.now() + self.ahead_ms)

    def monotonic(self) -> float:
        return SYSTEM_CLOCK.monotonic()

    def forward(self, seconds: float) -> None:
        self.ahead_ms += int(seconds * 1000)


class LeapingClock(MovableClock):
    """Monotonic time is pushed along."""

    @override
    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_ms / 1000


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def settings(valkey: str, upstream: SandboxServer, prefix: str) -> Settings:
    """Sandbox settings at test speed."""
    return make_settings(valkey, upstream.url, prefix)


def make_settings(redis_url: str, upstream_url: str, prefix: str, **changes: Any) -> Settings:
    given: dict[str, Any] = {
        "sandbox": True,
        "client_id": SANDBOX_CLIENT_ID,
        "secret": SecretStr(SANDBOX_SECRET),
        "upstream_url": upstream_url,
        "redis_url": SecretStr(redis_url),
        "redis_prefix": prefix,
        "redis_timeout": 1.0,
        "encryption_keys": ENCRYPTION_KEYS,
        "poll_seconds": 0.05,
        "poll_lease_seconds": 1.0,
        "drain_seconds": 0,
        "refusals_per_minute": 100_000,
        "address_attempts": 100_000,
        "log_level": "DEBUG",
    }
    return Settings(**(given | changes))


@dataclass
class Replica:
    """One running instance of the service, and a client to it."""

    url: str
    client: httpx.AsyncClient
    app: Any

    def walk(self) -> Walk:
        """A person's walk through the steps, at this replica."""
        return Walk(self.client, api_key=SANDBOX_API_KEY)


class _QuietServer(uvicorn.Server):
    """uvicorn without signals, and without its waits of 0.1 s each: hundreds of tests start and stop one."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    @override
    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), timeout=1)

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110 -- uvicorn's sets
                    await asyncio.sleep(0.005)
        except TimeoutError:
            for task in self.server_state.tasks:
                task.cancel()
        await self.lifespan.shutdown()

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def running_replica(
    settings: Settings, *, clock: Clock = SYSTEM_CLOCK, timing: Timing | None = None
) -> AsyncIterator[Replica]:
    """The service on a port of its own, in this event loop."""
    app = create_app(settings, clock=clock, timing=timing)
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )
    server = _QuietServer(config)
    # With its protocol named, or asyncio leaves Nagle's algorithm on and each answer waits 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not (server.started and app.state.health.started):
        if serving.done():
            serving.result()
        await asyncio.sleep(0.005)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    try:
        async with httpx.AsyncClient(base_url=url, timeout=40, limits=limits, trust_env=False, verify=NO_TLS) as client:
            yield Replica(url, client, app)
    finally:
        server.stop()
        await serving
        listener.close()


@pytest.fixture
async def replica(settings: Settings, clock: MovableClock) -> AsyncIterator[Replica]:
    """One instance of the service."""
    async with running_replica(settings, clock=clock) as started:
        yield started


@pytest.fixture
async def replicas(settings: Settings, clock: MovableClock) -> AsyncIterator[list[Replica]]:
    """Three instances that share one Valkey."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running_replica(settings, clock=clock)) for _ in range(3)]
