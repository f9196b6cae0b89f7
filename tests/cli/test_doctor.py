import base64
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from service.cli.doctor import examine
from service.sandbox.server import SandboxServer
from service.settings import Settings
from tests.cli.conftest import run
from tests.conftest import make_settings
from tests.faults.servers import ask, cluster, sentinel_with_replicas

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
    store = {"OMNICONNECT_REDIS_URL": valkey, "OMNICONNECT_ENCRYPTION_KEYS": KEYS}
    ended = run("doctor", **settings(upstream.url, **store, OMNICONNECT_METRICS_PORT="0"))
    assert (ended.returncode, ended.stderr) == (0, "")
    checks = [tuple(line.split(maxsplit=2)[:2]) for line in ended.stdout.replace("redis ", "redis-").splitlines()]
    assert ("fail", "redis") not in checks
    assert re.search(r"^ok +redis replicas +0 follow, and links wait for none$", ended.stdout, re.MULTILINE)
    assert re.search(r"^ok +metrics port +127.0.0.1:0 is free$", ended.stdout, re.MULTILINE)
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
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as taken,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        ports = {"OMNICONNECT_HOST": "::1", "OMNICONNECT_PORT": str(taken.getsockname()[1])}
        ports["OMNICONNECT_METRICS_PORT"] = str(other.getsockname()[1])
        gone = settings("http://127.0.0.1:1/api", **ports)
        code, rows = examined(**gone, OMNICONNECT_REDIS_URL="redis://127.0.0.1:1", OMNICONNECT_ENCRYPTION_KEYS=KEYS)
    assert code == 1
    assert {check for check, (result, _) in rows.items() if result == "fail"} == {
        "redis",
        "upstream",
        "credentials",
        "port",
        "metrics port",
    }


async def looked_at(settings: Settings) -> dict[str, tuple[str, str]]:
    return {each.check: (each.result, each.told) async for each in examine(settings)}


async def test_the_replicas_that_links_wait_for_are_counted(
    upstream: SandboxServer, prefix: str, tmp_path: Path
) -> None:
    async with sentinel_with_replicas(tmp_path, replicas=1) as fleet:
        rows = await looked_at(make_settings(fleet.url, upstream.url, prefix))
        assert rows["redis memory"] == ("ok", "maxmemory-policy is noeviction")
        assert rows["redis replicas"] == ("warn", "1 follows, and links wait for 1: none may be lost")
        rows = await looked_at(make_settings(fleet.url, upstream.url, prefix, redis_replicas=2))
        assert rows["redis replicas"] == ("fail", "1 follows, and links wait for 2: none can be made")


async def test_a_cluster_is_looked_at(upstream: SandboxServer, prefix: str, tmp_path: Path) -> None:
    async with cluster(tmp_path) as url:
        rows = await looked_at(make_settings(url, upstream.url, prefix))
    assert rows["redis memory"] == ("ok", "maxmemory-policy is noeviction")
    assert rows["redis replicas"] == ("fail", "0 follow, and links wait for 1: none can be made")


@pytest.mark.parametrize(
    ("given", "result"),
    [
        ({"public_url": "https://link.example"}, "warn"),
        ({"public_url": "https://link.example", "trusted_proxies": frozenset({"10.0.0.0/8"})}, "ok"),
        ({"public_url": "http://localhost:8000"}, None),
        ({}, None),
    ],
)
async def test_behind_a_proxy_that_is_not_trusted_all_callers_have_one_address(
    valkey: str, upstream: SandboxServer, prefix: str, given: dict[str, Any], result: str | None
) -> None:
    rows = await looked_at(make_settings(valkey, upstream.url, prefix, **given))
    assert rows.get("callers' addresses", (None,))[0] == result


async def test_a_store_that_does_not_tell_of_itself_is_told(valkey: str, upstream: SandboxServer, prefix: str) -> None:
    async with Redis.from_url(valkey) as redis:
        await ask(redis, "ACL", "SETUSER", prefix, "on", "nopass", "~*", "&*", "+@all", "-info")
        rows = await looked_at(make_settings(valkey.replace("://", f"://{prefix}:any@"), upstream.url, prefix))
        await ask(redis, "ACL", "DELUSER", prefix)
    assert rows["redis"][0] == "ok"
    assert rows["redis server"] == ("warn", "INFO is not allowed, so its settings were not read")
    assert "redis replicas" not in rows


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
