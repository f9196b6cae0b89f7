"""Random people, processes, vendors and stores, and what must hold whatever they do.

Several sessions ask for identical and overlapping choices at several processes, retry, give up and close; the vendor
confirms, refuses, or loses its answer; the store loses commands and replies, repeats commands at once or much later;
processes are killed at any await, and paused past their leases. `FAULT_ROUNDS=2000` runs more of it.
"""

import asyncio
import os
import random
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from unittest.mock import patch

import pytest
from pydantic import SecretStr
from typing_extensions import override

from service.errors import OutcomeUnknown, ServiceError, StoreUnavailable, UpstreamLate
from service.link import settle
from service.link.attempt import Choice, Linked, Patience
from service.stores.connection import Store
from service.stores.guards import GuardStore
from service.stores.tokens import UpstreamToken
from service.upstream.client import LinkRefused, LinkUnclear, TokenRejected
from tests.conftest import MovableClock
from tests.link.parts import ACCOUNT_ID, Parts, Tokens, made_of

ROUNDS: Final = int(os.environ.get("FAULT_ROUNDS", "64"))
AT_ONCE: Final = 8
"""Rounds that run side by side, each in a world of its own."""

CLAIM_MS: Final = 60
SENT_MS: Final = 80
PATIENCE: Final = Patience(others=0.5, look_again=0.02, mark=0.02, send=0.04)
STUCK_SECONDS: Final = 30

SESSIONS: Final = ("S0", "S1", "S2")
PROCESSES: Final = 2
CHOICES: Final = (("a", "b"), ("a", "b"), ("b", "c"), ("a", "b", "c"), ("c",))

Outcome = Literal["pending", "confirmed", "refused", "unclear", "rejected"]


@dataclass(frozen=True)
class Request:
    session: str
    resend: Sequence[str]


_request: ContextVar[Request] = ContextVar("request")
_marked: ContextVar[str] = ContextVar("marked")


@dataclass
class Send:
    """One batch call that was made."""

    attempt: str
    session: str
    accounts: Sequence[str]
    outcome: Outcome = "pending"
    process: int = -1

    @property
    def may_have_linked(self) -> bool:
        return self.outcome not in {"refused", "rejected"}


@dataclass
class World:
    """One round: what was sent, what was told, and what is broken."""

    rng: random.Random
    clock: MovableClock = field(default_factory=MovableClock)
    sends: list[Send] = field(default_factory=list)
    closed: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)
    late: set[asyncio.Task[Any]] = field(default_factory=set)
    calm: bool = False

    def chance(self, share: float) -> bool:
        return not self.calm and self.rng.random() < share

    def sent(self, send: Send, request: Request) -> None:
        if send.session in self.closed:
            self.broken.append(f"sent after close: {send}")
        for earlier in self.sends:
            twice = set(earlier.accounts) & set(send.accounts)
            if twice and earlier.may_have_linked and earlier.attempt not in request.resend:
                self.broken.append(f"sent twice unasked: {earlier} {send} {request}")
        self.sends.append(send)

    def was_closed(self, session: str) -> None:
        self.closed.add(session)
        if any(each.session == session and each.may_have_linked for each in self.sends):
            self.broken.append(f"closed although sent: {session}")

    def was_linked(self, linked: Linked) -> None:
        confirmed = {account for each in self.sends if each.outcome == "confirmed" for account in each.accounts}
        if not confirmed.issuperset(linked.accounts):
            self.broken.append(f"told linked without a confirmation: {linked}")


