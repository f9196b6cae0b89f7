"""Two replicas whose clocks are 90 s apart: what goes wrong is bounded by the difference."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from service.link.token import TokenSource
from service.sandbox.server import SandboxServer
from service.settings import Settings
from tests.conftest import MovableClock, Replica, running_replica
from tests.events.sse import listening
from tests.link.waiting import until

SKEW_SECONDS = 90
HOUR_MS = 3_600_000


@dataclass
class Pair:
    """Two replicas, one of which is ahead of the time."""

    right: Replica
    ahead: Replica
    clocks: tuple[MovableClock, MovableClock]

    def forward(self, seconds: float) -> None:
        """Let time pass for both."""
        for clock in self.clocks:
            clock.forward(seconds)


@pytest.fixture
async def pair(settings: Settings) -> AsyncIterator[Pair]:
    clocks = (MovableClock(), MovableClock())
    clocks[1].forward(SKEW_SECONDS)
    async with AsyncExitStack() as stack:
        right, ahead = [await stack.enter_async_context(running_replica(settings, clock=clock)) for clock in clocks]
        yield Pair(right, ahead, clocks)


def source(replica: Replica) -> TokenSource:
    found: TokenSource = replica.app.state.steps.sessions._tokens
    return found


def count(upstream: SandboxServer, route: str) -> int:
    return sum(call.route == route for call in upstream.world.calls.all())


async def test_a_token_is_used_at_most_the_difference_past_its_end_and_then_heals(
    pair: Pair, upstream: SandboxServer
) -> None:
    fetched_at = pair.clocks[0].now()
    await source(pair.ahead).get()
    shared = await source(pair.right).get()
    assert count(upstream, "token") == 1
    end = fetched_at + HOUR_MS
    assert end < shared.expires_at <= pair.clocks[0].now() + HOUR_MS + SKEW_SECONDS * 1000
    pair.forward(3600 + SKEW_SECONDS / 2)
    upstream.world.tokens.revoke_all()
    walk = await pair.right.walk().open()
    assert (await walk.validate("user_quick")).json()["validation"]["state"] == "succeeded"
    assert count(upstream, "token") == 2
    pair.forward(3600 + SKEW_SECONDS)
    assert (await source(pair.right).get()).version != shared.version


async def test_two_clocks_do_not_make_two_replicas_fetch_tokens_in_turn(pair: Pair, upstream: SandboxServer) -> None:
    for _ in range(6 * 60):
        for replica in (pair.right, pair.ahead):
            await source(replica).get()
            running = source(replica)._refresh._running
            if running is not None:
                await running
        pair.forward(60)
    # A token is refreshed after 48 minutes; six hours take eight.
    assert count(upstream, "token") <= 9


async def test_a_session_is_over_sooner_where_the_clock_is_ahead_and_stays_over_once_that_was_told(
    pair: Pair, upstream: SandboxServer
) -> None:
    told, untold = [await pair.right.walk().open(ttlSeconds=300) for _ in range(2)]
    for walk in (told, untold):
        await walk.validate("user_quick")
    ids = await told.account_ids()
    pair.forward(300 - SKEW_SECONDS - 5)
    assert (await untold.at(pair.ahead.client).show()).json()["session"]["state"] == "open"
    pair.forward(10)
    for walk in (told, untold):
        assert (await walk.at(pair.ahead.client).link(ids)).status_code == 410
    async with listening(told, client=pair.ahead.client) as stream:
        assert (await stream.rest())[-1].name == "session.expired"
    # Nobody was told of the other one, and here it has 85 s left.
    assert (await told.show()).json()["session"]["state"] == "expired"
    refused = [
        await told.link(ids),
        await told.validate("user_quick"),
        await told.close(),
    ]
    assert [each.status_code for each in refused[:2]] == [410, 410]
    assert (await told.show()).json()["session"]["state"] == "expired"
    assert count(upstream, "batch") == 0
    assert (await untold.link(ids)).status_code == 201


async def test_a_validation_has_its_time_less_the_difference(pair: Pair) -> None:
    walk = await pair.right.walk().open()
    started = (await walk.validate("user_never", wait=None)).json()["validation"]
    pair.forward(180 - SKEW_SECONDS - 5)
    for replica in (pair.right, pair.ahead):
        shown = (await walk.at(replica.client).validation(started["id"])).json()["validation"]
        assert shown["state"] == "pending"


async def test_one_of_them_polls_whatever_the_clocks_say(pair: Pair, upstream: SandboxServer) -> None:
    walks = [await replica.walk().open() for replica in (pair.right, pair.ahead)]
    jobs = [(await walk.validate("user_never", wait=None)).json()["validation"]["id"] for walk in walks]
    watchers = [each.app.state.steps.validations._watchers for each in (pair.right, pair.ahead)]
    before = count(upstream, "job")

    def polled() -> bool:
        assert [len(each._running) for each in watchers] == [1, 1]
        return count(upstream, "job") >= before + 40

    await until(polled)
    for walk, replica, job in zip(walks, (pair.ahead, pair.right), jobs, strict=True):
        path = f"{walk.path}/validations/{job}"
        assert (await replica.client.delete(path, headers=walk.headers)).json()["validation"]["reason"] == "canceled"


@pytest.mark.parametrize("more_seconds", [0, 110])
async def test_a_link_is_sent_once_though_a_clock_ahead_takes_its_attempt_for_a_dead_ones(
    pair: Pair, upstream: SandboxServer, more_seconds: float
) -> None:
    walk = pair.right.walk()
    ids = await walk.ready("user_quick")
    pair.clocks[1].forward(more_seconds)
    await source(pair.right).drop(await source(pair.right).get())
    upstream.world.faults.add("token", "delay", value=0.5)
    before = count(upstream, "token")
    linking = asyncio.create_task(walk.link(ids))
    await until(lambda: count(upstream, "token") > before)  # it has claimed, and not yet marked
    elsewhere = walk.at(pair.ahead.client)
    assert (await elsewhere.show()).json()["session"]["state"] in {"linking", "open"}
    answers = await asyncio.gather(linking, elsewhere.link(ids))
    assert [each.status_code for each in answers] == [201, 201]
    assert count(upstream, "batch") == 1
