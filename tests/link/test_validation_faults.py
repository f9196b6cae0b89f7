"""Whatever the vendor does, credentials are sent once, and a running validation survives what passes."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.errors import (
    ServiceError,
    StoreUnavailable,
    UpstreamCredentialsRejected,
    UpstreamMalformed,
    UpstreamUnavailable,
)
from service.link import validate
from service.link.validate import Validations
from service.sandbox.faults import Kind
from service.sandbox.server import SandboxServer
from service.settings import Settings
from service.stores.records import ValidationRecord
from service.wiring import Timing
from tests.conftest import LeapingClock, Replica, running_replica
from tests.processes import eventually
from tests.shared import NEVER_SHUT
from tests.walk import PASSWORD

MIB = 2**20
"""As much as is read of an answer."""


@dataclass
class Losing:
    """Loses what is written down of a job that was begun, or could not be."""

    change: Callable[..., Awaitable[bool]]
    lost: bool = True
    tries: int = 0

    async def change_validation(
        self, session_id: str, validation_id: str, changes: dict[str, str], **rest: Any
    ) -> bool:
        if self.lost:
            self.tries += 1
            raise StoreUnavailable
        return await self.change(session_id, validation_id, changes, **rest)


@pytest.mark.parametrize(
    ("kind", "value", "after", "reason", "status"),
    [
        ("hang", None, False, "outcome_unknown", "OM500"),
        ("hang", None, True, "outcome_unknown", "OM500"),
        ("reset", None, False, "outcome_unknown", "OM500"),
        ("reset", None, True, "outcome_unknown", "OM500"),
        ("truncate", 60, True, "outcome_unknown", "OM500"),
        ("drip", 0.2, True, "outcome_unknown", "OM500"),
        ("status", 500, False, "utility_unavailable", "OM500"),
        ("status", 503, True, "utility_unavailable", "OM500"),
        ("status", 400, False, "utility_unavailable", "OM500"),
        ("status", 307, False, "utility_unavailable", "OM500"),
        ("malformed", None, True, "outcome_unknown", "OM500"),
        ("html", None, True, "outcome_unknown", "OM500"),
        ("huge", 2 * MIB, True, "outcome_unknown", "OM500"),
        ("gzip_bomb", 2 * MIB, True, "outcome_unknown", "OM500"),
    ],
)
async def test_credentials_are_sent_once_whatever_the_answer(
    shared: Replica,
    vendor: SandboxServer,
    *,
    kind: Kind,
    value: float | None,
    after: bool,
    reason: str,
    status: str,
) -> None:
    walk = await shared.walk().open()
    vendor.world.faults.add("jobs", kind, value=value, after=after)
    answer = await walk.validate("user_quick", wait=5)
    assert answer.status_code == 201, answer.text
    assert (answer.json()["status"], answer.json()["code"]) == (status, reason)
    assert (answer.json()["validation"]["state"], answer.json()["validation"]["reason"]) == ("failed", reason)
    assert answer.json()["message"] == "Rejected: Internal server error"
    # Whatever the vendor has done with the password, no library may send it again by itself.
    assert answer.json()["retryable"] is False
    assert len(vendor.world.calls.all("jobs")) == 1
    # The person may decide to try again.
    assert (await walk.validate("user_quick")).json()["validation"]["state"] == "succeeded"


async def test_credentials_answered_with_401_are_sent_once_more_with_a_new_token(
    replica: Replica, upstream: SandboxServer
) -> None:
    walk = await replica.walk().open()
    await replica.client.get("/v1/providers", headers=walk.headers)
    upstream.world.tokens.revoke_all()
    assert (await walk.validate("user_quick")).json()["validation"]["state"] == "succeeded"
    first, second = upstream.world.calls.all("jobs")
    assert (first.status, second.status) == (401, 201)
    assert first.headers["authorization"] != second.headers["authorization"]


async def test_credentials_answered_with_401_twice_are_given_up(replica: Replica, upstream: SandboxServer) -> None:
    walk = await replica.walk().open()
    upstream.world.faults.add("jobs", "status", value=401, times=None)
    answer = (await walk.validate("user_quick")).json()
    assert (answer["status"], answer["message"]) == ("OM410", "Rejected: Incorrect secret or client id")
    assert answer["validation"]["reason"] == "upstream_credentials_rejected"
    assert len(upstream.world.calls.all("jobs")) == 2


async def test_a_caller_who_leaves_does_not_stop_the_call(shared: Replica, vendor: SandboxServer) -> None:
    walk = await shared.walk().open()
    vendor.world.faults.add("jobs", "delay", value=0.3)
    leaving = asyncio.create_task(walk.validate("user_quick"))
    await eventually(lambda: vendor.world.calls.all("jobs"))
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    [validation] = (await walk.show()).json()["session"]["validations"]
    finished = (await walk.validation(validation["id"], wait=20)).json()["validation"]
    assert finished["state"] == "succeeded"
    assert len(vendor.world.calls.all("jobs")) == 1


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("status", 500),
        ("status", 429),
        ("status", 408),
        ("html", None),
        ("truncate", None),
        ("huge", 2 * MIB),
        ("malformed", None),
        ("gzip_bomb", 2 * MIB),
        ("reset", None),
        ("hang", None),
    ],
)
async def test_polls_that_fail_are_survived(
    shared: Replica, vendor: SandboxServer, kind: Kind, value: float | None
) -> None:
    walk = await shared.walk().open()
    vendor.world.faults.add("job", kind, value=value, times=2)
    answer = await walk.validate("user_quick")
    assert answer.json()["validation"]["state"] == "succeeded"
    assert len(vendor.world.calls.all("job")) == 3


@pytest.mark.parametrize("status", [404, 400, 403])
async def test_a_poll_that_is_clearly_refused_ends_the_validation(
    shared: Replica, vendor: SandboxServer, status: int
) -> None:
    walk = await shared.walk().open()
    vendor.world.faults.add("job", "status", value=status)
    answer = (await walk.validate("user_quick")).json()
    assert (answer["status"], answer["validation"]["reason"]) == ("OM500", "utility_unavailable")
    assert len(vendor.world.calls.all("job")) == 1


@pytest.mark.parametrize(
    ("status", "told"), [(401, (502, "upstream_credentials_rejected")), (500, (502, "upstream_error"))]
)
async def test_without_a_token_nothing_is_sent_and_no_password_attempt_is_counted(
    settings: Settings, upstream: SandboxServer, status: int, told: tuple[int, str]
) -> None:
    clock = LeapingClock()
    async with running_replica(settings, clock=clock, timing=Timing(limiter=NEVER_SHUT)) as replica:
        await without_a_token(replica, upstream, clock, status, told)


async def without_a_token(
    replica: Replica, upstream: SandboxServer, clock: LeapingClock, status: int, told: tuple[int, str]
) -> None:
    walk = await replica.walk().open(ttlSeconds=4 * 3600)
    await replica.client.get("/v1/providers", headers=walk.headers)
    clock.forward(3601)
    upstream.world.faults.add("token", "status", value=status, times=None)
    for _ in range(6):  # more than a session, or an account, may try passwords
        answer = await walk.validate("user_quick", PASSWORD)
        assert (answer.status_code, answer.json()["code"]) == told
    assert upstream.world.calls.all("jobs") == []
    assert (await walk.show()).json()["session"]["validations"] == []
    upstream.world.faults.clear()
    clock.forward(31)
    assert (await walk.validate("user_quick", PASSWORD)).json()["validation"]["state"] == "succeeded"


async def test_what_the_vendor_takes_to_accept_a_job_counts_as_waiting(
    shared: Replica, vendor: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = await shared.walk().open()
    validations = shared.app.state.steps.validations
    waited: list[float] = []

    async def wait(session_id: str, validation_id: str, seconds: float) -> ValidationRecord:
        waited.append(seconds)
        return await Validations.find(validations, session_id, validation_id)

    monkeypatch.setattr(validations, "wait", wait)
    vendor.world.faults.add("jobs", "delay", value=0.2)
    await walk.validate("user_never", wait=25)
    assert waited[0] <= 24.8


async def test_a_process_whose_lease_is_over_sends_nothing_and_says_so(
    replica: Replica, upstream: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = await replica.walk().open()
    monkeypatch.setattr(replica.app.state.steps.validations._watchers, "holds", lambda _: False)
    answer = (await walk.validate("user_quick")).json()
    assert (answer["code"], answer["validation"]["state"]) == ("interrupted", "failed")
    assert upstream.world.calls.all("jobs") == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UpstreamCredentialsRejected(), "upstream_credentials_rejected"),
        (UpstreamMalformed(), "upstream_malformed"),
        (UpstreamUnavailable(), "utility_unavailable"),
    ],
)
async def test_why_no_token_was_to_be_had_any_more_is_told(
    replica: Replica, upstream: SandboxServer, monkeypatch: pytest.MonkeyPatch, *, error: ServiceError, reason: str
) -> None:
    async def without(_: object, **__: object) -> None:
        raise error

    walk = await replica.walk().open()
    await replica.client.get("/v1/providers", headers=walk.headers)
    monkeypatch.setattr(replica.app.state.steps.validations._tokens, "authorized", without)
    answer = (await walk.validate("user_quick")).json()
    assert (answer["validation"]["reason"], answer["validation"]["state"]) == (reason, "failed")
    assert upstream.world.calls.all("jobs") == []


@pytest.fixture
def losing(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> Losing:
    """A store that loses what the vendor said of a job."""
    sessions = replica.app.state.steps.validations._sessions
    losing = Losing(sessions.change_validation)
    monkeypatch.setattr(sessions, "change_validation", losing.change_validation)
    return losing


async def test_what_the_vendor_said_is_written_down_once_redis_is_back(
    replica: Replica, upstream: SandboxServer, losing: Losing
) -> None:
    walk = await replica.walk().open()
    asking = asyncio.create_task(walk.validate("user_quick"))
    await eventually(lambda: losing.tries)
    await asyncio.sleep(0.1)
    losing.lost = False
    assert (await asking).json()["validation"]["state"] == "succeeded"
    assert losing.tries <= 2, "it tries again twice a second"
    assert len(upstream.world.calls.all("jobs")) == 1


async def test_what_cannot_be_written_down_for_long_is_given_up_and_logged(
    replica: Replica, upstream: SandboxServer, losing: Losing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "_RECORD_SECONDS", 0.0)
    upstream.world.faults.add("jobs", "status", value=500)
    walk = await replica.walk().open()
    with capture_logs() as logs:
        await walk.validate("user_quick", wait=None)
        await eventually(lambda: "validation_not_recorded" in {each["event"] for each in logs})
    [told] = [each for each in logs if each["event"] == "validation_not_recorded"]
    assert told["reason"] == "utility_unavailable"
    assert losing.tries == 1