class FaultyStore(Store):
    """Loses commands and replies, repeats commands, is slow; and silent once its process is dead."""

    world: World
    dead = False

    @override
    async def run(self, script: str, *, keys: Sequence[str], args: Sequence[str | int] = (), kept: bool = False) -> Any:
        world = self.world
        await self._pause()
        if world.chance(0.04):
            raise StoreUnavailable
        answer = await super().run(script, keys=keys, args=args, kept=kept)
        if world.chance(0.05):
            answer = await super().run(script, keys=keys, args=args, kept=kept)
        if world.chance(0.05):
            held_up = asyncio.create_task(self._run_late(script, keys, args))
            world.late.add(held_up)
            held_up.add_done_callback(world.late.discard)
        await self._pause()
        if world.chance(0.04):
            raise StoreUnavailable
        return answer

    async def _pause(self) -> None:
        if self.world.chance(0.05):
            await asyncio.sleep(self.world.rng.choice([0.002, 0.03, 0.12]))
        if self.dead:
            raise StoreUnavailable

    async def _run_late(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> None:
        await asyncio.sleep(self.world.rng.choice([0.005, 0.05, 0.1]))
        await super().run(script, keys=keys, args=args)


class _Guards(GuardStore):
    @override
    async def mark_sent(
        self, attempt: str, account_id: str, accounts: Sequence[str]
    ) -> Literal["sent", "lost", "voided"]:
        _marked.set(attempt)
        return await super().mark_sent(attempt, account_id, accounts)


class _SlowTokens(Tokens):
    """May take longer than a claim lasts."""

    def __init__(self, world: World) -> None:
        self._world = world

    @override
    async def get(self, give_up: float) -> UpstreamToken:
        if self._world.chance(0.3):
            await asyncio.sleep(self._world.rng.choice([0.01, CLAIM_MS / 1000 * 1.5]))
        return await super().get(give_up)


class Vendor:
    """The batch call alone, as seen from one process."""

    def __init__(self, world: World, process: int) -> None:
        self._world = world
        self._process = process

    async def link(
        self, _token: SecretStr, *, account_id: str, service_account_ids: Sequence[str], give_up: float
    ) -> None:
        assert account_id
        if self._world.chance(0.1):
            await asyncio.sleep(SENT_MS / 1000 * 3)  # for its turn
        if self._world.clock.monotonic() >= give_up:
            raise UpstreamLate
        request, rng = _request.get(), self._world.rng
        send = Send(_marked.get(), request.session, service_account_ids, process=self._process)
        self._world.sent(send, request)
        await asyncio.sleep(rng.choice([0, 0.003, 0.01]))
        if self._world.chance(0.05):
            await asyncio.sleep(SENT_MS / 1000 * 1.5)
        outcomes: list[Outcome] = ["confirmed", "refused", "unclear", "rejected"]
        send.outcome = rng.choices(outcomes, [5, 2, 2, 1])[0] if not self._world.calm else "confirmed"
        match send.outcome:
            case "refused":
                raise LinkRefused(400)
            case "unclear":
                raise LinkUnclear
            case "rejected":
                raise TokenRejected


@dataclass
class Process:
    parts: Parts
    store: FaultyStore
    number: int


class Round:
    """Sessions, processes, and people who do what they like."""

    def __init__(self, url: str, prefix: str, seed: int) -> None:
        self._url = url
        self._prefix = prefix
        self.world = World(random.Random(seed))  # noqa: S311 -- repeatable, not secret
        self._started = 0
        self._gone: list[Process] = []
        self._processes = [self._start() for _ in range(PROCESSES)]

    def _start(self) -> Process:
        self._started += 1
        store = FaultyStore(SecretStr(self._url), command_seconds=5)
        store.world = self.world
        parts = made_of(
            store,
            self._prefix,
            self.world.clock,
            client=Vendor(self.world, self._started),
            tokens=_SlowTokens(self.world),
            lease_ms=CLAIM_MS,
            sent_lease_ms=SENT_MS,
            patience=PATIENCE,
            guard_kind=_Guards,
        )
        return Process(parts, store, self._started)

    def _any(self) -> Parts:
        return self.world.rng.choice(self._processes).parts

    async def play(self) -> list[str]:
        self.world.calm = True
        for session in SESSIONS:
            await self._any().open(session)
        self.world.calm = False
        async with asyncio.timeout(STUCK_SECONDS):
            people = [self._person(self.world.rng.choice(SESSIONS)) for _ in range(6)]
            await asyncio.gather(*people, self._killer())
            await self._end()
        return self.world.broken

    async def _end(self) -> None:
        """Peace: what is certain is written down, every attempt ends, and what was sent is not sent again."""
        world = self.world
        world.calm = True
        await asyncio.gather(*world.late)
        for process in self._processes:
            await process.parts.tasks.drain(STUCK_SECONDS)
        await self._check_records()
        await asyncio.sleep(max(CLAIM_MS, SENT_MS) / 1000)
        world.clock.forward(121)
        parts = self._processes[0].parts
        for session in SESSIONS:
            recovered = await parts.settlement.recover(await parts.read(session))
            if recovered.intents:
                world.broken.append(f"left over: {recovered.intents}")
            if session in world.closed and recovered.state != "closed":
                world.broken.append(f"closed, and now {recovered.state}: {session}")
        await parts.open("last")
        for account in "abc":
            await self._ask(parts, "last", (account,), resend=(), key=None)
            await parts.sessions.close(await parts.read("last"), now=world.clock.now(), voided=())
            await parts.open(f"last-{account}")
            await self._ask(parts, f"last-{account}", (account,), resend=(), key=None)
        for process in [*self._processes, *self._gone]:
            await self._end_all(process)
            await process.store.__aexit__()

    async def _check_records(self) -> None:
        alive = {process.number for process in self._processes}
        for send in self.world.sends:
            if send.outcome == "confirmed" and send.process in alive:
                look = await self._processes[0].parts.guards.look(send.attempt, ACCOUNT_ID, send.accounts, void=False)
                if look.verdict != "done":
                    self.world.broken.append(f"confirmed, and now {look.verdict}: {send}")

    async def _person(self, session: str) -> None:
        rng = self.world.rng
        told: Sequence[str] = ()
        choice = rng.choice(CHOICES)
        key = rng.choice([None, f"{session}{choice}"])
        for _ in range(rng.randint(1, 5)):
            await asyncio.sleep(rng.choice([0, 0.005, 0.03]))
            if rng.random() < 0.2:
                await self._close(session)
                continue
            resend = told if rng.random() < 0.5 else ()
            told = await self._ask(self._any(), session, choice, resend=resend, key=None if resend else key) or told

    async def _ask(
        self, parts: Parts, session: str, choice: Sequence[str], *, resend: Sequence[str], key: str | None
    ) -> Sequence[str]:
        """One request; the attempts that it was told are unclear."""
        _request.set(Request(session, resend))
        wanted = Choice(choice, resend, (key, "".join(choice)) if key else None)
        record = await parts.sessions.read(session)
        if record is None:
            return ()
        if any(parts is each.parts for each in self._gone):
            return ()
        asking = asyncio.ensure_future(parts.attach.link(record, wanted))
        done, _ = await asyncio.wait([asking], timeout=0.02 if self.world.chance(0.1) else None)
        if not done:
            asking.cancel()
        try:
            self.world.was_linked(await asking)
        except OutcomeUnknown as unknown:
            return unknown.attempts
        except (ServiceError, asyncio.CancelledError):
            pass
        return ()

    async def _close(self, session: str) -> None:
        parts = self._any()
        try:
            closed = await parts.settlement.close(await parts.read(session))
        except ServiceError:
            return
        if closed.state == "closed":
            self.world.was_closed(session)

    async def _killer(self) -> None:
        rng = self.world.rng
        for _ in range(rng.randint(0, 2)):
            await asyncio.sleep(rng.random() * 0.15)
            victim = rng.choice(self._processes)
            victim.store.dead = True
            self._processes[self._processes.index(victim)] = self._start()
            self._gone.append(victim)
            await self._end_all(victim)

    async def _end_all(self, victim: Process) -> None:
        """Let nothing go on in a dead process: neither what ran, nor what it left behind when it was cancelled."""
        while tasks := victim.parts.tasks._tasks.copy():
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.05)


