"""Settings: what is wrong stops the start, all of it told at once, in words, and never with a value."""

import asyncio
import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.environment import load_settings
from service.settings import (
    DEFAULT_UPSTREAM_URL,
    SANDBOX_CLIENT_ID,
    SANDBOX_ENCRYPTION_KEY,
    SANDBOX_SECRET,
    Settings,
    SettingsError,
)
from service.tenants import SANDBOX_API_KEY_SHA256

KEY = base64.b64encode(b"k" * 32).decode()
REAL = {"CLIENT_ID": "5f0c1d2e3a", "SECRET": "a-real-secret-of-theirs"}
SANDBOX = {
    "SANDBOX": "true",
    "CLIENT_ID": SANDBOX_CLIENT_ID,
    "SECRET": SANDBOX_SECRET,
    "UPSTREAM_URL": "http://127.0.0.1:8001/api",
}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("OMNICONNECT_"):
            monkeypatch.delenv(name)


def faults(monkeypatch: pytest.MonkeyPatch, **values: str) -> list[str]:
    for name, value in values.items():
        monkeypatch.setenv(f"OMNICONNECT_{name}", value)
    try:
        load_settings()
    except SettingsError as error:
        return error.faults
    return []


def test_a_client_id_and_a_secret_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults(monkeypatch, **REAL) == []


def test_the_sandbox_needs_its_four(monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults(monkeypatch, **SANDBOX) == []


@pytest.mark.parametrize("proxies", ["0.0.0.0/0", "::/0", "10.0.0.0/8,0.0.0.0/0"])
def test_nobody_is_trusted_by_trusting_everybody(monkeypatch: pytest.MonkeyPatch, proxies: str) -> None:
    assert faults(monkeypatch, **REAL, TRUSTED_PROXIES="10.0.0.0/8,2001:db8::/32") == []
    assert faults(monkeypatch, TRUSTED_PROXIES=proxies) == ["OMNICONNECT_TRUSTED_PROXIES must not be everybody"]


def test_nothing_set_names_what_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults(monkeypatch) == ["OMNICONNECT_CLIENT_ID is required", "OMNICONNECT_SECRET is required"]


def test_an_empty_value_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "OMNICONNECT_SECRET is required" in faults(monkeypatch, CLIENT_ID="x", SECRET="")


ALL_WRONG = {
    "CLIENT_ID": "5f0c1d2e3a",
    "SECRET": "short",
    "UPSTREAM_URL": "http://plain.example/api",
    "CREDENTIALS_URL": "https://someone:canary-1@x.example",
    "UPSTREAM_PROXY": "canary-2://user:canary-3@proxy",
    "UPSTREAM_CA_FILE": "/canary-4/none.pem",
    "REDIS_URL": "redis://:canary-5@host:canary-6/0",
    "REDIS_PREFIX": "canary 7",
    "REDIS_TIMEOUT": "canary-8",
    "ENCRYPTION_KEYS": "a:canary-9",
    "API_KEYS": f"host:{SANDBOX_API_KEY_SHA256}",
    "PROVIDER_TABLE": '{"canary-10": {"signIn": "canary-11", "canary-12": 1}',
    "PORT": "canary-13",
    "WORKERS": "0",
    "LOG_LEVEL": "canary-14",
    "PUBLIC_URL": "canary-15",
    "DATA_DIR": "/canary-16",
    "PASSWORD": "canary-17",
}


def test_operations_need_a_port_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "OMNICONNECT_METRICS_PORT must be another one than OMNICONNECT_PORT"
    assert faults(monkeypatch, **REAL, METRICS_PORT="8000") == [told]
    assert faults(monkeypatch, **REAL, METRICS_PORT="9000") == []


def test_all_faults_are_told_at_once_and_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    found = faults(monkeypatch, **ALL_WRONG)
    told = "\n".join(found)
    assert "canary" not in told
    for name in ALL_WRONG.keys() - {"CLIENT_ID", "API_KEYS", "PASSWORD"}:
        assert sum(f"OMNICONNECT_{name}" in each for each in found) >= 1, f"{name} not in\n{told}"
    assert "OMNICONNECT_PASSWORD is not a setting" in found
    assert any("sandbox's API key" in each for each in found)


def test_missing_ones_do_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = faults(monkeypatch, SANDBOX="true", UPSTREAM_URL="https://app.omnimetic.com/api", REDIS_URL="redis://h")
    assert [each.split(" ")[0].rstrip(":") for each in found] == [
        "OMNICONNECT_CLIENT_ID",
        "OMNICONNECT_SECRET",
        "OMNICONNECT_ENCRYPTION_KEYS",
        "OMNICONNECT_UPSTREAM_URL",
    ]


@pytest.mark.parametrize("name", ["OMNICONNECT_CLIENTID", "omniconnect_client", "Omniconnect_Upstream"])
def test_a_name_that_is_no_setting_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "canary")
    assert faults(monkeypatch, **REAL) == [f"{name} is not a setting"]


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"CLIENT_ID": SANDBOX_CLIENT_ID}, "work only with OMNICONNECT_SANDBOX"),
        ({"SECRET": SANDBOX_SECRET}, "work only with OMNICONNECT_SANDBOX"),
        ({"UPSTREAM_URL": "http://127.0.0.1:8001/api"}, "OMNICONNECT_UPSTREAM_URL must be https"),
        ({"CREDENTIALS_URL": "http://127.0.0.1:8001/api"}, "OMNICONNECT_CREDENTIALS_URL must be https"),
        ({"API_KEYS": f"mine:{SANDBOX_API_KEY_SHA256}"}, "API key works only with OMNICONNECT_SANDBOX"),
        ({"ENCRYPTION_KEYS": f"mine:{SANDBOX_ENCRYPTION_KEY}"}, "works only with OMNICONNECT_SANDBOX"),
    ],
)
def test_what_belongs_to_the_sandbox_is_refused_outside_it(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], hint: str
) -> None:
    found = faults(monkeypatch, **(REAL | changes))
    assert len(found) == 1
    assert hint in found[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"CLIENT_ID": "5f0c1d2e3a"},
        {"SECRET": "a-real-secret-of-theirs"},
        REAL,
        {"UPSTREAM_URL": "https://app.omnimetic.com/api"},
        {"UPSTREAM_URL": "http://api.omnimetic.com"},
        {"UPSTREAM_URL": "http://API.OMNIMETIC.COM"},
        {"UPSTREAM_URL": "https://127.0.0.1/api"},
        {"CREDENTIALS_URL": "https://api.omnimetic.com"},
    ],
)
def test_what_looks_real_is_refused_in_the_sandbox(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]) -> None:
    found = faults(monkeypatch, **(SANDBOX | changes))
    assert len(found) == 1
    assert "OMNICONNECT_SANDBOX" in found[0]


