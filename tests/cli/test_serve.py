import base64
import itertools
import json
import os
import re
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.sandbox.server import SandboxServer
from tests.cli.conftest import Running, ready, run, until
from tests.plain import NO_TLS
from tests.walk import APS, SRP

Start = Callable[..., Running]


def sandbox_settings(upstream: SandboxServer, tmp: Path, **more: str) -> dict[str, str]:
    return {
        "OMNICONNECT_SANDBOX": "true",
        "OMNICONNECT_CLIENT_ID": "sandbox-client-id",
        "OMNICONNECT_SECRET": "sandbox-secret",
        "OMNICONNECT_UPSTREAM_URL": upstream.url,
        "OMNICONNECT_POLL_SECONDS": "0.05",
        "OMNICONNECT_PORT": "0",
        "TMPDIR": str(tmp),
        **more,
    }


def open_session(client: httpx.Client) -> tuple[str, dict[str, str]]:
    session = client.post("/v1/sessions").raise_for_status().json()["session"]
    return f"/v1/sessions/{session['id']}", {"Authorization": f"Bearer {session['token']}"}


def sign_in(client: httpx.Client, path: str, headers: dict[str, str], username: str, provider: str = APS) -> str:
    body = {"providerId": provider, "username": username, "password": "pass_good"}
    answer = client.post(f"{path}/validations", headers=headers | {"Prefer": "wait=1"}, json=body)
    return str(answer.raise_for_status().json()["validation"]["id"])


def account_ids(client: httpx.Client, path: str, headers: dict[str, str]) -> list[str]:
    answer = client.get(f"{path}/service-accounts", headers=headers).raise_for_status()
    return [each["id"] for each in answer.json()["serviceAccounts"]]


def store_pids(tmp: Path) -> list[int]:
    return [int(each.read_text()) for each in tmp.glob("**/valkey.pid")]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_sigterm_is_announced_then_waiters_go_and_links_finish_before_the_process_and_its_store_end(
    start: Start, upstream: SandboxServer, short_tmp: Path
) -> None:
    running = start("serve", **sandbox_settings(upstream, short_tmp, OMNICONNECT_DRAIN_SECONDS="1.5"))
    with running.serving() as client, ThreadPoolExecutor() as pool:
        path, headers = open_session(client)
        sign_in(client, path, headers, "user_quick")
        ids = account_ids(client, path, headers)
        waiting_for = sign_in(client, path, headers, "user_never", provider=SRP)
        patient = headers | {"Prefer": "wait=25"}
        waiter = pool.submit(client.get, f"{path}/validations/{waiting_for}", headers=patient)
        upstream.world.faults.add("batch", "delay", value=3)
        link = pool.submit(client.post, f"{path}/links", headers=headers, json={"serviceAccountIds": ids})
        until(lambda: len(upstream.world.calls.all("batch")) == 1)
        (store,) = store_pids(short_tmp)

        running.process.send_signal(signal.SIGTERM)

        until(lambda: client.get("/readyz").status_code == 503)
        assert client.get("/readyz").json()["status"] == "draining"
        # Load balancers have not noticed yet, and what they send is served.
        assert client.get(path).status_code == 200
        open_session(client)
        assert waiter.result().json()["validation"]["state"] == "pending"
        assert link.result().status_code == 201
        assert running.process.wait(10) == 0
    assert not is_alive(store)
    assert list(short_tmp.iterdir()) == []


def test_the_clients_threads_interrupt_nobody_and_the_event_loop_is_scheduled_as_usual(
    start: Start, upstream: SandboxServer, short_tmp: Path
) -> None:
    running = start("serve", **sandbox_settings(upstream, short_tmp))
    with running.serving() as client:
        path, headers = open_session(client)  # which has called the vendor
        assert client.get(path, headers=headers).status_code == 200
        threads = [int(each.name) for each in Path(f"/proc/{running.process.pid}/task").iterdir()]
        policies = {
            Path(f"/proc/{running.process.pid}/task/{thread}/comm").read_text().strip(): os.sched_getscheduler(thread)
            for thread in threads
        }
    assert policies["pyreqwest"] == os.SCHED_BATCH
    assert os.SCHED_BATCH not in {policy for name, policy in policies.items() if not name.startswith("pyreqwest")}


def test_uvicorn_is_silent_and_every_line_of_the_log_is_json(
    start: Start, upstream: SandboxServer, short_tmp: Path
) -> None:
    running = start("serve", **sandbox_settings(upstream, short_tmp))
    with running.serving():
        pass
    assert running.end(signal.SIGINT) == 0
    assert {each["event"] for each in running.events()} <= {"serving", "request"}


def test_a_data_directory_keeps_sessions_and_their_key_over_a_restart(
    start: Start, upstream: SandboxServer, short_tmp: Path
) -> None:
    data = short_tmp / "data"
    settings = sandbox_settings(upstream, short_tmp, OMNICONNECT_DATA_DIR=str(data))
    first = start("serve", **settings)
    with first.serving() as client:
        path, headers = open_session(client)
        sign_in(client, path, headers, "user_quick")
        before = account_ids(client, path, headers)
        taken = run("serve", **settings)
        assert taken.returncode == 1
        assert taken.stderr.splitlines()[-1].startswith("omniconnect-bff: the embedded store: Another process")
    assert (data / "encryption.key").stat().st_mode & 0o777 == 0o600
    first.end(signal.SIGKILL)
    second = start("serve", **settings)
    with second.serving() as client:
        assert account_ids(client, path, headers) == before
    second.end(signal.SIGINT)
    (data / "encryption.key").write_text("broken")
    assert (
        run("serve", **settings)
        .stderr.splitlines()[-1]
        .startswith(f"omniconnect-bff: the encryption key in {data}/encryption.key is broken")
    )