@pytest.mark.parametrize("first", range(0, ROUNDS, max(ROUNDS // 4, 1)))
@pytest.mark.timeout(600)
async def test_whatever_happens_nothing_is_sent_twice_unasked_or_after_a_close_and_nothing_is_lost(
    valkey: str, prefix: str, first: int
) -> None:
    seeds = range(first, min(first + max(ROUNDS // 4, 1), ROUNDS))
    broken: dict[int, list[str]] = {}
    with patch.multiple(settle, _WAIT_SECONDS=0.05, _TRY_AGAIN_SECONDS=0.005):
        for start in range(seeds.start, seeds.stop, AT_ONCE):
            batch = [seed for seed in range(start, start + AT_ONCE) if seed in seeds]
            rounds = [Round(valkey, f"{prefix}-{seed}", seed) for seed in batch]
            found = await asyncio.gather(*(each.play() for each in rounds))
            broken |= {seed: each for seed, each in zip(batch, found, strict=True) if each}
    assert not broken


def test_the_checks_themselves_see_what_is_broken() -> None:
    world = World(random.Random(0))  # noqa: S311 -- decides nothing here
    world.sent(Send("A", "S0", ["a"]), Request("S0", ()))
    world.sent(Send("B", "S0", ["a", "b"]), Request("S0", ("A",)))
    assert not world.broken
    world.sent(Send("C", "S0", ["b"]), Request("S0", ("A",)))
    world.was_closed("S0")
    world.sent(Send("D", "S0", ["c"]), Request("S0", ()))
    assert [each.partition(":")[0] for each in world.broken] == [
        "sent twice unasked",
        "closed although sent",
        "sent after close",
    ]
