"""The sandbox on a port of its own."""

import socket
import threading
from types import TracebackType
from typing import Final, Self

import uvicorn
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.sandbox.app import create_sandbox
from service.sandbox.line import EXTENSION
from service.sandbox.world import Settings, World

__all__ = ["SandboxServer", "run"]

START_SECONDS: Final = 10.0
STOP_SECONDS: Final = 5.0
KEEP_ALIVE_SECONDS: Final = 65
"""Like a load balancer's; a shorter one makes clients trip over connections that have just closed."""


class SandboxServer:
    """The sandbox in a thread.

    `with SandboxServer() as sandbox:` gives `sandbox.url`, the base URL for a client, and `sandbox.world`, to look into
    and pull levers. Port 0 takes a free one, which a stopped server keeps for its next start, so that a vendor that is
    gone for a while can be played. Starting raises OSError when the port is taken.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        speed: float = 1.0,
        public_url: str | None = None,
        world: World | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.world = world or World(settings=Settings(speed=speed), public_url=public_url)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def origin(self) -> str:
        """Scheme, host and port: the levers and the sign-in page are here."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def url(self) -> str:
        """The vendor's base URL."""
        return f"{self.origin}/api"

    def start(self) -> Self:
        """Serve until stop() is called; returns when connections are accepted."""
        if self._thread is not None:
            raise RuntimeError("the sandbox runs already")
        listener = _listen(self.host, self.port)
        self.port = listener.getsockname()[1]
        self._server = server = _Server(self.world)
        self._thread = threading.Thread(target=server.run, args=([listener],), name="sandbox", daemon=True)
        self._thread.start()
        if not server.accepting.wait(START_SECONDS):
            raise RuntimeError("the sandbox did not start")
        return self

    def stop(self) -> None:
        """End all connections, hung ones included, and wait for the thread."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS)
        self._server = self._thread = None

    def reset(self) -> None:
        """Back to the first moment."""
        self.world.reset()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def run(host: str = "127.0.0.1", port: int = 8001, *, speed: float = 1.0, public_url: str | None = None) -> None:
    """Serve the sandbox in this thread until SIGINT or SIGTERM; raises OSError when the port is taken.

    `public_url` is the origin under which browsers reach the sandbox, when it is not the one that clients use.
    """
    world = World(settings=Settings(speed=speed), public_url=public_url)
    try:
        _Server(world).run([_listen(host, port)])
    except KeyboardInterrupt:
        return


class _Server(uvicorn.Server):
    """uvicorn that tells when it accepts, and that does not wait for callers when it stops."""

    def __init__(self, world: World) -> None:
        super().__init__(
            uvicorn.Config(
                create_sandbox(world),
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                proxy_headers=False,
                server_header=False,
                headers=[("server", "omnimetic-sandbox")],
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )
        self.accepting = threading.Event()

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await super().shutdown(sockets)


class _Protocol(HttpToolsProtocol):
    """HTTP that hands its transport to the app, which breaks connections on purpose."""

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.access_log = False  # the world keeps a better one
        self.scope["extensions"] = {EXTENSION: {"transport": self.transport}}


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)
