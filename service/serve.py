"""The serving process: its listener, its store if it has none, and its workers."""

import atexit
import base64
import binascii
import errno
import gc
import multiprocessing
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

import uvicorn
from prometheus_client import multiprocess as metrics_of_processes
from pydantic import SecretStr
from typing_extensions import override
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from service.protocol import HttpProtocol
from service.settings import Settings
from service.stores.embedded import EmbeddedStore, EmbeddedStoreError
from service.telemetry import configure_logs, log
from service.tenants import PREFIX

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["StartError", "address_of", "ended_by_signal", "listen", "listening_at", "serve", "worker_app"]

_KEEP_ALIVE_SECONDS: Final = 75
"""Longer than the 60 s of common load balancers, so that they and not we close idle connections."""

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_GRACEFUL_SECONDS: Final = 30
_HEALTH_CHECK_SECONDS: Final = 30
"""How long a worker may take to start when SIGHUP has them replaced one by one."""

_THREADS_SECONDS: Final = 0.1
_UNANSWERED_MS: Final = 12_000
_BACKLOG: Final = 4096
_KEY_FILE: Final = "encryption.key"
_KEY_BYTES: Final = 32
_METRICS_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"


class StartError(Exception):
    """Why the service cannot start, in words for a deployer."""


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Let SIGTERM and SIGINT end the block in order and the process with code 0.

    Without this they would end the process before the embedded store is, and uvicorn raises them once more when it has
    finished.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(0)

    previous = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def listen(settings: Settings) -> Iterator[list[socket.socket]]:
    """The bound sockets: the public one, and the one for operations if there is to be one.

    Connections are refused until the service is ready to take them.

    Raises:
        StartError: An address cannot be had.
    """
    with ExitStack() as stack:
        listeners = [stack.enter_context(_bound(settings.host, settings.port, f"{PREFIX}PORT"))]
        if settings.metrics_port is not None:
            place = _bound(settings.metrics_host, settings.metrics_port, f"{PREFIX}METRICS_PORT")
            listeners.append(stack.enter_context(place))
        yield listeners


@contextmanager
def _bound(host: str, port: int, setting: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":
            # Connections inherit it: a client that vanished is noticed by the first heartbeat that it does not take.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNANSWERED_MS)
        with listening_at(host, port, setting):
            listener.bind((host, port))
        yield listener


@contextmanager
def listening_at(host: str, port: int, setting: str) -> Iterator[None]:
    """Say what is wrong with an address that cannot be had, and which setting names it.

    Raises:
        StartError: It cannot be had.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"port {port} is taken; stop what listens there, or choose another with {setting}"
            ) from None
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}") from error


def address_of(listener: socket.socket) -> str:
    """Where to reach it from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- the opposite of binding to it
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(settings: Settings, listeners: list[socket.socket]) -> None:
    """Serve until a signal ends it.

    Raises:
        StartError: Something that it needs is missing or taken.
    """
    configure_logs(settings.log_level)
    with ExitStack() as stack:
        if settings.redis_url is None:
            settings = stack.enter_context(_embedded_store(settings))
        if settings.sandbox and settings.host not in _LOOPBACK:
            log.warning("sandbox_exposed", hint="whoever reaches this address can use the sandbox's public API key")
        mode, addresses = "sandbox" if settings.sandbox else "production", [address_of(each) for each in listeners]
        log.info("serving", url=addresses[0], operations=addresses[-1], mode=mode)
        if settings.metrics_port is not None:
            settings = settings.model_copy(update={"metrics_port": listeners[-1].getsockname()[1]})
        if settings.workers > 1:
            stack.enter_context(_environment_of(settings))
            _serve_with_workers(settings, listeners)
        else:
            _serve_alone(settings, listeners)


def _config(app: object, *, workers: int = 1) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        factory=isinstance(app, str),
        workers=workers,
        loop="uvloop",
        http=HttpProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACEFUL_SECONDS,
        timeout_worker_healthcheck=_HEALTH_CHECK_SECONDS,
        backlog=_BACKLOG,
    )


# One process

_GARBAGE: Final = (50_000, 20, 100)
"""New objects, young and middle collections before the next one looks; 700, 10, 10 is Python's own."""


def _outlive_threads() -> None:
    # pyreqwest's threads touch the interpreter for a moment after a call has ended. Taken down at that moment, it
    # aborts: one exit in ten without this pause, none of four hundred with half of it.
    atexit.register(time.sleep, _THREADS_SECONDS)


def _collect_seldom() -> None:
    """Look for garbage far less often than usual: requests leave hardly any, and looking takes a tenth of the time."""
    gc.freeze()
    gc.set_threshold(*_GARBAGE)
    gc.enable()


