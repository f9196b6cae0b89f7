"""A process is killed, or stands still for longer than its leases, at each point of a link.

There is a result, or nothing was sent, or it is unknown; and nobody sends twice unasked.
"""

import asyncio
import signal
from collections.abc import Sequence
from typing import Final

import httpx
import pytest
from redis.asyncio import Redis

from service.sandbox.server import SandboxServer
from service.settings import Settings
from tests.conftest import MovableClock, Replica
from tests.faults.flows import chosen, forget_shared, link_points, sent
from tests.faults.victims import Point, victim
from tests.link.waiting import until
from tests.walk import Walk

CLAIMED: Final = Point("guard_claim", 1, "after")
NOT_MARKED: Final = Point("guard_mark", 1, "before")
MARKED: Final = Point("guard_mark", 1, "after")
ANSWERED: Final = Point("POST batch", 1, "after")
RECORDED: Final = Point("guard_result", 1, "after")

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("forks")]  # from one process


async def _killed(
    settings: Settings, upstream: SandboxServer, walk: Walk, point: Point | None, *, username: str = "user_quick"
) -> list[str]:
    """Sign in at the survivor, and ask a process for the link that dies over it: at a point, or during the call."""
    ids = await walk.ready(username)
    async with victim(settings, strike=point or Point("", 0, "before")) as process:
        if point is None:
            upstream.world.faults.add("batch", "delay", value=0.3)
        asking = asyncio.create_task(walk.at(process.client).link(ids))
        if point is None:
            await until(lambda: sent(upstream, "batch"))
            process.kill()
        assert await process.ended() == -signal.SIGKILL, point
        [answer] = await asyncio.gather(asking, return_exceptions=True)
        assert isinstance(answer, httpx.TransportError), point
    return ids


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


async def _nothing_was_sent_and_a_retry_links(walk: Walk, ids: list[str], upstream: SandboxServer) -> None:
    assert await _state(walk) in {"open", "linking"}
    assert sent(upstream, "batch") == 0
    retries = await asyncio.gather(*(walk.link(ids) for _ in range(3)))
    assert [each.status_code for each in retries] == [201] * 3
    assert await _state(walk) == "linked"
    assert sent(upstream, "batch") == 1


async def _it_is_unknown_and_no_retry_sends_unasked(
    walk: Walk, other: Walk, ids: list[str], upstream: SandboxServer
) -> None:
    before = sent(upstream, "batch")
    assert before <= 1
    retries = await asyncio.gather(*(each.link(ids) for each in (walk, walk, other)))
    assert [each.status_code for each in retries] == [504] * 3
    told = retries[0].json()["attempts"]
    assert [each.json()["attempts"] for each in retries] == [told] * 3
    session = (await walk.show()).json()["session"]
    assert (session["state"], session["attempts"]) == ("unknown", told)
    assert sent(upstream, "batch") == before
    assert (await walk.link(ids, resendUnknown=told)).status_code == 201
    assert await _state(walk) == await _state(other) == "linked"
    assert sent(upstream, "batch") == before + 1


async def _it_is_linked(walk: Walk, ids: list[str], upstream: SandboxServer) -> None:
    session = (await walk.show()).json()["session"]
    assert session["state"] == "linked"
    assert session["outcome"]["serviceAccounts"] == [{"id": each} for each in sorted(ids)]
    retry = await walk.link(ids)
    assert retry.status_code == 201
    assert retry.json()["link"]["id"] == session["link"]["id"]
    assert sent(upstream, "batch") == 1


async def test_killed_anywhere_nothing_was_sent_or_it_is_unknown_or_linked(
    struck: Settings, survivor: Replica, upstream: SandboxServer, redis: Redis
) -> None:
    points = await link_points(struck, survivor, redis)
    telling = [NOT_MARKED, MARKED, ANSWERED, RECORDED]
    for point in (*chosen(points, telling), None):
        await _kill(struck, survivor, upstream, redis, points=points, point=point)


async def _kill(
    settings: Settings,
    survivor: Replica,
    upstream: SandboxServer,
    redis: Redis,
    *,
    points: Sequence[Point],
    point: Point | None,
) -> None:
    upstream.world.calls.clear()
    await _forget_links(redis, settings)
    await forget_shared(redis, settings)
    walk, other = survivor.walk(), survivor.walk()
    ids = await _killed(settings, upstream, walk, point)
    place = points.index(point or ANSWERED)
    if place <= points.index(NOT_MARKED):
        await _nothing_was_sent_and_a_retry_links(walk, ids, upstream)
    elif place < points.index(RECORDED):
        await other.ready("user_quick")
        await _it_is_unknown_and_no_retry_sends_unasked(walk, other, ids, upstream)
    else:
        await _it_is_linked(walk, ids, upstream)


