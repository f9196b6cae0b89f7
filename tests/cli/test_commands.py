import base64
import hashlib
import json
import re

import pytest

from service.cli import doctor
from tests.cli.conftest import run


def test_a_new_key_comes_with_the_setting_that_takes_it() -> None:
    told, setting = run("keys", "new", "shop").stdout.splitlines()
    key = told.split()[-1]
    assert setting == f"OMNICONNECT_API_KEYS=shop:{hashlib.sha256(key.encode()).hexdigest()}"
    name, value = run("keys", "new", "main", "--encryption").stdout.strip().split("=", 1)
    assert name == "OMNICONNECT_ENCRYPTION_KEYS"
    assert len(base64.b64decode(value.removeprefix("main:"))) == 32


def test_a_new_key_may_be_restricted() -> None:
    told, setting = run(
        "keys", "new", "shop", "--scope", "sessions:read", "--scope", "providers:read"
    ).stdout.splitlines()
    digest = hashlib.sha256(told.split()[-1].encode()).hexdigest()
    assert setting == f"OMNICONNECT_API_KEYS=shop:{digest}:sessions:read+providers:read"
    assert run("keys", "new", "shop", "--scope", "everything").returncode == 2
    assert run("keys", "new", "shop", "--encryption", "--scope", "sessions:read").returncode == 2


def test_the_document_is_printed_without_any_setting() -> None:
    assert json.loads(run("openapi").stdout)["openapi"].startswith("3.1")


def test_help_names_every_command() -> None:
    told = run("--help").stdout
    for command in ("serve", "sandbox", "upstream", "link", "doctor", "keys", "openapi", "version"):
        assert re.search(rf"^\W*{command}\s", told, re.MULTILINE)
    assert run("version").stdout.strip().count(".") == 2


@pytest.mark.parametrize(
    ("date", "result"),
    [
        ("Thu, 01 Jan 1970 00:16:40 GMT", "ok"),
        ("Thu, 01 Jan 1970 00:17:11 GMT", "warn"),
        ("Thu, 01 Jan 1970 00:16:09 GMT", "warn"),
        ("yesterday", "warn"),
        (None, "warn"),
    ],
)
def test_half_a_minute_of_skew_is_told(date: str | None, result: str) -> None:
    assert doctor._clock(1000.0, date).result == result


def test_a_store_that_may_forget_is_a_fault() -> None:
    sound = {"maxmemory_policy": "noeviction", "aof_enabled": 1}
    for broken, check, result in (("maxmemory_policy", "redis memory", "fail"), ("aof_enabled", "redis data", "warn")):
        servers = [sound, sound | {broken: "allkeys-lru"}]
        found = {each.check: each.result for each in doctor._judged(servers, replicas=0)}
        assert found == dict.fromkeys(("redis server", "redis memory", "redis data", "redis replicas"), "ok") | {
            check: result
        }


@pytest.mark.parametrize(
    ("needed", "states", "result"),
    [
        (0, [], "ok"),
        (0, ["online"], "warn"),  # results are lost with the server
        (1, [], "fail"),  # no link is made
        (1, ["wait_bgsave"], "fail"),
        (1, ["online"], "warn"),  # none is made once it is lost
        (1, ["online", "online"], "ok"),
        (2, ["online", "wait_bgsave"], "fail"),
    ],
)
def test_as_many_replicas_as_links_wait_for_and_one_more(needed: int, states: list[str], result: str) -> None:
    followed = {f"slave{number}": {"state": state} for number, state in enumerate(states)}
    plenty = {f"slave{number}": {"state": "online"} for number in range(3)} if followed else {}
    for servers in ([followed], [followed, plenty]):
        found = {each.check: each.result for each in doctor._judged(servers, replicas=needed)}
        assert found["redis replicas"] == result
