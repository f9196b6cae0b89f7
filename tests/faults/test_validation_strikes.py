"""A process is killed, or stands still for longer than its leases, at each point of a validation.

Credentials are sent once, whoever waits gets an envelope, and the validation ends: as its job did if the vendor's
answer was written down, else as interrupted.
"""

import asyncio
import signal
from collections.abc import Sequence
from typing import Any, Final

import httpx
import pytest
from redis.asyncio import Redis

from service.sandbox.server import SandboxServer
from service.settings import Settings
from tests.conftest import Replica
from tests.faults.flows import CHANCY, chosen, forget_shared, sent, validation_points
from tests.faults.victims import Point, Victim, victim
from tests.link.waiting import until
from tests.walk import Walk

HELD: Final = Point("job_hold", 1, "after")
ADDED: Final = Point("validation_add", 1, "after")
SENDS: Final = Point("POST jobs", 1, "before")
ANSWERED: Final = Point("POST jobs", 1, "after")
KNOWN: Final = Point("validation_set", 1, "after")
OVER: Final = Point("validation_set", 2, "after")

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("forks")]  # from one process


async def _validations(walk: Walk) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await walk.show()).json()["session"]["validations"]
    return found


async def _nobody_holds_a_job(redis: Redis, settings: Settings) -> None:
    async def let_go() -> bool:
        keys = [key async for key in redis.scan_iter(f"{settings.redis_prefix}:{{j:*")]
        return not keys

    await until(let_go)


async def _comes_to(struck: Victim, point: Point) -> bool:
    """Whether it came to its point; those that depend on when notices come may be missed."""
    if point.operation != CHANCY:
        await struck.struck()
        assert struck.points() == [point]
        return True
    try:
        async with asyncio.timeout(2):
            await struck.struck()
    except TimeoutError:
        return False
    return True


def _expected(points: Sequence[Point], point: Point) -> str | None:
    """How a validation ends whose process was killed at a point; None if it was not written down."""
    place = points.index(point)
    if place < points.index(ADDED):
        return None
    return "interrupted" if place < points.index(KNOWN) else "succeeded"


async def test_killed_anywhere_credentials_are_sent_once_and_the_validation_ends(
    struck: Settings, survivor: Replica, upstream: SandboxServer, redis: Redis
) -> None:
    points = await validation_points(struck, survivor, redis)
    for point in chosen(points, [ADDED, ANSWERED, KNOWN]):
        await _kill(struck, survivor, upstream, redis, point=point, expected=_expected(points, point))


async def _kill(
    settings: Settings, survivor: Replica, upstream: SandboxServer, redis: Redis, *, point: Point, expected: str | None
) -> None:
    walk = await survivor.walk().open()
    await forget_shared(redis, settings)
    upstream.world.calls.clear()
    async with victim(settings, strike=point) as killed:
        asking = asyncio.create_task(walk.at(killed.client).validate("user_quick", wait=None))
        if not await _comes_to(killed, point):
            assert (await asking).status_code == 202, point
            return
        assert await killed.ended() == -signal.SIGKILL
        [answer] = await asyncio.gather(asking, return_exceptions=True)
    assert isinstance(answer, httpx.TransportError | httpx.Response), (point, answer)
    assert isinstance(answer, httpx.TransportError) or answer.status_code == 202, (point, answer)
    before = sent(upstream, "jobs")
    assert before <= 1, point
    found = await _validations(walk)
    if expected is None:
        assert (found, before) == ([], 0), point
    else:
        ended = (await walk.validation(found[0]["id"], wait=20)).json()["validation"]
        assert ended.get("reason", ended["state"]) == expected, point
        assert sent(upstream, "jobs") == before, point
    if expected != "succeeded":  # then only the person can send the password again, and may
        again = await walk.validate("user_quick")
        assert again.json()["validation"]["state"] == "succeeded", (point, again.text)
        assert sent(upstream, "jobs") == before + 1, point
    assert len(await walk.account_ids()) == 2
    await _nobody_holds_a_job(redis, settings)


async def test_standing_still_anywhere_it_sends_nothing_after_it_was_given_up(
    struck: Settings, survivor: Replica, upstream: SandboxServer, redis: Redis
) -> None:
    points = await validation_points(struck, survivor, redis)
    for point in chosen(points, [HELD, ADDED, OVER]):
        # Between its last look at its lease and the call nothing can come but the call.
        if point != SENDS:
            await _pause(struck, survivor, upstream, redis, point=point)


async def _pause(settings: Settings, survivor: Replica, upstream: SandboxServer, redis: Redis, *, point: Point) -> None:
    walk = await survivor.walk().open()
    await forget_shared(redis, settings)
    upstream.world.calls.clear()
    async with victim(settings, strike=point, number=signal.SIGSTOP) as paused:
        asking = asyncio.create_task(walk.at(paused.client).validate("user_quick", wait=None))
        if not await _comes_to(paused, point):
            assert (await asking).status_code == 202, point
            return
        await _nobody_holds_a_job(redis, settings)
        told = [(await walk.validation(each["id"], wait=20)).json()["validation"] for each in await _validations(walk)]
        before = sent(upstream, "jobs")
        paused.go_on()
        answer = await asking
        assert answer.status_code in {201, 202}, (point, answer.text)
        await _nobody_holds_a_job(redis, settings)
        [ended] = await _validations(walk)
        assert ended["state"] in {"succeeded", "failed"}, point
        assert sent(upstream, "jobs") <= 1, point
        if told:
            assert ended == told[0], point
            assert sent(upstream, "jobs") == before, point