async def _forget_links(redis: Redis, settings: Settings) -> None:
    """As if the accounts had never been linked."""
    async for key in redis.scan_iter(f"{settings.redis_prefix}:{{g:*"):
        await redis.delete(key)


async def test_standing_still_anywhere_it_sends_once_and_both_sides_tell_the_same_in_the_end(
    struck: Settings, survivor: Replica, upstream: SandboxServer, redis: Redis
) -> None:
    points = await link_points(struck, survivor, redis)
    for point in (*chosen(points, [CLAIMED, MARKED, ANSWERED]), None):
        before_mark = point is not None and points.index(point) <= points.index(NOT_MARKED)
        await _pause(struck, survivor, upstream, redis, point=point, before_mark=before_mark)


async def _pause(
    settings: Settings,
    survivor: Replica,
    upstream: SandboxServer,
    redis: Redis,
    *,
    point: Point | None,
    before_mark: bool,
) -> None:
    upstream.world.calls.clear()
    await _forget_links(redis, settings)
    await forget_shared(redis, settings)
    walk, other = survivor.walk(), survivor.walk()
    ids = await walk.ready("user_quick")
    await other.ready("user_quick")
    async with victim(settings, strike=point or Point("", 0, "before"), number=signal.SIGSTOP) as process:
        if point is None:
            upstream.world.faults.add("batch", "delay", value=0.3)
        asking = asyncio.create_task(walk.at(process.client).link(ids))
        if point is None:
            await until(lambda: sent(upstream, "batch"))
            process.stand_still()
        else:
            await process.struck()
        # Waits for the leases' end, like anybody who asks meanwhile.
        meanwhile = await other.link(ids)
        assert meanwhile.status_code in ({201} if before_mark else {201, 504}), (point, meanwhile.text)
        if point == MARKED:  # nothing was sent, but only the process that stands still could tell
            again = await other.link(ids, resendUnknown=meanwhile.json()["attempts"])
            assert again.status_code == 201, again.text
        process.go_on()
        answer = await asking
        assert answer.status_code == 201, (point, answer.text)
    assert await _state(walk) == "linked", point
    await _becomes_linked(other, ids)
    assert sent(upstream, "batch") == 1, point


async def _becomes_linked(walk: Walk, ids: list[str]) -> None:
    """What another was told to be unknown is linked, once the one that stood still has told."""
    assert (await walk.link(ids)).status_code == 201
    assert await _state(walk) == "linked"


@pytest.mark.parametrize(("point", "state"), [(CLAIMED, "closed"), (MARKED, "unknown"), (RECORDED, "linked")])
async def test_a_session_whose_link_was_killed_can_be_closed_as_far_as_it_had_not_come(
    struck: Settings, survivor: Replica, upstream: SandboxServer, point: Point, state: str
) -> None:
    walk = survivor.walk()
    ids = await _killed(struck, upstream, walk, point)
    before = sent(upstream, "batch")

    async def closes() -> bool:
        answer = await walk.close()
        if answer.status_code == 409:
            return False
        assert answer.json()["session"]["state"] == state
        return True

    await until(closes)
    retry = await walk.link(ids)
    assert retry.status_code == {"closed": 409, "unknown": 504, "linked": 201}[state]
    assert sent(upstream, "batch") == before


async def test_without_a_retry_a_session_killed_before_its_mark_opens_again(
    struck: Settings, survivor: Replica, upstream: SandboxServer, clock: MovableClock
) -> None:
    walk = survivor.walk()
    ids = await _killed(struck, upstream, walk, CLAIMED, username="user_good")
    assert (await walk.link(ids[:1])).status_code == 409
    clock.forward(121)
    await _becomes(walk, "open")
    assert (await walk.link(ids[:1])).status_code == 201
    assert upstream.world.link_counts == {ids[0]: 1}


async def test_without_a_retry_a_session_killed_after_its_mark_tells_that_it_is_unknown(
    struck: Settings, survivor: Replica, upstream: SandboxServer
) -> None:
    walk = survivor.walk()
    await _killed(struck, upstream, walk, ANSWERED)
    await _becomes(walk, "unknown")
    assert sent(upstream, "batch") == 1
