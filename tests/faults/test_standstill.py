"""One of three processes stands still for half a minute, with all leases as long as they are in production.

It stops while it polls validations and has streams open, in the middle of links and passwords: while calls to the
vendor and a token are on their way, or between two commands to Redis. The others take all of it over; when it goes on,
it sends nothing of that again.
"""

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import httpx
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from service.sandbox.people import PEOPLE
from service.sandbox.server import SandboxServer
from service.settings import Settings
from tests.conftest import make_settings
from tests.events.sse import Event, listening
from tests.faults.flows import sent
from tests.faults.redis_line import RedisLine
from tests.link.waiting import until
from tests.processes import ServiceProcess, serving
from tests.walk import Walk

STILL_SECONDS: Final = 30.0
VENDOR_SECONDS: Final = 8.0
"""What the vendor takes for the calls that are under way: it answers while nobody listens."""

REFUSED_SECONDS: Final = 1.0
"""What the vendor takes to refuse passwords that come with a token that is no good any more."""

HELD_SECONDS: Final = 1.0
"""By which accounts are held before the process stops, so that their leases end before it goes on."""

REDIS_SECONDS: Final = 0.12
"""How late Redis answers the process that is about to stop: less than it waits, and most of what each step takes."""

PATIENT_SECONDS: Final = 90.0
PEOPLE_OF_EACH: Final = 8
WATCHED: Final = 4
SEEDS: Final = range(2)

_T = TypeVar("_T")

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("forks")]


@dataclass
class Linker:
    """A person with a choice, in a session at the process that stops, and in another one elsewhere.

    Attributes:
        told: What was answered to all who asked when the process stood still.
    """

    walk: Walk
    elsewhere: Walk
    ids: Sequence[str]
    told: list[httpx.Response] = field(default_factory=list)

    async def ask(self, walk: Walk) -> None:
        self.told.append(await self.link(walk))

    async def link(self, walk: Walk) -> httpx.Response:
        """Ask until there is an answer that stays."""
        while True:
            answer = await walk.link(list(self.ids))
            if answer.status_code == 201 or not answer.json()["retryable"]:
                return answer
            await asyncio.sleep(0.2)


class Vendor:
    """What the vendor saw, person by person."""

    def __init__(self, upstream: SandboxServer) -> None:
        self.world = upstream.world

    def job_of(self, name: str) -> str:
        [job] = [each.id for each in list(self.world._known.jobs.values()) if each.username == name]
        return job

    def polls_of(self, name: str) -> int:
        return sum(call.path.endswith(f"/{self.job_of(name)}") for call in self.world.calls.all("job"))

    def passwords(self, *, refused: bool, since: float = 0) -> Sequence[str]:
        """Whose passwords came after a moment; refused are those whose token was no good any more: nothing ran."""
        calls = [call for call in self.world.calls.all("jobs") if call.time > since]
        return [json.loads(call.body)["username"] for call in calls if (call.status == 401) is refused]

    def times_taken(self, name: str) -> int:
        return self.passwords(refused=False).count(name)


def _named(kind: str) -> str:
    """A person of their own: nobody shares accounts with them."""
    name = f"{kind}.{len(PEOPLE)}"
    PEOPLE[name] = replace(PEOPLE[kind], username=name)
    return name


