"""What the README says is so."""

import re
import subprocess
import sys
from typing import Any

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from service import errors
from service.api import step_errors, views
from service.api.envelope import HTTP_STATUS
from service.settings import Settings
from service.tenants import PREFIX
from tests.cli.conftest import ROOT, environment

README = (ROOT / "README.md").read_text(encoding="utf-8")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True)
    if value is None or value in ({}, frozenset()) or isinstance(value, SecretStr):
        return ""
    if isinstance(value, frozenset):
        value = ",".join(sorted(value))
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def settings_table() -> str:
    rows = [
        f"| `{PREFIX}{name.upper()}` | {_default(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | what it is |", "|---|---|---|", *rows])


def test_every_setting_is_in_the_table() -> None:
    assert settings_table() in README, f"the table should be:\n{settings_table()}"


@pytest.mark.xdist_group("sandbox command")
def test_the_walk_with_curl_can_be_pasted_letter_for_letter(sandbox: str) -> None:
    section = README.partition("## A walk with curl")[2].partition("\n## ")[0]
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL))
    ended = subprocess.run(
        ["bash", "-euo", "pipefail"],  # noqa: S607
        input=commands,
        env=environment(BFF=sandbox, no_proxy="*"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    last = ended.stdout.splitlines()[-1]
    assert last.startswith('{"status":"OM200","message":"Resolved: User account(s) successfully linked"')


@pytest.mark.xdist_group("sandbox command")
def test_the_servers_part_can_be_run_as_it_stands(sandbox: str) -> None:
    [code] = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    ended = subprocess.run(
        [sys.executable, "-"],
        input=f"{code}\nprint(session['state'], session['subject'])",
        env=environment(BFF=sandbox, no_proxy="*"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.stdout, ended.stderr) == ("open person-7\n", "")


def test_every_code_is_in_the_table_with_its_statuses() -> None:
    section = README.partition("## What answers look like")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\d, ]+) \| ([^|]+) \| (.+) \|$", section, re.MULTILINE)
    told = {
        (int(status), fault, code)
        for statuses, faults, codes in rows
        for status in statuses.split(", ")
        for fault in re.findall(r"OM\d+", faults)
        for code in re.findall(r"`([a-z_]+)`", codes)
    }
    endings = [*views._ENDINGS.values(), step_errors.UserClosed(), errors.SessionExpired()]
    read = {(200, each.fault.value, each.code) for each in endings}
    assert read | {(status, each.fault.value, each.code) for each, status in HTTP_STATUS.items()} <= told


def test_every_file_that_is_pointed_to_exists() -> None:
    for readme in (ROOT / "README.md", ROOT / "deploy" / "README.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", readme.read_text(encoding="utf-8")):
            assert (readme.parent / target).exists(), target