def test_workers_share_store_and_metrics_are_replaced_and_end_with_a_killed_parent(
    start: Start, upstream: SandboxServer, short_tmp: Path
) -> None:
    settings = sandbox_settings(upstream, short_tmp, OMNICONNECT_WORKERS="2", OMNICONNECT_METRICS_PORT="0")
    running = start("serve", **settings)
    with running.serving() as client:
        operations = next(each for each in running.events() if each["event"] == "serving")["operations"]
        calls = itertools.count()

        def both_have_answered() -> bool:
            next(calls)  # on a connection of its own, so that either may get it
            assert httpx.get(f"{client.base_url}/livez", trust_env=False, verify=NO_TLS).status_code == 200
            return len(list(short_tmp.glob("omniconnect-metrics-*/counter_*.db"))) == 2

        until(both_have_answered)
        assert (
            f'route="/livez",status="200"}} {next(calls)}.0' in httpx.get(f"{operations}/metrics", trust_env=False).text
        )
        assert client.get("/metrics").status_code == 404
        assert httpx.get(f"{operations}/v1/providers", trust_env=False).status_code == 404
        path, headers = open_session(client)
        sign_in(client, path, headers, "user_quick")
        assert client.post(
            f"{path}/links", headers=headers, json={"serviceAccountIds": account_ids(client, path, headers)}
        ).is_success
        (store,) = store_pids(short_tmp)
        victim = next(short_tmp.glob("omniconnect-metrics-*/counter_*.db")).stem.removeprefix("counter_")
        os.kill(int(victim), signal.SIGKILL)
        running.line("worker_died")
        assert client.get(path).status_code == 200
        running.end(signal.SIGKILL)
        until(lambda: not ready(client))
    again = start("serve", **settings)
    with again.serving():
        pass
    assert not is_alive(store)
    assert again.end() == 0
    assert list(short_tmp.iterdir()) == []


@pytest.mark.parametrize("command", [("serve",), ("sandbox", "--upstream-port", "0")])
def test_a_taken_port_is_told_in_a_sentence(command: tuple[str, ...], upstream: SandboxServer, short_tmp: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run(*command, **sandbox_settings(upstream, short_tmp, OMNICONNECT_PORT=port))
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        f"omniconnect-bff: port {port} is taken; stop what listens there, or choose another with OMNICONNECT_PORT"
    ]


def test_what_the_sandbox_says_to_try_reaches_it_at_another_port(start: Start, short_tmp: Path) -> None:
    running = start("sandbox", "--upstream-port", "0", OMNICONNECT_PORT="0", TMPDIR=str(short_tmp))
    _, _, arguments = running.line("  try  ").rstrip().partition("omniconnect-bff ")
    with running.serving() as client:
        assert arguments.split() == ["link", "--url", str(client.base_url)]
        assert run(*arguments.split(), "--json", "--username", "user_quick").returncode == 0


def test_a_taken_port_of_the_sandbox_upstream_is_told_in_a_sentence(upstream: SandboxServer) -> None:
    for command in (("sandbox", "--upstream-port"), ("upstream", "--port")):
        ended = run(*command, str(upstream.port))
        assert ended.returncode == 1
        assert f"port {upstream.port} is taken" in ended.stderr.splitlines()[-1]


def test_wrong_settings_stop_the_start_with_all_faults_in_words() -> None:
    ended = run("serve", OMNICONNECT_PORT="eighty", OMNICONNECT_UPSTREAM_URL="http://plain.test", OMNICONNECT_NO="1")
    assert ended.returncode == 2
    for fault in ("CLIENT_ID is required", "SECRET is required", "PORT: ", "URL must be https", "NO is not a setting"):
        assert fault in ended.stderr


def test_a_store_that_cannot_be_reached_is_told_once_with_its_reason(
    start: Start, upstream: SandboxServer, short_tmp: Path
) -> None:
    store = {
        "OMNICONNECT_REDIS_URL": "redis://name:canary@127.0.0.1:1",
        "OMNICONNECT_ENCRYPTION_KEYS": f"main:{base64.b64encode(bytes(32)).decode()}",
    }
    running = start("serve", **sandbox_settings(upstream, short_tmp, **store))
    url = json.loads(running.line('"event":"serving"'))["url"]
    told = json.loads(running.line("store_lost"))
    assert (told["level"], told["error"]) == ("error", "ConnectionError")
    assert "omniconnect-bff doctor" in told["hint"]
    with httpx.Client(base_url=url, trust_env=False, verify=NO_TLS) as client:
        until(lambda: failures(client) > 20)
        assert not ready(client)
    running.end(signal.SIGINT)
    names = [each["event"] for each in running.events()]
    assert (names.count("store_lost"), names.count("notices_lost")) == (1, 1)
    assert "canary" not in "".join(running.lines)


def failures(client: httpx.Client) -> float:
    told = re.findall(r"^omniconnect_store_failures_total\{.*\} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return sum(map(float, told))


def test_a_worker_that_cannot_start_ends_the_service(upstream: SandboxServer, short_tmp: Path) -> None:
    broken = short_tmp / "fastapi_swagger.py"
    broken.write_text("raise OSError")
    settings = sandbox_settings(upstream, short_tmp, OMNICONNECT_WORKERS="2", PYTHONPATH=str(short_tmp))
    ended = run("serve", **settings)
    assert ended.returncode == 1
    assert "worker_cannot_start" in ended.stderr
    assert ended.stderr.splitlines()[-1] == "omniconnect-bff: a worker could not start; the log says why"
