"""The embedded store, against the real server: who may reach it, what it remembers, and who ends it."""

import multiprocessing
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import redis
import redis.asyncio

from service.stores import embedded
from service.stores.embedded import DataDirInUse, EmbeddedStore, EmbeddedStoreError

LIVES_UNTIL_KILLED = """
import sys
from pathlib import Path
from service.stores.embedded import EmbeddedStore

store = EmbeddedStore(Path(sys.argv[1]) if sys.argv[1:] else None).start()
print(store.url, flush=True)
sys.stdin.read()
store.close()
"""


@pytest.fixture(autouse=True)
def temp_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temp directory of this test's own, with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as root:
        monkeypatch.setenv("TMPDIR", root)
        monkeypatch.setattr(tempfile, "tempdir", root)
        yield Path(root)


@pytest.fixture
def data_dir(temp_root: Path) -> Path:
    return temp_root / "data"


def owner(*arguments: str | Path) -> subprocess.Popen[str]:
    """Another process that owns a store; it prints the URL and closes the store when its input ends."""
    return subprocess.Popen(  # noqa: S603  # our own interpreter
        [sys.executable, "-c", LIVES_UNTIL_KILLED, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def killed_owner(*arguments: str | Path) -> tuple[Path, int]:
    """The socket and process id of a server whose owner was killed the hard way."""
    with owner(*arguments) as process:
        address = Path(unquote(first_line(process).removeprefix("unix://")))
        process.kill()
    return address, server_pid(address)


def client(address: str | Path) -> redis.Redis:
    return redis.Redis.from_url(address if isinstance(address, str) else f"unix://{address}", decode_responses=True)


def server_pid(address: str | Path) -> int:
    with client(address) as connected:
        return int(connected.info("server")["process_id"])


def is_listening(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(address)) == 0


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def socket_of(store: EmbeddedStore) -> Path:
    return Path(unquote(store.url.removeprefix("unix://")))


# Reaching it


async def test_its_url_works_with_both_kinds_of_client() -> None:
    with EmbeddedStore() as store:
        with client(store.url) as connected:
            connected.set("key", "value")
        async with redis.asyncio.Redis.from_url(store.url, decode_responses=True) as connected_async:
            assert await connected_async.get("key") == "value"


def test_a_path_that_needs_quoting_works(temp_root: Path) -> None:
    with EmbeddedStore(temp_root / "a b%20?c#d") as store, client(store.url) as connected:
        assert connected.ping()


def test_it_opens_no_tcp_port_and_never_evicts() -> None:
    with EmbeddedStore() as store, client(store.url) as connected:
        assert connected.config_get("port", "maxmemory-policy", "save") == {
            "port": "0",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        assert [listener["name"] for listener in _listeners(connected)] == ["unix"]


def _listeners(connected: redis.Redis) -> list[dict[str, str]]:
    return [value for name, value in connected.info("server").items() if name.startswith("listener")]


@pytest.mark.parametrize("lasting", [False, True])
def test_only_this_user_can_reach_it(temp_root: Path, *, lasting: bool) -> None:
    open_to_all = temp_root / "open"
    open_to_all.mkdir(mode=0o755)
    with EmbeddedStore(open_to_all if lasting else None) as store:
        address = socket_of(store)
        assert mode(address) == 0o700
        assert mode(address.parent) == 0o700
    assert mode(open_to_all) == 0o755


def test_a_new_data_directory_is_private(data_dir: Path) -> None:
    with EmbeddedStore(data_dir):
        assert mode(data_dir) == 0o700


def test_the_socket_of_a_long_data_directory_is_short(temp_root: Path) -> None:
    data_dir = temp_root / ("x" * 120)
    for count in (1, 2):
        with EmbeddedStore(data_dir) as store, client(store.url) as connected:
            assert connected.incr("count") == count
            assert mode(socket_of(store).parent) == 0o700
    assert list(temp_root.iterdir()) == [data_dir]


def test_a_long_temp_directory_is_passed_over(temp_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = temp_root / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with EmbeddedStore() as store:
        assert not list(long.iterdir())
        assert is_listening(socket_of(store))


# Remembering


def test_without_a_data_directory_a_restart_forgets_and_nothing_stays(temp_root: Path) -> None:
    with EmbeddedStore() as store, client(store.url) as connected:
        connected.set("key", "value")
        assert connected.config_get("appendonly") == {"appendonly": "no"}
    assert list(temp_root.iterdir()) == []
    with EmbeddedStore() as store, client(store.url) as connected:
        assert connected.get("key") is None


def test_with_a_data_directory_a_restart_remembers(data_dir: Path) -> None:
    with EmbeddedStore(data_dir) as store, client(store.url) as connected:
        connected.set("key", "value")
        assert connected.config_get("append*") | {"appendonly": "yes", "appendfsync": "everysec"} == (
            connected.config_get("append*")
        )
    with EmbeddedStore(data_dir) as store, client(store.url) as connected:
        assert connected.get("key") == "value"


# Owning


def test_close_ends_the_server_and_may_be_repeated() -> None:
    store = EmbeddedStore().start()
    address = socket_of(store)
    store.close()
    store.close()
    assert not is_listening(address)
    with pytest.raises(EmbeddedStoreError, match="not running"):
        _ = store.url


def test_a_running_store_is_not_started_twice() -> None:
    with EmbeddedStore() as store, pytest.raises(EmbeddedStoreError, match="already running"):
        store.start()


def test_a_closed_store_can_be_started_again() -> None:
    store = EmbeddedStore()
    for _ in range(2):
        with store, client(store.url) as connected:
            assert connected.ping()


def test_a_second_owner_in_this_process_is_refused(data_dir: Path) -> None:
    with EmbeddedStore(data_dir) as store:
        with pytest.raises(DataDirInUse, match="Another process is using the data directory"):
            EmbeddedStore(data_dir).start()
        assert is_listening(socket_of(store))


def test_a_second_owner_in_another_process_is_refused(data_dir: Path) -> None:
    with owner(data_dir) as process:
        address = Path(first_line(process).removeprefix("unix://"))
        with pytest.raises(DataDirInUse):
            EmbeddedStore(data_dir).start()
        assert is_listening(address)
        process.communicate()
    assert not is_listening(address)


def test_a_live_owner_of_a_temporary_store_is_left_alone() -> None:
    with owner() as process:
        address = Path(first_line(process).removeprefix("unix://"))
        with EmbeddedStore():
            assert is_listening(address)
        process.communicate()
    assert not address.parent.exists()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # pytest's own threads, at a fork
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_does_not_end_it(method: str) -> None:
    with EmbeddedStore() as store:
        pid = server_pid(store.url)
        child = multiprocessing.get_context(method).Process(  # type: ignore[attr-defined]  # only on concrete contexts
            target=store.close if method == "fork" else _use, args=() if method == "fork" else (store.url,)
        )
        child.start()
        child.join()
        assert child.exitcode == 0
        assert server_pid(store.url) == pid


def _use(url: str) -> None:
    with client(url) as connected:
        connected.ping()


def test_it_hears_no_ctrl_c(temp_root: Path) -> None:
    with owner() as process:
        address = Path(first_line(process).removeprefix("unix://"))
        assert os.getpgid(server_pid(address)) != os.getpgid(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        process.wait()
        assert is_listening(address)
    with EmbeddedStore():
        assert len(list(temp_root.iterdir())) == 1


# Ending what a killed owner left


def test_the_orphan_of_a_temporary_store_is_ended_at_the_next_start(temp_root: Path) -> None:
    address, pid = killed_owner()
    with EmbeddedStore() as store:
        assert not is_listening(address)
        assert server_pid(store.url) != pid
        assert list(temp_root.iterdir()) == [socket_of(store).parent]


@pytest.mark.parametrize("name", ["data", "x" * 120])
def test_the_orphan_of_a_data_directory_is_ended_and_its_data_kept(temp_root: Path, name: str) -> None:
    data_dir = temp_root / name
    address, pid = killed_owner(data_dir)
    with client(address) as connected:
        connected.set("key", "value")
    with EmbeddedStore(data_dir) as store, client(store.url) as connected:
        assert connected.get("key") == "value"
        assert server_pid(store.url) != pid
    assert list(temp_root.iterdir()) == [data_dir]


def test_an_orphan_that_refuses_to_end_is_killed() -> None:
    address, _ = killed_owner()
    with client(address) as connected:
        connected.execute_command("ACL SETUSER", "default", "-shutdown")
    with EmbeddedStore():
        assert not is_listening(address)
    assert not address.parent.exists()


def test_leftovers_without_a_server_are_removed(temp_root: Path) -> None:
    address, _ = killed_owner()
    with client(address) as connected:
        connected.shutdown(nosave=True)
    (address.parent / "valkey.pid").write_text(f"{os.getpid()}\n")
    with EmbeddedStore() as store:
        assert list(temp_root.iterdir()) == [socket_of(store).parent]


def test_what_is_not_proven_to_be_ours_is_left_alone() -> None:
    address, pid = killed_owner()
    pid_file = address.parent / "valkey.pid"
    pid_file.write_text(f"{os.getpid()}\n")
    with EmbeddedStore():
        assert server_pid(address) == pid
    pid_file.write_text(f"{pid}\n")
    address.parent.chmod(0o755)
    with EmbeddedStore():
        assert server_pid(address) == pid
    address.parent.chmod(0o700)
    with EmbeddedStore():
        assert not is_listening(address)


def test_a_data_directory_with_a_stranger_in_it_is_refused(data_dir: Path) -> None:
    address, pid = killed_owner(data_dir)
    pid_file = data_dir / "valkey" / "valkey.pid"
    pid_file.write_text(f"{os.getpid()}\n")
    with pytest.raises(EmbeddedStoreError, match="not known to be ours"):
        EmbeddedStore(data_dir).start()
    assert server_pid(address) == pid
    pid_file.write_text(f"{pid}\n")
    with EmbeddedStore(data_dir) as store:
        assert server_pid(store.url) != pid


def test_a_name_of_ours_that_is_no_directory_of_ours_is_left_alone(temp_root: Path) -> None:
    elsewhere = temp_root / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "owner.lock").touch()
    (temp_root / "omniconnect-bff-link").symlink_to(elsewhere)
    (temp_root / "omniconnect-bff-file").touch()
    unlocked = temp_root / "omniconnect-bff-unlocked"
    unlocked.mkdir(mode=0o700)
    with EmbeddedStore():
        pass
    assert {path.name.removeprefix("omniconnect-bff-") for path in temp_root.iterdir()} == {
        "elsewhere",
        "link",
        "file",
        "unlocked",
    }


# Failing


def test_a_server_that_takes_too_long_is_ended(temp_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_START_SECONDS", 0)
    with pytest.raises(EmbeddedStoreError, match="did not start"):
        EmbeddedStore().start()
    assert list(temp_root.iterdir()) == []


def test_a_damaged_data_directory_is_told_and_can_be_tried_again(data_dir: Path) -> None:
    with EmbeddedStore(data_dir) as store, client(store.url) as connected:
        connected.set("key", "value")
    manifest = data_dir / "valkey" / "appendonlydir" / "appendonly.aof.manifest"
    good = manifest.read_bytes()
    manifest.write_bytes(b"nonsense")
    with pytest.raises(EmbeddedStoreError, match=r"did not start:\n(.*\n)*.*MANIFEST"):
        EmbeddedStore(data_dir).start()
    manifest.write_bytes(good)
    with EmbeddedStore(data_dir) as store, client(store.url) as connected:
        assert connected.get("key") == "value"