@dataclass
class Standstill:
    """People at the process that stops, and what becomes of what they wait for.

    Attributes:
        watched: Their validations are polled.
        signing_in: Their passwords are on their way.
        asking: What nobody answers meanwhile, and what is asked elsewhere instead.
        given_up: How validations had ended when the process went on.
        figures: Seconds from the stop.
    """

    paused: ServiceProcess
    others: Sequence[ServiceProcess]
    upstream: SandboxServer
    rng: random.Random
    linkers: list[Linker] = field(default_factory=list)
    watched: dict[str, Walk] = field(default_factory=dict)
    signing_in: dict[str, Walk] = field(default_factory=dict)
    asking: list[asyncio.Task[object]] = field(default_factory=list)
    given_up: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    stopped_at: float = 0

    def __post_init__(self) -> None:
        self.vendor = Vendor(self.upstream)

    @property
    def processes(self) -> Sequence[ServiceProcess]:
        return [self.paused, *self.others]

    def other(self) -> ServiceProcess:
        return self.rng.choice(self.others)

    # Before

    async def prepare(self) -> None:
        """Have people who are about to link and to sign in, and validations that do not end."""
        self.linkers = await asyncio.gather(*(self._linker() for _ in range(PEOPLE_OF_EACH)))
        for _ in range(PEOPLE_OF_EACH):
            self.signing_in[_named("user_quick")] = await self.paused.walk().open()
        for _ in range(WATCHED):
            name = _named("user_never")
            self.watched[name] = await self.paused.walk().open()
            assert (await self.watched[name].validate(name, wait=None)).status_code == 202
        await until(lambda: all(self.vendor.polls_of(name) for name in self.watched))

    async def _linker(self) -> Linker:
        name = _named("user_quick")
        walk, elsewhere = self.paused.walk(), self.other().walk()
        ids = await walk.ready(name)
        await elsewhere.ready(name)
        return Linker(walk, elsewhere, ids)

    def _ask(self, *requests: Coroutine[Any, Any, object]) -> None:
        self.asking += [asyncio.create_task(each) for each in requests]

    async def wait_for_the_vendor(self, redis: Redis, settings: Settings) -> None:
        """Some calls are on their way, and the token; what else people want waits for the token."""
        faults, half = self.upstream.world.faults, PEOPLE_OF_EACH // 2
        calling, holding = self.linkers[:half], self.linkers[half:]
        trying = [walk.validate(name, wait=None) for name, walk in self.signing_in.items()]
        # Of the calls, one half takes effect at once, the other when its token is no good any more.
        faults.add("batch", "delay", value=VENDOR_SECONDS, times=half // 2, after=True)
        faults.add("batch", "delay", value=VENDOR_SECONDS, times=half // 2)
        faults.add("jobs", "delay", value=VENDOR_SECONDS, times=half // 2, after=True)
        self._ask(*(each.ask(each.walk) for each in calling), *trying[: half // 2])
        await until(lambda: not faults.waiting())
        faults.add("jobs", "delay", value=REFUSED_SECONDS, times=half // 2)
        self._ask(*trying[half // 2 : half])
        await until(lambda: not faults.waiting())
        faults.add("token", "delay", value=VENDOR_SECONDS)
        self.upstream.world.tokens.revoke_all()
        await until(lambda: len(self.vendor.passwords(refused=True)) == half // 2 and not faults.waiting())
        self._ask(*(each.ask(each.walk) for each in holding), *trying[half:])

        async def all_hold() -> bool:
            return await _held(redis, settings) == {"sent": 2 * half, "claimed": 2 * half}

        await until(all_hold)
        await asyncio.sleep(HELD_SECONDS + self.rng.random())

    async def wait_for_redis(self, line: RedisLine, redis: Redis, settings: Settings) -> None:
        """Somebody's accounts are claimed and not marked; a validation is written down, and its password not sent."""
        line.delay_seconds = REDIS_SECONDS
        walks = [*(each.walk for each in self.linkers), *self.signing_in.values()]
        await asyncio.gather(*_one_by_one([walk.show() for walk in walks]))  # a connection takes several answers
        self._ask(*_one_by_one([each.ask(each.walk) for each in self.linkers]))
        self._ask(*_one_by_one([walk.validate(name, wait=None) for name, walk in self.signing_in.items()]))

        async def are_there() -> bool:
            return bool((await _held(redis, settings))["claimed"]) and await self._is_anybody_about_to_sign_in()

        await until(are_there)

    async def _is_anybody_about_to_sign_in(self) -> bool:
        unsent = [walk for name, walk in self.signing_in.items() if not self.vendor.times_taken(name)]
        found = await asyncio.gather(*(_validations(each.at(self.others[0].client)) for each in unsent))
        return any(found)

    # Meanwhile

    def stop(self) -> None:
        """Let it stand still; people ask elsewhere for what it does not answer, and ask itself for more."""
        assert not any(each.done() for each in self.asking)
        self.paused.stand_still()
        self.stopped_at = time.monotonic()
        for each in self.linkers:
            self._ask(each.ask(each.elsewhere), each.ask(each.walk.at(self.other().client)))
        self._ask(self._read(self.linkers[0].walk))

    async def _read(self, walk: Walk) -> None:
        assert (await walk.show()).status_code == 200
        self.figure("read at itself answered")

    async def meanwhile(self, left: Walk, seen: Event) -> None:
        """What the others do for those whose process stands still.

        Args:
            left: A session whose reader has gone elsewhere.
            seen: The last event that came there.
        """
        before = {name: self.vendor.polls_of(name) for name in self.watched}
        await asyncio.gather(
            *(self._taken_over(name, before[name]) for name in self.watched),
            *(self._given_up(name, walk.at(self.other().client)) for name, walk in self.signing_in.items()),
            self._newcomer(),
        )
        await asyncio.gather(*(self.ends(name, self.other()) for name in list(self.watched)[: WATCHED // 2]))
        async with listening(left, client=self.other().client, after=seen.id) as stream:
            _follows(seen, await stream.until("validation.succeeded"))

    async def _taken_over(self, name: str, before: int) -> None:
        await until(lambda: self.vendor.polls_of(name) > before, seconds=STILL_SECONDS)
        self.figure("validations taken over")

    async def _given_up(self, name: str, walk: Walk) -> None:
        """Nobody else knows whether the vendor has seen a password."""
        for validation in await _validations(walk):
            ended = (await walk.validation(validation["id"], wait=25)).json()["validation"]
            assert ended["state"] != "pending"
            self.given_up[name] = ended
            self.figure("passwords given up")

    async def _newcomer(self) -> None:
        """Has nothing to do with the process that stands still, but for the token that it may be fetching for all."""
        await _walks_through(self.other())
        self.figure("newcomer served")

    async def ends(self, name: str, *processes: ServiceProcess) -> None:
        """The utility lets somebody in, which all of these processes tell."""
        self.upstream.world.finish(self.vendor.job_of(name), "success")
        for process in processes:
            walk = self.watched[name].at(process.client)
            [validation] = await _validations(walk)
            ended = await walk.validation(validation["id"], wait=25)
            assert ended.json()["validation"]["state"] == "succeeded", ended.text
            assert len(await walk.account_ids()) == 2

    def figure(self, name: str) -> None:
        self.figures[name] = max(self.figures.get(name, 0), round(time.monotonic() - self.stopped_at, 1))

    # Afterwards

    async def nobody_else_polls(self) -> None:
        """Who took the validations over keeps them."""

        async def let_go() -> bool:
            return await _polled_by(self.paused) == 0

        await until(let_go)
        assert sum([await _polled_by(each) for each in self.others]) == WATCHED // 2

    async def links_are_as_told(self) -> None:
        """All processes tell the same of a choice, and ask the vendor no more."""
        before = sent(self.upstream, "batch")
        for each in self.linkers:
            walks = [walk.at(process.client) for walk in (each.walk, each.elsewhere) for process in self.processes]
            last = [await each.link(walk) for walk in walks]
            answers = {answer.status_code for answer in last}
            counts = {self.upstream.world.link_counts.get(account, 0) for account in each.ids}
            if 201 in {answer.status_code for answer in each.told}:
                assert (answers, counts) == ({201}, {1})
            else:
                assert answers == {504}
                assert counts in ({0}, {1})
                assert len({tuple(answer.json()["attempts"]) for answer in last}) == 1
        assert sent(self.upstream, "batch") == before

    async def passwords_are_as_told(self, went_on_at: float) -> None:
        """None is sent twice unless the person sends it again, and none at all that was given up."""
        afterwards = self.vendor.passwords(refused=False, since=went_on_at)
        assert not self.given_up.keys() & afterwards
        for name, walk in self.signing_in.items():
            taken = self.vendor.times_taken(name)
            assert taken <= 1
            found = await _validations(walk)
            if name in self.given_up:
                told = [await _validations(walk.at(process.client)) for process in self.processes]
                assert told == [[self.given_up[name]]] * len(self.processes)
                if taken and found[0].get("reason") == "interrupted":
                    assert self.vendor.polls_of(name) == 0, "nobody wants to know any more"
            ended = [(await walk.validation(each["id"], wait=25)).json()["validation"] for each in found]
            if "succeeded" not in {each["state"] for each in ended}:
                again = (await walk.validate(name)).json()["validation"]
                assert again["state"] == "succeeded"
                assert self.vendor.times_taken(name) == taken + 1

    def told(self) -> str:
        """What people were told, and what the vendor saw."""
        links = Counter(answer.status_code for each in self.linkers for answer in each.told)
        twice = [account for account, count in self.upstream.world.link_counts.items() if count > 1]
        given_up = Counter(each.get("reason", each["state"]) for each in self.given_up.values())
        return (
            f"links told {dict(links)}, accounts sent twice {len(twice)}; of {len(self.signing_in)} validations ended "
            f"elsewhere {dict(given_up)}; tokens {sent(self.upstream, 'token')}; seconds from the stop {self.figures}"
        )


def _one_by_one(requests: Sequence[Coroutine[Any, Any, _T]]) -> list[Coroutine[Any, Any, _T]]:
    """So far apart that one is at each step."""

    async def begin(seconds: float, request: Coroutine[Any, Any, _T]) -> _T:
        await asyncio.sleep(seconds)
        return await request

    return [begin(place * REDIS_SECONDS / 2, request) for place, request in enumerate(requests)]


async def _held(redis: Redis, settings: Settings) -> Counter[object]:
    """How many accounts are in which state."""
    keys = [key async for key in redis.scan_iter(f"{settings.redis_prefix}:{{g:*")]
    return Counter([await redis.hget(key, "st") for key in keys])


async def _token_version(redis: Redis, settings: Settings) -> object:
    [key] = [key async for key in redis.scan_iter(f"{settings.redis_prefix}:{{t:*:token")]
    return await redis.hget(key, "version")


async def _walks_through(process: ServiceProcess) -> None:
    walk = process.walk()
    ids = await walk.ready(_named("user_quick"))
    assert (await walk.link(ids)).status_code == 201


async def _validations(walk: Walk) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await walk.show()).json()["session"]["validations"]
    return found


async def _polled_by(process: ServiceProcess) -> int:
    told = re.search(r"^omniconnect_running_jobs (\d+)", (await process.client.get("/metrics")).text, re.MULTILINE)
    assert told is not None
    return int(told[1])


def _follows(seen: Event, events: Sequence[Event]) -> None:
    numbers = [int(each.id.rpartition("_")[2]) for each in (seen, *events)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


async def _stands_still(
    still: Standstill, begin: Callable[[], Awaitable[None]], redis: Redis, settings: Settings
) -> float:
    """From the stop until all is answered that was asked meanwhile; returns when it went on."""
    followed, left, *_ = still.watched.values()
    async with listening(followed) as staying:
        async with listening(left) as leaving:
            seen, last = await staying.next(), await leaving.next()
            assert seen
            assert last
            await begin()
            still.stop()
        taking_over = asyncio.create_task(still.meanwhile(left, last))
        await asyncio.sleep(STILL_SECONDS)
        in_time, version = taking_over.done(), await _token_version(redis, settings)
        went_on_at = time.time()
        still.paused.go_on()
        await taking_over
        assert in_time
        await asyncio.gather(*still.asking)
        still.figure("all answered")
        _follows(seen, await staying.until("validation.succeeded"))
    assert await _token_version(redis, settings) == version
    return went_on_at


async def _all_is_well(still: Standstill, went_on_at: float) -> None:
    await still.nobody_else_polls()
    for name in list(still.watched)[WATCHED // 2 :]:
        await still.ends(name, *still.processes)
    await still.passwords_are_as_told(went_on_at)
    await still.links_are_as_told()
    await _walks_through(still.paused)


@pytest.fixture
def settings(valkey: str, upstream: SandboxServer, prefix: str) -> Settings:
    """As in production, as far as time goes."""
    return make_settings(valkey, upstream.url, prefix, poll_seconds=1.0, poll_lease_seconds=10.0, redis_timeout=0.25)


@pytest.fixture
async def line(valkey: str) -> AsyncIterator[RedisLine]:
    async with RedisLine(valkey) as running:
        yield running


@pytest.fixture(params=SEEDS)
async def still(
    request: pytest.FixtureRequest, settings: Settings, line: RedisLine, upstream: SandboxServer
) -> AsyncIterator[Standstill]:
    slowed = settings.model_copy(update={"redis_url": SecretStr(line.url)})
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(serving(each)) for each in (slowed, settings, settings)]
        for each in processes:
            each.client.timeout = httpx.Timeout(PATIENT_SECONDS)
        [paused, *others] = processes
        still = Standstill(paused, others, upstream, random.Random(request.param))  # noqa: S311 -- repeatable, not secret
        await still.prepare()
        yield still


async def test_standing_still_in_the_middle_of_calls_it_repeats_nothing_loses_nothing_and_serves_again(
    settings: Settings, still: Standstill, redis: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    went_on_at = await _stands_still(still, lambda: still.wait_for_the_vendor(redis, settings), redis, settings)
    assert [each["reason"] for each in still.given_up.values()] == ["interrupted"] * (PEOPLE_OF_EACH // 2)
    await _all_is_well(still, went_on_at)
    # The first one for all; after that, who has waited too long for another's fetches for itself.
    assert sent(still.upstream, "token") <= 1 + len(still.processes)
    with capsys.disabled():
        print(f"\nwaiting for the vendor: {still.told()}")  # noqa: T201 -- the figures of a run of full size


async def test_standing_still_between_two_commands_it_repeats_nothing_loses_nothing_and_serves_again(
    settings: Settings, still: Standstill, line: RedisLine, redis: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    async def begin() -> None:
        await still.wait_for_redis(line, redis, settings)
        line.delay_seconds = 0

    went_on_at = await _stands_still(still, begin, redis, settings)
    assert "interrupted" in [each.get("reason") for each in still.given_up.values()]
    await _all_is_well(still, went_on_at)
    assert sent(still.upstream, "token") == 1
    with capsys.disabled():
        print(f"\nwaiting for Redis: {still.told()}")  # noqa: T201 -- as above