def test_the_sandbox_is_not_the_default_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    without_address = {name: value for name, value in SANDBOX.items() if name != "UPSTREAM_URL"}
    assert any("UPSTREAM_URL looks real" in each for each in faults(monkeypatch, **without_address))


def test_redis_needs_encryption_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = faults(monkeypatch, **REAL, REDIS_URL="redis://h")[0]
    assert "OMNICONNECT_ENCRYPTION_KEYS is required" in missing
    assert "`omniconnect-bff keys new main --encryption`" in missing  # without the option it makes another kind
    assert faults(monkeypatch, ENCRYPTION_KEYS=f"a:{KEY}") == []


@pytest.mark.parametrize("keys", [f"a:{KEY},a:{KEY}", f"{KEY}", "a:", "a:AAAA", f"a b:{KEY}", f"a:{KEY},"])
def test_encryption_keys_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    found = faults(monkeypatch, **REAL, REDIS_URL="redis://h", ENCRYPTION_KEYS=keys)
    assert found
    assert all(each.startswith("OMNICONNECT_ENCRYPTION_KEYS") for each in found)
    assert KEY not in "".join(found)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://:pa%40ss@h:6379/2?health_check_interval=5",
        "rediss://user:pass@h?ssl_cert_reqs=required",
        "unix:///run/redis.sock?db=1",
        "redis+cluster://h:7000",
        "redis+sentinel://user:pass@a:26379,b/main/3",
        "redis+sentinel://[::1]:26379/main",
    ],
)
def test_addresses_of_redis(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert faults(monkeypatch, **REAL, ENCRYPTION_KEYS=f"a:{KEY}", REDIS_URL=url) == []


@pytest.mark.parametrize(
    "url",
    [
        "canary://h",
        "redis:canary",
        "redis://",
        "redis://[canary",
        "redis://h:canary",
        "redis://h:99999999",
        "redis://h?decode_responses=canary",
        "redis+sentinel://canary",
        "redis+sentinel:///main",
        "redis+sentinel://a:canary,b/main",
        "unix://",
    ],
)
def test_addresses_that_lead_to_no_redis_are_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    found = faults(monkeypatch, **REAL, ENCRYPTION_KEYS=f"a:{KEY}", REDIS_URL=url)
    assert len(found) == 1
    assert found[0].startswith("OMNICONNECT_REDIS_URL ")
    assert "canary" not in found[0]


def test_a_certificate_file_must_hold_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    junk = tmp_path / "ca.pem"
    junk.write_bytes(b"\xffjunk")
    assert "UPSTREAM_CA_FILE" in faults(monkeypatch, **REAL, UPSTREAM_CA_FILE=str(junk))[0]


@pytest.mark.parametrize("table", ["[]", "null", "{", '{"A": 1}', '{"A": {"nope": "canary"}}', '{"A":{"signIn":"x"}}'])
def test_a_provider_table_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    found = faults(monkeypatch, **REAL, PROVIDER_TABLE=table)
    assert found
    assert all(each.startswith("OMNICONNECT_PROVIDER_TABLE") for each in found)
    assert "canary" not in "".join(found)


def test_a_provider_table_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNICONNECT_PROVIDER_TABLE", '{"Some Utility": {"jobType": "SomeLogin"}}')
    assert faults(monkeypatch, **REAL) == []
    assert load_settings().provider_table["Some Utility"].job_type == "SomeLogin"


def test_no_way_to_print_settings_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "SECRET": "canary-a-secret",
        "REDIS_URL": "redis://:canary-b@h",
        "ENCRYPTION_KEYS": f"a:{KEY}",
        "UPSTREAM_PROXY": "http://u:canary-c@proxy:1",
    }
    assert faults(monkeypatch, CLIENT_ID="some-id", **secrets) == []
    settings = load_settings()
    dumps = [repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json(), f"{settings!r:>5}"]
    for dump in dumps:
        assert "canary" not in dump
        assert KEY not in dump


