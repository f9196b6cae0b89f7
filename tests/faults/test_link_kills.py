"""A process is killed (-9) at each point of the link step: there is a result, or nothing was sent, or it is unknown."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from multiprocessing.context import ForkServerProcess
from typing import Final

import httpx
import pytest

from service.sandbox.server import SandboxServer
from service.settings import Settings
from tests.conftest import ENCRYPTION_KEYS, MovableClock, Replica, running_replica
from tests.faults.link_launcher import TIMING, doomed
from tests.link.waiting import until
from tests.plain import NO_TLS
from tests.walk import Walk

pytestmark = pytest.mark.xdist_group("link kills")  # they fork from one process

NOTHING_SENT: Final = [
    ("link_begin", "before"),
    ("link_begin", "after"),
    ("guard_claim", "before"),
    ("guard_claim", "after"),
    ("guard_mark", "before"),
]
UNKNOWN: Final = [
    ("guard_mark", "after", 0),
    ("batch", "before", 0),
    ("batch", "meanwhile", 1),
    ("batch", "after", 1),
    ("guard_result", "before", 1),
]
LINKED: Final = [
    ("guard_result", "after"),
    ("link_settle", "before"),
    ("link_settle", "after"),
]


@pytest.fixture
async def survivor(settings: Settings, clock: MovableClock) -> AsyncIterator[Replica]:
    async with running_replica(settings, clock=clock, timing=TIMING) as replica:
        yield replica


def _victim(
    settings: Settings, operation: str, moment: str
) -> AbstractAsyncContextManager[tuple[str, ForkServerProcess]]:
    assert settings.redis_url is not None
    given = {
        "SANDBOX": "true",
        "CLIENT_ID": settings.client_id,
        "SECRET": settings.secret.get_secret_value(),
        "UPSTREAM_URL": settings.upstream_url,
        "REDIS_URL": settings.redis_url.get_secret_value(),
        "REDIS_PREFIX": settings.redis_prefix,
        "REDIS_TIMEOUT": "1",
        "ENCRYPTION_KEYS": ",".join(f"{name}:{key.get_secret_value()}" for name, key in ENCRYPTION_KEYS.items()),
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMNICONNECT_")}
    return doomed(
        environment | {f"OMNICONNECT_{name}": value for name, value in given.items()},
        operation=operation,
        moment=moment,
    )


async def _linked_by_a_victim(
    settings: Settings, upstream: SandboxServer, walk: Walk, operation: str, moment: str
) -> list[str]:
    """Sign in at the survivor, and ask a process for the link that dies over it."""
    ids = await walk.ready("user_quick")
    async with (
        _victim(settings, operation, moment) as (url, process),
        httpx.AsyncClient(base_url=url, timeout=20, trust_env=False, verify=NO_TLS) as client,
    ):
        if moment == "meanwhile":
            upstream.world.faults.add("batch", "delay", value=0.3)
        asking = asyncio.create_task(walk.at(client).link(ids))
        if moment == "meanwhile":
            await until(lambda: _batches(upstream))
            process.kill()
        with pytest.raises(httpx.TransportError):
            await asking
        await asyncio.to_thread(process.join)
        assert process.exitcode == -9
    return ids


def _batches(upstream: SandboxServer) -> int:
    return len(upstream.world.calls.all("batch"))


async def _state(walk: Walk) -> str:
    state: str = (await walk.show()).json()["session"]["state"]
    return state


async def _becomes(walk: Walk, state: str) -> None:
    """What the session tells leads to `state` and nowhere else."""

    async def is_there() -> bool:
        now = await _state(walk)
        assert now in {"linking", state}
        return now == state

    await until(is_there)


@pytest.mark.parametrize(("operation", "moment"), NOTHING_SENT)
async def test_killed_before_the_mark_nothing_was_sent_and_a_retry_links(
    settings: Settings, survivor: Replica, upstream: SandboxServer, operation: str, moment: str
) -> None:
    walk = survivor.walk()
    ids = await _linked_by_a_victim(settings, upstream, walk, operation, moment)
    assert await _state(walk) == ("open" if (operation, moment) == ("link_begin", "before") else "linking")
    assert _batches(upstream) == 0
    retries = await asyncio.gather(*(walk.link(ids) for _ in range(3)))
    assert [each.status_code for each in retries] == [201] * 3
    assert await _state(walk) == "linked"
    assert _batches(upstream) == 1


@pytest.mark.parametrize(("operation", "moment", "sent"), UNKNOWN)
async def test_killed_between_mark_and_result_it_is_unknown_and_no_retry_sends_unasked(
    settings: Settings, survivor: Replica, upstream: SandboxServer, *, operation: str, moment: str, sent: int
) -> None:
    walk, other = survivor.walk(), survivor.walk()
    ids = await _linked_by_a_victim(settings, upstream, walk, operation, moment)
    await other.ready("user_quick")
    retries = await asyncio.gather(*(each.link(ids) for each in (walk, walk, other)))
    assert [each.status_code for each in retries] == [504] * 3
    told = retries[0].json()["attempts"]
    assert [each.json()["attempts"] for each in retries] == [told] * 3
    session = (await walk.show()).json()["session"]
    assert (session["state"], session["attempts"]) == ("unknown", told)
    assert _batches(upstream) == sent
    assert (await walk.link(ids, resendUnknown=told)).status_code == 201
    assert await _state(walk) == await _state(other) == "linked"
    assert _batches(upstream) == sent + 1


@pytest.mark.parametrize(("operation", "moment"), LINKED)
async def test_killed_after_the_result_was_recorded_it_is_linked(
    settings: Settings, survivor: Replica, upstream: SandboxServer, operation: str, moment: str
) -> None:
    walk = survivor.walk()
    ids = await _linked_by_a_victim(settings, upstream, walk, operation, moment)
    session = (await walk.show()).json()["session"]
    assert session["state"] == "linked"
    assert session["outcome"]["serviceAccounts"] == [{"id": each} for each in sorted(ids)]
    retry = await walk.link(ids)
    assert retry.status_code == 201
    assert retry.json()["link"]["id"] == session["link"]["id"]
    assert _batches(upstream) == 1


@pytest.mark.parametrize(
    ("operation", "moment", "state"),
    [("guard_claim", "after", "closed"), ("guard_mark", "after", "unknown"), ("guard_result", "after", "linked")],
)
async def test_a_session_whose_link_was_killed_can_be_closed_as_far_as_it_had_not_come(
    settings: Settings, survivor: Replica, upstream: SandboxServer, *, operation: str, moment: str, state: str
) -> None:
    walk = survivor.walk()
    ids = await _linked_by_a_victim(settings, upstream, walk, operation, moment)
    before = _batches(upstream)

    async def closes() -> bool:
        answer = await walk.close()
        if answer.status_code == 409:
            return False
        assert answer.json()["session"]["state"] == state
        return True

    await until(closes)
    retry = await walk.link(ids)
    assert retry.status_code == {"closed": 409, "unknown": 504, "linked": 201}[state]
    assert _batches(upstream) == before


async def test_without_a_retry_a_session_killed_before_its_mark_opens_again(
    settings: Settings, survivor: Replica, upstream: SandboxServer, clock: MovableClock
) -> None:
    walk = survivor.walk()
    ids = await _linked_by_a_victim(settings, upstream, walk, "guard_claim", "after")
    assert (await walk.link(ids[:1])).status_code == 409
    clock.forward(121)
    await _becomes(walk, "open")
    assert (await walk.link(ids[:1])).status_code == 201
    assert upstream.world.link_counts == {ids[0]: 1}


async def test_without_a_retry_a_session_killed_after_its_mark_tells_that_it_is_unknown(
    settings: Settings, survivor: Replica, upstream: SandboxServer
) -> None:
    walk = survivor.walk()
    await _linked_by_a_victim(settings, upstream, walk, "batch", "after")
    await _becomes(walk, "unknown")
    assert _batches(upstream) == 1