def _serve_alone(settings: Settings, listeners: list[socket.socket]) -> None:
    gc.disable()  # hardly anything that importing makes is garbage, and looking for it takes a tenth of the start
    # The parent of several workers needs none of it.
    from pyreqwest.exceptions import PyreqwestError  # noqa: PLC0415

    from service.app import create_app  # noqa: PLC0415

    try:
        app = create_app(settings)
    except (OSError, PyreqwestError) as error:
        told = f"no client to the upstream can be built; check {PREFIX}UPSTREAM_CA_FILE and {PREFIX}UPSTREAM_PROXY"
        raise StartError(told) from error
    _outlive_threads()
    _collect_seldom()
    uvicorn.Server(_config(app)).run(sockets=listeners)


# Several processes


def _serve_with_workers(settings: Settings, listeners: list[socket.socket]) -> None:
    workers = _Workers(_config(f"{__name__}:{worker_app.__name__}", workers=settings.workers), sockets=listeners)
    workers.run()
    if any(worker.exitcode == STARTUP_FAILURE for worker in workers.processes):
        raise StartError("a worker could not start; the log says why")


class _Workers(Multiprocess):
    """uvicorn's supervisor, which notices a death at once and lets go of the port when it stops.

    uvicorn's own way to notice is to ask the worker over a pipe. It waits for the answer of one that dies meanwhile,
    and takes one that starts slowly for hung.
    """

    @override
    def keep_subprocess_alive(self) -> None:
        for index, worker in enumerate(self.processes):
            if worker.process.is_alive() or self.should_exit.is_set():
                continue
            worker.join()
            metrics_of_processes.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
            if worker.exitcode == STARTUP_FAILURE:
                self.should_exit.set()
                return
            log.error("worker_died", exit_code=worker.exitcode)
            self.processes[index] = Process(self.config, self.sockets)
            self.processes[index].start()

    @override
    def terminate_all(self) -> None:
        # Else connections that come after the workers have closed theirs would wait for nobody.
        for listener in self.sockets:
            listener.close()
        super().terminate_all()


def worker_app() -> "FastAPI":
    """The app of a worker, which ends with its parent, however that one ends."""
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    gc.disable()
    try:
        from service.app import from_environment  # noqa: PLC0415

        app = from_environment()
    except Exception as error:  # noqa: BLE001 -- whatever it is, the next try would meet it again
        log.error("worker_cannot_start", exc_info=error)
        sys.exit(STARTUP_FAILURE)
    _outlive_threads()
    _collect_seldom()
    return app


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        shutil.rmtree(os.environ.get(_METRICS_DIR, ""), ignore_errors=True)
        os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def _environment_of(settings: Settings) -> Iterator[None]:
    """Hand to the workers what this process has worked out; the rest they read themselves."""
    url = settings.redis_url.get_secret_value() if settings.redis_url else ""
    ring = ",".join(f"{name}:{key.get_secret_value()}" for name, key in settings.encryption_keys.items())
    with tempfile.TemporaryDirectory(prefix="omniconnect-metrics-", ignore_cleanup_errors=True) as metrics:
        os.environ |= {f"{PREFIX}REDIS_URL": url, f"{PREFIX}ENCRYPTION_KEYS": ring, _METRICS_DIR: metrics}
        if settings.metrics_port is not None:
            os.environ[f"{PREFIX}METRICS_PORT"] = str(settings.metrics_port)
        os.environ.pop(f"{PREFIX}DATA_DIR", None)
        yield


# The embedded store


@contextmanager
def _embedded_store(settings: Settings) -> Iterator[Settings]:
    """Settings that point to a Valkey of our own, for as long as it runs."""
    if settings.data_dir is None and not settings.sandbox:
        log.warning("store_forgets", hint=f"without {PREFIX}DATA_DIR or {PREFIX}REDIS_URL a restart forgets everything")
    with ExitStack() as stack:
        try:
            store = stack.enter_context(EmbeddedStore(settings.data_dir))
        except (EmbeddedStoreError, OSError) as error:
            raise StartError(f"the embedded store: {error}") from error
        keys = settings.encryption_keys or {"embedded": SecretStr(_embedded_key(settings.data_dir))}
        yield settings.model_copy(update={"redis_url": SecretStr(store.url), "encryption_keys": keys, "data_dir": None})


def _embedded_key(data_dir: Path | None) -> str:
    """A key that lives as long as the data that it seals."""
    fresh = base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()
    if data_dir is None:
        return fresh
    path = data_dir / _KEY_FILE
    key, size = "", 0
    try:
        if not path.exists():
            with tempfile.NamedTemporaryFile("w", dir=data_dir, delete=False) as file:  # made with mode 600
                file.write(fresh)
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).rename(path)
        key = path.read_text(encoding="ascii").strip()
        size = len(base64.b64decode(key, validate=True))
    except OSError as error:
        raise StartError(f"the encryption key in {path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, binascii.Error):
        pass  # then its size is wrong
    if size != _KEY_BYTES:
        raise StartError(f"the encryption key in {path} is broken; without it what the store has sealed stays shut")
    return key
