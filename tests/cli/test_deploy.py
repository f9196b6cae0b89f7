"""What can be said of image and compose file without an engine to run them."""

import base64
import re
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import Counter, Gauge, Histogram

from service import telemetry
from service.settings import Settings
from service.tenants import PREFIX
from tests.cli.conftest import ROOT

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
BUILDER, FINAL = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def test_the_image_runs_as_a_number_without_build_tools() -> None:
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", FINAL, re.MULTILINE)
    assert "RUN" not in FINAL
    assert FINAL.count("COPY") == FINAL.count("COPY --from=builder") == 1
    assert "--require-hashes" in BUILDER
    for line in ("EXPOSE 8000", "STOPSIGNAL SIGTERM", "OMNICONNECT_HOST=0.0.0.0", "/readyz"):
        assert line in FINAL


def test_no_secret_gets_into_a_layer() -> None:
    assert not re.search(r"^ARG|SECRET|KEYS|PASSWORD|CLIENT_ID|TOKEN", DOCKERFILE, re.MULTILINE)
    assert "COPY . " not in DOCKERFILE
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert [line for line in allowed if line and not line.startswith(("#", "!"))] == ["*", "**/__pycache__"]
    copied = {
        name.rstrip("/") for line in re.findall(r"^COPY (.*) \S+$", BUILDER, re.MULTILINE) for name in line.split()
    }
    assert set(copied) == {line[1:] for line in allowed if line.startswith("!")}


@pytest.mark.parametrize("name", ["bff", "valkey", "upstream"])
def test_every_service_is_hardened(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert "healthcheck" in service or name == "bff"


def test_compose_sets_only_what_is_a_setting_and_no_secret_that_could_be_taken_for_a_real_one() -> None:
    environment = COMPOSE["services"]["bff"]["environment"]
    assert {name.removeprefix(PREFIX).lower() for name in environment} <= set(Settings.model_fields)
    defaults = dict(re.findall(r"\$\{OMNICONNECT_(\w+):-([^}]*)\}", " ".join(map(str, environment.values()))))
    assert defaults["SANDBOX"] == "true"
    name, _, key = defaults["ENCRYPTION_KEYS"].partition(":")
    assert (name, base64.b64decode(key).strip()) == ("sandbox", b"sandbox only - not a secret")
    assert defaults["SECRET"] == "sandbox-secret"


def test_the_container_listens_at_the_port_by_which_browsers_know_it() -> None:
    bff = COMPOSE["services"]["bff"]
    port = bff["environment"]["OMNICONNECT_PORT"]
    assert bff["ports"] == [f"127.0.0.1:{port}:{port}"]  # else the demo's page is at no origin of the sandbox's client
    assert port == "${OMNICONNECT_PORT:-8000}"


def test_every_metric_is_in_the_table() -> None:
    told = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
    metrics = [each for each in vars(telemetry).values() if isinstance(each, (Counter, Gauge, Histogram))]
    assert len(metrics) > 5
    for each in metrics:
        [described] = each.describe()
        name = f"{described.name}_total" if isinstance(each, Counter) else described.name
        assert f"| `{name}` | {', '.join(each._labelnames)} | {described.documentation}" in told


def test_valkey_neither_evicts_nor_forgets() -> None:
    command = " ".join(COMPOSE["services"]["valkey"]["command"])
    assert "--maxmemory-policy noeviction" in command
    assert "--appendonly yes" in command


def test_both_locks_agree_and_name_no_place_to_download_from() -> None:
    locks = [(ROOT / name).read_text(encoding="utf-8") for name in ("requirements.lock", "requirements-dev.lock")]
    runtime, everything = (set(re.findall(r"^(\S+==[^\s;\\]+)", lock, re.MULTILINE)) for lock in locks)
    assert runtime < everything
    assert not any("://" in lock or "--index" in lock or "--find-links" in lock for lock in locks)


def test_the_threat_model_promises_nothing_that_no_test_shows() -> None:
    model = (ROOT / "deploy" / "threat-model.md").read_text(encoding="utf-8")
    rows = [line for line in model.splitlines() if line.startswith("| ") and "::" in line]
    assert len(rows) > 20
    for path, name in re.findall(r"`([a-z_/]+\.py)::(test_\w+)`", model):
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(encoding="utf-8"), f"{path}::{name}"
    threats = model.partition("## Who attacks")[2].partition("## What is not stopped")[0]
    assert {line for line in threats.splitlines()[4:] if line.startswith("| ")} <= set(rows)
