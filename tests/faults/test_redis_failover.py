"""Servers that are lost while people link: no account is sent twice, and what Redis was told is not lost with them.

`FAULT_RUNS=30` makes it that many seeded storms, of full size, in turn behind Sentinel and on a Cluster.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import httpx
import pytest

from service.sandbox.server import SandboxServer
from service.stores.keys import Keys
from service.wiring import _tenant_id
from tests.conftest import Replica, make_settings, running_replica
from tests.faults.servers import Fleet, cluster_of_shards, sentinel_with_replicas
from tests.link.waiting import until
from tests.walk import Walk

RUNS: Final = int(os.environ.get("FAULT_RUNS", "1"))
SMALL: Final = RUNS == 1
PROCESSES: Final = 2 if SMALL else 3
SESSIONS: Final = 8 if SMALL else 32
STORM_SECONDS: Final = 1.0 if SMALL else 4.0
"""Over which people begin to link."""

PATIENT_SECONDS: Final = 60.0
COMMAND_SECONDS: Final = 0.5


class Topology(Protocol):
    __name__: str

    def __call__(self, home: Path, *, replicas: int = 2) -> AbstractAsyncContextManager[Fleet]: ...


TOPOLOGIES: Final[Sequence[Topology]] = (sentinel_with_replicas, cluster_of_shards)
SEEDS: Final = range(RUNS)


@dataclass
class Told:
    """What a person heard in the end."""

    walk: Walk
    choice: Sequence[str]
    answer: httpx.Response


@dataclass
class Storm:
    """People who link at several processes, while a master is cut off from its replicas, and killed a moment later."""

    rng: random.Random
    fleet: Fleet
    guard: str
    replicas: Sequence[Replica]
    upstream: SandboxServer
    told: list[Told] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    killed_at: float = 0
    first_after: float | None = None

    async def rage(self) -> None:
        walks = [self._any().walk() for _ in range(SESSIONS)]
        offered = await asyncio.gather(*(walk.ready("user_forty") for walk in walks))
        await self.fleet.caught_up()
        people = [self._person(walk, ids) for walk, ids in zip(walks, offered, strict=True)]
        async with asyncio.timeout(PATIENT_SECONDS):
            await asyncio.gather(*people, self._killer())

    async def _person(self, walk: Walk, offered: Sequence[str]) -> None:
        first = self.rng.randrange(len(offered) // 2)
        choice = offered[first : first + self.rng.randint(1, 4)]
        await asyncio.sleep(self.rng.random() * STORM_SECONDS)
        taps = [self._tap(walk, choice) for _ in range(self.rng.randint(1, 2))]
        for answer in await asyncio.gather(*taps):
            self.told.append(Told(walk, choice, answer))

    async def _tap(self, walk: Walk, choice: Sequence[str]) -> httpx.Response:
        """Ask for the link at any process until there is an answer that stays."""
        while True:
            asked_at = time.monotonic()
            try:
                answer = await walk.at(self._any().client).link(list(choice))
            except httpx.ReadError:  # an idle connection that was closed as it was taken: people try again
                continue
            if answer.status_code in {201, 504}:
                if asked_at > self.killed_at > 0 and self.first_after is None:
                    self.first_after = time.monotonic()
                return answer
            assert answer.status_code in {409, 503}, answer.text
            self.failures[answer.json()["code"]] += 1
            await asyncio.sleep(0.1)

    async def _killer(self) -> None:
        shard = self.fleet.holding(self.guard) if self.rng.random() < 0.7 else self.rng.choice(self.fleet.shards)
        many = self.rng.randint(1, SESSIONS // 4)
        await until(lambda: len(self.upstream.world.calls.all("batch")) >= many, seconds=PATIENT_SECONDS)
        await shard[0].cut_off()
        await asyncio.sleep(0.5 if SMALL else self.rng.choice([0.1, 0.4, 0.8]))
        self.killed_at = time.monotonic()
        shard[0].kill()

    @property
    def times_sent(self) -> dict[str, int]:
        """How often each account was part of a batch call."""
        calls = self.upstream.world.calls.all("batch")
        assert len(calls) == len(self.upstream.world.links)
        return self.upstream.world.link_counts

    async def lost(self) -> list[str]:
        """What people were told, or the vendor has confirmed, and Redis does not know any more."""
        lost = []
        for each in self.told:
            if each.answer.status_code == 201:
                session = (await each.walk.at(self._any().client).show()).json().get("session", {})
                if session.get("state") != "linked" or session["link"]["id"] != each.answer.json()["link"]["id"]:
                    lost.append(f"{each.answer.json()} is now {session}")
        sent = self.times_sent
        choices = {tuple(each.choice) for each in self.told if sent.keys() >= set(each.choice)}
        again = await asyncio.gather(*(self._from_elsewhere(choice) for choice in choices))
        return lost + [
            f"what was sent is not known as linked: {each.text}" for each in again if each.status_code != 201
        ]

    async def _from_elsewhere(self, choice: Sequence[str]) -> httpx.Response:
        """The same person on another device, who was told nothing."""
        while True:
            walk = self._any().walk()
            try:
                await walk.ready("user_forty")
            except httpx.ReadError:  # as above
                continue
            return await self._tap(walk, choice)

    def _any(self) -> Replica:
        return self.rng.choice(self.replicas)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.timeout(180)
async def test_a_master_killed_in_a_storm_of_links_sends_nothing_twice_and_takes_no_result_along(
    seed: int, tmp_path: Path, upstream: SandboxServer, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    topology = TOPOLOGIES[seed % len(TOPOLOGIES)]
    upstream.world.faults.add("batch", "delay", value=0.1, times=None)
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(topology(tmp_path))
        settings = make_settings(
            fleet.url, upstream.url, prefix, redis_timeout=COMMAND_SECONDS, account_attempts=1_000_000
        )
        replicas = [await stack.enter_async_context(running_replica(settings)) for _ in range(PROCESSES)]
        guard = Keys(prefix, _tenant_id(settings, settings.client_id)).guard("account", "service")
        storm = Storm(random.Random(seed), fleet, guard, replicas, upstream)  # noqa: S311 -- repeatable, not secret
        await storm.rage()
        lost = await storm.lost()
        twice = {account: count for account, count in storm.times_sent.items() if count > 1}
    unknown = sum(each.answer.status_code == 504 for each in storm.told)
    if not SMALL:
        recovery = (storm.first_after or time.monotonic()) - storm.killed_at
        with capsys.disabled():
            print(  # noqa: T201 -- the figures of a run of full size
                f"\n{topology.__name__} seed {seed}: sent {len(storm.times_sent)}, twice {len(twice)}, told "
                f"{len(storm.told)}, lost {len(lost)}, unknown {unknown}, recovery {recovery:.1f} s, "
                f"meanwhile {dict(storm.failures)}"
            )
    assert not twice
    assert not lost
    assert storm.told