def test_settings_cannot_be_changed_or_extended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults(monkeypatch, **REAL) == []
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.secret = settings.secret  # type: ignore[misc]
    with pytest.raises(ValueError, match="extra_forbidden"):
        Settings(client_id="x", secret="y", nonsense=1)  # type: ignore[call-arg,arg-type]


async def test_serve_says_all_of_it_and_exits_with_2() -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("OMNICONNECT_")}
    wrong = {f"OMNICONNECT_{name}": value for name, value in ALL_WRONG.items()}
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "service", "serve"],
        env=variables | wrong,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "canary" not in ended.stderr + ended.stdout
    for name in ("SECRET", "PORT", "REDIS_URL", "PROVIDER_TABLE", "UPSTREAM_URL"):
        assert f"OMNICONNECT_{name}" in ended.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PUBLIC_URL", "http://link.example"),
        ("PUBLIC_URL", "https://link.example/?a=b"),
        ("PUBLIC_URL", "https://link.example/#here"),
        ("FRAME_ANCESTORS", "https://shop.example;script-src"),
        ("FRAME_ANCESTORS", "https://*"),
        ("FRAME_ANCESTORS", "http://shop.example"),
        ("RETURN_URLS", "http://app.example/linked"),
        ("RETURN_URLS", "javascript:alert(1)"),
        ("RETURN_URLS", "https://app.example/a|b"),
        ("RETURN_URLS", "https://app.example/linked?user=7"),
    ],
)
def test_addresses_of_the_hosted_page_that_cannot_be_meant(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    (fault,) = faults(monkeypatch, **REAL, **{name: value})
    assert fault.startswith(f"OMNICONNECT_{name}")
    assert value not in fault


def test_addresses_of_the_hosted_page_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    good = {
        "PUBLIC_URL": "https://link.example/connect",
        "FRAME_ANCESTORS": "https://shop.example,https://shop.example:8443",
        "RETURN_URLS": "https://app.example/linked,com.example.app:/linked,myapp://linked",
    }
    assert faults(monkeypatch, **REAL, **good) == []


# Keys with scopes, and tenants

HASH = "0" * 63


@pytest.mark.parametrize(
    ("given", "scopes"),
    [
        (f"shop:{HASH}1", {"sessions:write", "sessions:tokens", "sessions:read", "providers:read"}),
        (f"shop:{HASH}1:sessions:read", {"sessions:read"}),
        (f"shop:{HASH}1:sessions:write+providers:read", {"sessions:write", "providers:read"}),
    ],
)
def test_an_api_key_may_be_restricted(monkeypatch: pytest.MonkeyPatch, given: str, scopes: set[str]) -> None:
    assert faults(monkeypatch, **REAL, API_KEYS=given) == []
    assert load_settings().api_keys["shop"].scopes == scopes


@pytest.mark.parametrize(
    "given",
    [
        f"shop:{HASH}1:",
        f"shop:{HASH}1:canary",
        f"shop:{HASH}1:sessions:read+",
        f"shop:{HASH}1:sessions:read,sessions:write",
        f"shop:{HASH}1:SESSIONS:READ",
        f"shop:{HASH}",
        f"shop:{HASH}1,shop:{HASH}2",
        f"shop:{HASH}1,other:{HASH}1:sessions:read",
    ],
)
def test_a_key_that_would_be_read_otherwise_than_meant_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    (fault,) = faults(monkeypatch, **REAL, API_KEYS=given)
    assert fault.startswith("OMNICONNECT_API_KEYS")
    assert "canary" not in fault
    assert HASH not in fault


NORTH = {"clientId": "north-id", "secret": "a-real-secret-of-norths"}


def tenant_faults(monkeypatch: pytest.MonkeyPatch, path: Path, tenants: object, **more: str) -> list[str]:
    path.write_text(tenants if isinstance(tenants, str) else json.dumps(tenants))
    return faults(monkeypatch, **(REAL | {"TENANTS_FILE": str(path)} | more))


def test_a_further_tenant_needs_a_client_id_and_a_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert tenant_faults(monkeypatch, tmp_path / "tenants", {"north": NORTH}) == []
    settings = load_settings()
    assert [(name, rule.client_id) for name, rule in settings.tenants().items()] == [
        ("default", REAL["CLIENT_ID"]),
        ("north", "north-id"),
    ]
    assert settings.tenants()["north"].upstream_url == settings.upstream_url
    dumps = [repr(settings), str(settings.model_dump()), settings.model_dump_json(), repr(settings.tenants())]
    assert not [dump for dump in dumps if NORTH["secret"] in dump or REAL["SECRET"] in dump]


def test_all_faults_of_all_tenants_are_told_at_once_and_without_values(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = {
        "canary 1": NORTH,
        "default": NORTH,
        "north": {"secret": "canary-2", "canary-3": "canary-4", "apiKeys": ["canary-5"], "upstreamUrl": 7},
        "south": {
            "clientId": "sandbox-canary-6",
            "secret": "short",
            "upstreamUrl": "http://canary-7",
            "credentialsUrl": "https://canary-8:canary-9@x",
            "clients": {"canary 10": {"origins": ["canary-11"]}},
            "jwtIssuer": "canary-12",
            "returnUrls": ["javascript:canary-13"],
        },
        "east": "canary-14",
    }
    found = tenant_faults(monkeypatch, tmp_path / "tenants", wrong, LOG_LEVEL="INFO", PUBLIC_URL="http://canary-15")
    told = "\n".join(found)
    assert "canary" not in told
    assert told.count("TENANTS_FILE: a name is") == 2
    for place in ("clientId is required", "an unknown field", "apiKeys: each part", "upstreamUrl: "):
        assert f"TENANTS_FILE: north: {place}" in told, told
    for field in ("clientId", "secret", "upstreamUrl", "credentialsUrl", "clients", "jwtIssuer", "returnUrls"):
        assert f"TENANTS_FILE: south: {field}" in told, told
    assert "TENANTS_FILE: east" in told
    assert "OMNICONNECT_PUBLIC_URL" in told


@pytest.mark.parametrize("text", ["", "{", "[]", '"canary"', "\xff", '{"north": 1, "north": 2}', "[" * 100_000])
def test_a_file_that_holds_no_tenants_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    (fault,) = tenant_faults(monkeypatch, tmp_path / "tenants", text)
    assert fault.startswith("OMNICONNECT_TENANTS_FILE must hold")
    assert "canary" not in fault


def test_a_file_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert faults(monkeypatch, **REAL, TENANTS_FILE=str(tmp_path / "canary")) == [
        "OMNICONNECT_TENANTS_FILE cannot be read"
    ]


CLIENT = {"origins": ["https://shop.example"]}


@pytest.mark.parametrize(
    ("kind", "first", "north", "east"),
    [
        ("clientId", {}, {"clientId": REAL["CLIENT_ID"]}, {}),
        ("clientId", {}, {"clientId": "same"}, {"clientId": "same"}),
        ("apiKeys", {"API_KEYS": f"a:{HASH}1"}, {"apiKeys": [f"b:{HASH}1"]}, {}),
        ("apiKeys", {}, {"apiKeys": [f"a:{HASH}1"]}, {"apiKeys": [f"a:{HASH}1:sessions:read"]}),
        ("clients", {"CLIENTS": json.dumps({"web": CLIENT})}, {"clients": {"web": CLIENT}}, {}),
        ("clients", {}, {"clients": {"web": CLIENT}}, {"clients": {"web": CLIENT}}),
        ("jwtIssuer", {}, {"jwtIssuer": "https://id"}, {"jwtIssuer": "https://id"}),
    ],
)
def test_what_decides_for_whom_a_caller_acts_cannot_be_two_tenants(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    kind: str,
    first: dict[str, str],
    north: dict[str, object],
    east: dict[str, object],
) -> None:
    issuer = {"jwtAudience": "us", "jwtJwksUrl": "https://id/keys"} if kind == "jwtIssuer" else {}
    tenants = {"north": NORTH | issuer | north, "east": NORTH | issuer | {"clientId": "east-id"} | east}
    found = tenant_faults(monkeypatch, tmp_path / "tenants", tenants, **first)
    assert len(found) == 2
    assert f"OMNICONNECT_TENANTS_FILE: north: {kind}: one of them stands elsewhere, too; it can be only one's" in found
    for value in ("same", HASH, "https://id", REAL["CLIENT_ID"]):
        assert value not in "".join(found)


def test_two_tenants_may_have_keys_of_the_same_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tenants = {"north": NORTH | {"apiKeys": [f"shop:{HASH}2"]}}
    assert tenant_faults(monkeypatch, tmp_path / "tenants", tenants, API_KEYS=f"shop:{HASH}1") == []


@pytest.mark.parametrize(
    "changes", [{"clientId": "real-one"}, {"secret": "a-real-secret"}, {"nextSecret": "a-real-secret"}]
)
def test_a_further_tenant_of_the_sandbox_has_nothing_real(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, str]
) -> None:
    public = {"clientId": "sandbox-north", "secret": "sandbox-norths"}
    assert tenant_faults(monkeypatch, tmp_path / "tenants", {"north": public}, **SANDBOX) == []
    (fault,) = tenant_faults(monkeypatch, tmp_path / "tenants", {"north": public | changes}, **SANDBOX)
    assert "never real ones" in fault


def test_the_next_secret_is_checked_as_the_secret_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults(monkeypatch, **REAL, NEXT_SECRET="canary") == ["OMNICONNECT_NEXT_SECRET is too short to be one"]


def test_a_tenant_keeps_the_address_that_it_gives_for_credentials(tmp_path: Path) -> None:
    file = tmp_path / "tenants.json"
    given = "https://eu.omnimetic.example/api"
    file.write_text(json.dumps({"north": {"clientId": "north", "secret": "north-secret", "credentialsUrl": given}}))
    north = Settings(client_id="south", secret=SecretStr("south-secret"), tenants_file=file).tenants()["north"]
    assert (north.upstream_url, north.credentials_url) == (DEFAULT_UPSTREAM_URL, given)
