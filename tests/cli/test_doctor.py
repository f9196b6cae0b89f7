import base64
import json
import socket
from pathlib import Path

import pytest

from service.sandbox.server import SandboxServer
from tests.cli.conftest import run

KEYS = f"a:{base64.b64encode(bytes(32)).decode()}"


def settings(upstream_url: str, **more: str) -> dict[str, str]:
    return {
        "OMNICONNECT_SANDBOX": "true",
        "OMNICONNECT_CLIENT_ID": "sandbox-client-id",
        "OMNICONNECT_SECRET": "sandbox-secret",
        "OMNICONNECT_UPSTREAM_URL": upstream_url,
        "OMNICONNECT_PORT": "0",
        **more,
    }


def examined(**env: str) -> tuple[int, dict[str, tuple[str, str]]]:
    ended = run("doctor", "--json", **env)
    assert ended.stderr == ""
    return ended.returncode, {row["check"]: (row["result"], row["told"]) for row in json.loads(ended.stdout)}


def test_a_sound_deployment_is_told_in_one_line_per_check(upstream: SandboxServer, valkey: str) -> None:
    ended = run("doctor", **settings(upstream.url, OMNICONNECT_REDIS_URL=valkey, OMNICONNECT_ENCRYPTION_KEYS=KEYS))
    assert (ended.returncode, ended.stderr) == (0, "")
    checks = [tuple(line.split(maxsplit=2)[:2]) for line in ended.stdout.replace("redis ", "redis-").splitlines()]
    assert ("fail", "redis") not in checks
    assert len(upstream.world.calls.all("token")) == 1
    assert "maxmemory-policy is noeviction" in ended.stdout
    assert "set `appendonly yes`" in ended.stdout


def test_wrong_settings_are_all_told() -> None:
    code, rows = examined()
    assert code == 1
    assert rows == {"settings": ("fail", "OMNICONNECT_SECRET is required")}


def test_refused_credentials_and_a_wrong_clock_are_told_apart_from_an_upstream_that_is_gone(
    upstream: SandboxServer,
) -> None:
    upstream.world.faults.add("token", "status", value=401)
    code, rows = examined(**settings(upstream.url))
    assert code == 1
    assert rows["upstream"][0] == rows["clock"][0] == rows["store"][0] == rows["port"][0] == "ok"
    assert rows["credentials"] == ("fail", "the upstream refuses the client id and secret")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        gone = settings("http://127.0.0.1:1/api", OMNICONNECT_PORT=port)
        code, rows = examined(**gone, OMNICONNECT_REDIS_URL="redis://127.0.0.1:1", OMNICONNECT_ENCRYPTION_KEYS=KEYS)
    assert code == 1
    assert {check for check, (result, _) in rows.items() if result == "fail"} == {
        "redis",
        "upstream",
        "credentials",
        "port",
    }


def test_each_tenant_and_a_secret_that_is_to_come_are_looked_at(
    upstream: SandboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tenants.json"
    file.write_text(json.dumps({"north": {"clientId": "sandbox-north", "secret": "sandbox-canary"}}))
    more = {"OMNICONNECT_TENANTS_FILE": str(file), "OMNICONNECT_NEXT_SECRET": "sandbox-next"}
    code, rows = examined(**settings(upstream.url, **more))
    assert code == 1
    assert rows["credentials"] == ("ok", "the upstream accepts the client id and secret")
    assert rows["next secret"] == ("warn", "the upstream does not accept it yet")
    assert rows["credentials north"] == ("fail", "the upstream refuses the client id and secret")
    assert rows["callers north"][0] == "warn"
    # From the other side of the change.
    monkeypatch.setattr(upstream.world, "secrets", frozenset({"sandbox-next"}))
    code, rows = examined(**settings(upstream.url, OMNICONNECT_NEXT_SECRET="sandbox-next"))
    assert code == 0
    assert rows["credentials"] == ("warn", "the upstream refuses the client id and secret")
    assert rows["next secret"] == ("ok", "the upstream accepts the client id and secret")
