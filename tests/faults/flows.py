"""The two flows that processes are struck in, and the points that they come to."""

import os
import random
from collections.abc import Sequence
from typing import Final

from redis.asyncio import Redis

from service.sandbox.server import SandboxServer
from service.settings import Settings
from tests.conftest import Replica
from tests.faults.victims import Point, Victim, victim

__all__ = ["CHANCY", "FULL", "chosen", "forget_shared", "link_points", "sent", "validation_points"]

CHANCY: Final = "HGETALL s"
"""Reading the session: how often depends on when notices come."""

FULL: Final = os.environ.get("FAULT_POINTS") == "all"
"""All points, real leases, and more of everything that is killed."""

_OTHERS: Final = 1


async def validation_points(settings: Settings, survivor: Replica, redis: Redis) -> Sequence[Point]:
    """All points of a validation, in their order, in a process that has to fetch token and providers."""
    walk = await survivor.walk().open()
    await forget_shared(redis, settings)
    async with victim(settings) as told:
        started = (await walk.at(told.client).validate("user_quick", wait=None)).json()["validation"]
        await walk.validation(started["id"], wait=20)
        return await _up_to(told, Point("job_drop", 1, "after"))


async def link_points(settings: Settings, survivor: Replica, redis: Redis) -> Sequence[Point]:
    """All points of a link in such a process."""
    walk = survivor.walk()
    ids = await walk.ready("user_good")
    await forget_shared(redis, settings)
    async with victim(settings) as told:
        assert (await walk.at(told.client).link(ids)).status_code == 201
        return await _up_to(told, Point("link_settle", 1, "after"))


async def _up_to(told: Victim, last: Point) -> Sequence[Point]:
    points: list[Point] = []
    while last not in points:
        await told.struck()
        points += told.points()
    return points


async def forget_shared(redis: Redis, settings: Settings) -> None:
    """Remove token and providers, which processes share."""
    for kind in ("t", "p"):
        async for key in redis.scan_iter(f"{settings.redis_prefix}:{{{kind}:*"):
            await redis.delete(key)


def chosen(points: Sequence[Point], telling: Sequence[Point]) -> Sequence[Point]:
    """The telling points, and one by chance; all of them with `FAULT_POINTS=all`."""
    assert set(telling) <= set(points), points
    if FULL:
        return points
    others = [each for each in points if each not in telling and each.operation != CHANCY]
    return [*telling, *random.Random(len(points)).sample(others, _OTHERS)]  # noqa: S311 -- chooses what is tested


def sent(upstream: SandboxServer, route: str) -> int:
    """How many calls of a route the vendor got."""
    return sum(call.route == route for call in upstream.world.calls.all())
