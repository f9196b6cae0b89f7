"""Counters that guard, against a model: each command runs one to four times, early or late, and counts once."""

import random
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from typing_extensions import override

from service.errors import RateLimited
from service.stores.connection import Store
from service.stores.keys import Keys
from service.stores.limits import Limit, LimitStore
from service.stores.scripts import load

SEEDS: Final = range(30)
STEPS: Final = 60
MOST: Final = 3
RESTARTING: Final = Limit("account", MOST, 900, restarts=True)
FIXED: Final = Limit("address", MOST, 900)
WHO: Final = "who"


class RecordingStore(Store):
    """Keeps commands, so that they may arrive again."""

    sent: tuple[str | int, ...] = ()
    answered: Any = None

    @override
    async def _command(self, *command: str | int) -> Any:
        self.sent = command
        self.answered = await super()._command(*command)
        return self.answered

    async def again(self, command: tuple[str | int, ...]) -> Any:
        return await super()._command(*command)


class Model:
    """What a limit lets through when each operation happens once, at its first run."""

    def __init__(self) -> None:
        self.counting: list[str] = []
        self.returned: set[str] = set()

    def count(self, attempt: str) -> int:
        """What is left, below zero for a refusal."""
        if len(self.counting) >= MOST or attempt in self.returned:
            return -1
        self.counting.append(attempt)
        return MOST - len(self.counting)

    def give_back(self, attempt: str) -> None:
        self.returned.add(attempt)
        if attempt in self.counting:
            self.counting.remove(attempt)

    def forget(self, attempt: str) -> None:
        if attempt in self.counting:
            del self.counting[: self.counting.index(attempt) + 1]


async def _perhaps_forget(redis: Redis, command: tuple[str | int, ...], rng: random.Random) -> None:
    """Giving back and forgetting need no memory of their operation: a caller may ask for them again at any time."""
    if command[1] != load("attempt_count").digest and rng.random() < 0.5:
        await redis.delete(str(command[2 + int(command[2])]))


@pytest.fixture
async def redis(valkey: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(valkey, decode_responses=True) as client:
        for script in ("attempt_count", "attempt_give_back", "attempt_forget", "window"):
            await client.script_load(load(script).text)
        yield client


@pytest.fixture
async def store(valkey: str) -> AsyncIterator[RecordingStore]:
    async with RecordingStore(SecretStr(valkey), command_seconds=5) as opened:
        yield opened


@pytest.mark.parametrize("limit", [RESTARTING, FIXED], ids=["restarting", "fixed"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_attempts_count_as_if_each_command_had_run_once(
    store: RecordingStore, redis: Redis, prefix: str, seed: int, limit: Limit
) -> None:
    rng = random.Random(seed)  # noqa: S311 -- makes cases, keeps no secret
    keys = Keys(prefix, "default")
    limits, model = LimitStore(store=store, keys=keys), Model()
    attempts = keys.attempts(limit.policy, WHO)
    to_come: list[tuple[tuple[str | int, ...], Any]] = []
    made = ["val_0"]
    for step in range(1, STEPS):
        attempt = rng.choice(made[-6:])
        match rng.choice(
            ["count", "count", "count", "give back", "early", "forget", "window over", "repeat", "repeat"]
        ):
            case "count":
                made.append(f"val_{step}")
                quota = await limits.count_attempt(limit, WHO, made[-1])
                left = model.count(made[-1])
                assert max(quota.left, -1) == left
            case "give back":
                await limits.give_back_attempt(limit, WHO, attempt)
                model.give_back(attempt)
            case "early":  # a count that arrives after it was given back
                late = f"late_{step}"
                await limits.give_back_attempt(limit, WHO, late)
                model.give_back(late)
                assert (await limits.count_attempt(limit, WHO, late)).left < 0
                assert model.count(late) == -1
            case "forget":
                await limits.forget_attempts(limit, WHO, attempt)
                model.forget(attempt)
            case "window over":
                await redis.delete(attempts)
                model.counting.clear()
            case _ if to_come:
                command, answer = to_come.pop(rng.randrange(len(to_come)))
                await _perhaps_forget(redis, command, rng)
                assert await store.again(command) == answer
        if store.sent:
            to_come += [(store.sent, store.answered)] * rng.randrange(4)
            store.sent = ()
        assert await redis.zrange(attempts, 0, -1) == model.counting
        assert bool(model.counting) == (await redis.pttl(attempts) > 0)
    rng.shuffle(to_come)
    for command, answer in to_come:
        assert await store.again(command) == answer
    assert await redis.zrange(attempts, 0, -1) == model.counting


@pytest.mark.parametrize("seed", SEEDS)
async def test_requests_count_as_if_each_command_had_run_once(
    store: RecordingStore, redis: Redis, prefix: str, seed: int
) -> None:
    """But one that was refused changed nothing, and its repeat is a try of its own."""
    rng = random.Random(seed)  # noqa: S311 -- makes cases, keeps no secret
    keys = Keys(prefix, "default")
    limits, counter = LimitStore(store=store, keys=keys), keys.limit(FIXED.policy, WHO)
    counted = 0
    counts: list[tuple[tuple[str | int, ...], int, bool]] = []
    for _ in range(STEPS):
        if counts and rng.random() < 0.5:
            command, many, accepted = counts.pop(rng.randrange(len(counts)))
            (answer, _left) = await store.again(command)
            assert answer <= MOST or not accepted
            if not accepted and answer <= MOST:
                counted += many
        elif rng.random() < 0.2:
            await redis.delete(counter)
            counted = 0
        else:
            many = rng.choice([1, 1, 2])
            try:
                quota = await limits.spend(FIXED, WHO, how_many=many)
            except RateLimited:
                assert counted + many > MOST
                counts.append((store.sent, many, False))
            else:
                counted += many
                assert quota.left == MOST - counted
                counts += [(store.sent, many, True)] * rng.randrange(4)
        assert int(await redis.get(counter) or 0) == counted
        assert counted <= MOST
