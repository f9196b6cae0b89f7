"""Every script runs four times by one command, as after lost replies, and leaves what it leaves after one run.

A repeat may be late: then commands of others ran before it, and it must not undo what they did.
"""

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from typing_extensions import override

from service.clock import Millis
from service.errors import RateLimited
from service.stores import connection
from service.stores.connection import Store
from service.stores.durations import DurationStore
from service.stores.guards import GuardStore
from service.stores.jobs import Job, JobStore
from service.stores.keys import Keys
from service.stores.limits import Limit, LimitStore
from service.stores.locks import Locks
from service.stores.records import HostedRecord, Intent, LinkRecord
from service.stores.scripts import REPEATABLE, load, names
from service.stores.sealing import KeyRing
from service.stores.sessions import Invitation, NewSession, SessionStore
from service.stores.tokens import TokenStore, UpstreamToken

RUNS: Final = 4
NOW: Final = Millis(int(time.time() * 1000))
LATER: Final = Millis(NOW + 3_600_000)
ID: Final = "ses_0123456789abcdef01234567"
LIMIT: Final = Limit("policy", 5, 900)
RESTARTING: Final = Limit("account", 5, 900, restarts=True)
LINK: Final = LinkRecord("lnk_1", NOW, "acc")
HOSTED: Final = HostedRecord("https://shop.example/", None, 1_800_000)

_REASONS_TO_REPEAT: Final = {
    "session_read": "a read that is counted twice only brings the limit of reads nearer",
    "duration_count": "a duration is one among many, and the pace that is learned from them forgives one too many",
}
"""The scripts that may count a repeat, and why."""


class RepeatingStore(Store):
    """Sends each command of one script four times; all runs must be answered alike."""

    repeated: str | None = None
    meanwhile: Callable[[], Awaitable[object]] | None = None
    answers: Sequence[Any] = ()
    seen: set[str]

    @override
    async def run(self, script: str, **rest: Any) -> Any:
        self.seen.add(script)
        if script != self.repeated:
            return await super().run(script, **rest)
        self._again, self.repeated = True, None
        try:
            return await super().run(script, **rest)
        finally:
            self._again = False

    _again = False

    @override
    async def _command(self, *command: str | int) -> Any:
        send = super()._command
        if not self._again:
            return await send(*command)
        self._again = False  # what others do meanwhile runs once
        answers = [await send(*command)]
        if self.meanwhile is not None:
            await self.meanwhile()
        answers += [await send(*command) for _ in range(RUNS - 1)]
        self.answers = answers
        return answers[0]


class World:
    """All stores over one prefix, and another process's jobs."""

    def __init__(self, store: Store, prefix: str) -> None:
        keys = Keys(prefix, "default")
        self.store, self.keys = store, keys
        self.sessions = SessionStore(store=store, keys=keys, retention_ms=86_400_000)
        self.limits = LimitStore(store=store, keys=keys)
        self.guards = GuardStore(store=store, keys=keys, lease_ms=60_000, sent_lease_ms=60_000, keep_ms=60_000)
        self.lapsing = GuardStore(store=store, keys=keys, lease_ms=0, sent_lease_ms=0, keep_ms=60_000)
        self.jobs, self.others = (JobStore(store=store, keys=keys, lease_ms=60_000) for _ in range(2))
        self.dead = JobStore(store=store, keys=keys, lease_ms=0)
        for holder, each in (("me", self.jobs), ("other", self.others), ("dead", self.dead)):
            each._holder = holder
        self.locks = Locks(store=store, channel=keys.channel)
        self.durations = DurationStore(store=store, keys=keys)
        self.tokens = TokenStore(store=store, keys=keys, key_ring=KeyRing.__new__(KeyRing))
        self.tokens._key_ring = _Unsealed()  # type: ignore[assignment]

    async def session(self, **changes: Any) -> None:
        new = NewSession(ID, "default", "key:main", None, {}, NOW, LATER, "hash", "acc")
        await self.sessions.create(replace(new, **changes))

    async def hosted(self) -> None:
        await self.session(invitation=Invitation("secret", HOSTED))

    async def read(self) -> Any:
        found = await self.sessions.read(ID)
        assert found is not None
        return found

    async def enters(self, browser: str, *, known: str = "", token: str = "") -> str:
        return await self.sessions.enter(
            ID,
            tenants=["default"],
            secret_hash="" if known else "secret",
            known_browser=known,
            new_browser=browser,
            token_hash=token or f"token of {browser}",
            begin=True,
            now=NOW,
        )

    async def adds(self, validation: str, provider: str = "p1") -> str:
        added = await self.sessions.add_validation(
            await self.read(),
            validation,
            provider_id=provider,
            kind="password",
            now=NOW,
            deadline=LATER,
            most_pending=3,
            most_passwords=5,
            most=20,
            grace_ms=30_000,
            account="account",
            attempts_left=4,
        )
        return added.verdict

    async def changes(self, validation: str, **fields: str) -> bool:
        return await self.sessions.change_validation(ID, validation, fields, now=NOW)

    async def ends(self, validation: str) -> bool:
        return await self.changes(validation, state="failed", reason="canceled")

    async def begins(self, attempt: str) -> str:
        return await self.sessions.begin_link(
            await self.read(),
            Intent(attempt, LATER, "ab", ["a"]),
            now=NOW,
            most_intents=3,
            most_keys=9,
            idempotency=("key", "print"),
        )

    async def settles(self, attempt: str, result: Literal["linked", "unknown", "open"]) -> Any:
        return await self.sessions.settle_link(
            ID,
            Intent(attempt, LATER, "ab", ["a"]),
            result,
            now=NOW,
            link=LINK if result == "linked" else None,
            unclear=[attempt] if result == "unknown" else (),
        )

    async def closes(self, *voided: str) -> str:
        return await self.sessions.close(await self.read(), now=NOW, voided=voided)

    async def claims(self, attempt: str) -> Any:
        return await self.guards.claim(attempt, "acc", ["a"], digest="d", waited_for=None, resend=())

    async def sends(self, attempt: str) -> None:
        await self.claims(attempt)
        await self.marks(attempt)

    async def marks(self, attempt: str) -> str:
        return await self.guards.mark_sent(attempt, "acc", ["a"])

    async def records(self, attempt: str, result: Literal["linked", "refused", "unknown", "unsent"]) -> Any:
        return await self.guards.record(attempt, "acc", ["a"], result, why="400")

    async def spends(self, *, limit: Limit = LIMIT) -> Any:
        try:
            return await self.limits.spend(limit, "who")
        except RateLimited as error:
            return error.code

    async def counts(self, attempt: str) -> int:
        return (await self.limits.count_attempt(RESTARTING, "who", attempt)).left

    async def gives_back(self, attempt: str) -> None:
        await self.limits.give_back_attempt(RESTARTING, "who", attempt)

    async def forgets(self, attempt: str) -> None:
        await self.limits.forget_attempts(RESTARTING, "who", attempt)

    async def locked(self, holder: str) -> Any:
        return await self.store.run("lock", keys=[self.keys.token], args=[holder, 60_000])

    async def unlocked(self, holder: str) -> Any:
        args = [holder, self.keys.channel, "topic"]
        return await self.store.run("unlock", keys=[self.keys.token], args=args)

    async def shares(self, version: str) -> None:
        token = UpstreamToken(version, "acc", SecretStr(version), Millis(LATER - 1000), LATER)
        await self.tokens.write(token, now=NOW)

    async def drops(self, version: str) -> None:
        await self.tokens.drop(UpstreamToken(version, "acc", SecretStr(version), LATER, LATER))

    async def streams(self, name: str) -> bool:
        return await self.sessions.hold_stream(ID, name, now=NOW, hold_ms=60_000, most=2)

    async def forget_window(self, key: str) -> None:
        """Its time is over."""
        await self.store._command("DEL", key)


class _Unsealed:
    """Sealing makes other bytes each time."""

    def seal(self, plain: bytes, *, place: str) -> str:  # noqa: ARG002 -- the form of `KeyRing`
        return plain.decode()


Step = Callable[[World], Awaitable[object]]


@dataclass(frozen=True)
class Case:
    """A command of a script in a state; and what others do between its first run and its repeats."""

    script: str
    does: Step
    given: Sequence[Step] = ()
    meanwhile: Sequence[Step] = ()
    name: str = field(default="")


JOB, OTHER_JOB = Job(ID, "val_1"), Job(ID, "val_2")


def _of(script: str, does: Step, *given: Step, **later: Sequence[Step]) -> Sequence[Case]:
    """A command by itself, and once for each of what may come between its runs."""
    return [
        Case(script, does, given, name=script),
        *(Case(script, does, given, steps, f"{script}-{name}") for name, steps in later.items()),
    ]


CASES: Final[Sequence[Case]] = [
    *_of("session_create", lambda w: w.session(), closed=[lambda w: w.closes()]),
    *_of(
        "session_retoken",
        lambda w: w.sessions.replace_token(ID, "new"),
        lambda w: w.session(),
        newer=[lambda w: w.sessions.replace_token(ID, "newer")],
    ),
    *_of("session_expire", lambda w: w.sessions.expire(ID, now=LATER), lambda w: w.session()),
    *_of("session_close", lambda w: w.closes("A"), lambda w: w.session(), lambda w: w.begins("A")),
    *_of(
        "session_close",
        lambda w: w.closes(),
        lambda w: w.session(),
        lambda w: w.begins("A"),
        refused_and_then_settled=[lambda w: w.settles("A", "open")],
    ),
    *_of("hosted_enter", lambda w: w.enters("b1"), lambda w: w.hosted(), another=[lambda w: w.enters("b2")]),
    *_of(
        "hosted_enter",
        lambda w: w.enters("b2"),
        lambda w: w.hosted(),
        lambda w: w.enters("b1"),
        restarted_and_validating=[lambda w: w.adds("val_1")],
        restarted_by_another=[lambda w: w.enters("b3")],
    ),
    *_of(
        "hosted_enter",
        lambda w: w.enters("b2", known="b1", token="t2"),
        lambda w: w.hosted(),
        lambda w: w.enters("b1"),
        resumed_again=[lambda w: w.enters("b3", known="b1", token="t3")],
    ),
    *_of(
        "accounts_put",
        lambda w: _put(w, "old"),
        lambda w: w.session(),
        newer=[lambda w: _put(w, "new")],
    ),
    *_of(
        "validation_add",
        lambda w: w.adds("val_1"),
        lambda w: w.session(),
        finished=[lambda w: w.ends("val_1")],
        taken_back=[lambda w: w.sessions.take_back_attempt(ID, "val_1")],
    ),
    *_of(
        "validation_add",
        lambda w: w.adds("val_2"),
        lambda w: w.session(),
        lambda w: w.adds("val_1"),
        refused_and_then_free=[lambda w: w.ends("val_1")],
    ),
    *_of(
        "validation_set",
        lambda w: w.changes("val_1", job="j1", authorize="https://pge.example/"),
        lambda w: w.session(),
        lambda w: w.adds("val_1"),
        finished=[lambda w: w.ends("val_1")],
    ),
    *_of("validation_set", lambda w: w.ends("val_1"), lambda w: w.session(), lambda w: w.adds("val_1")),
    *_of(
        "attempt_take_back",
        lambda w: w.sessions.take_back_attempt(ID, "val_1"),
        lambda w: w.session(),
        lambda w: w.adds("val_1"),
        others=[lambda w: w.ends("val_1"), lambda w: w.adds("val_2")],
    ),
    *_of(
        "link_begin",
        lambda w: w.begins("A"),
        lambda w: w.session(),
        settled=[lambda w: w.settles("A", "open")],
        linked=[lambda w: w.settles("A", "linked")],
    ),
    *_of(
        "link_settle",
        lambda w: w.settles("A", "unknown"),
        lambda w: w.session(),
        lambda w: w.begins("A"),
        cleared=[lambda w: w.settles("A", "open")],
        linked=[lambda w: w.settles("B", "linked")],
    ),
    *_of("link_settle", lambda w: w.settles("A", "linked"), lambda w: w.session(), lambda w: w.begins("A")),
    *_of(
        "link_settle",
        lambda w: w.settles("A", "open"),
        lambda w: w.session(),
        lambda w: w.settles("A", "unknown"),
        unknown_again=[lambda w: w.settles("A", "unknown")],
    ),
    *_of("guard_claim", lambda w: w.claims("A"), refused=[lambda w: w.marks("A"), lambda w: w.records("A", "refused")]),
    *_of(
        "guard_claim",
        lambda w: w.claims("A"),
        given_back=[lambda w: w.records("A", "unsent")],
        given_back_to_another=[lambda w: w.records("A", "unsent"), lambda w: w.sends("B")],
    ),
    *_of(
        "guard_mark",
        lambda w: w.marks("A"),
        lambda w: w.claims("A"),
        refused=[lambda w: w.records("A", "refused")],
        sent_by_another=[lambda w: w.records("A", "unsent"), lambda w: w.sends("B")],
    ),
    *_of(
        "guard_result",
        lambda w: w.records("A", "unknown"),
        lambda w: w.sends("A"),
        cleared=[lambda w: w.records("A", "refused")],
        linked=[lambda w: w.records("B", "linked")],
    ),
    *_of(
        "guard_result",
        lambda w: w.records("A", "refused"),
        lambda w: w.sends("A"),
        another=[lambda w: w.sends("B"), lambda w: w.records("B", "refused")],
    ),
    *_of("guard_result", lambda w: w.records("A", "linked"), lambda w: w.sends("A")),
    *_of(
        "guard_look",
        lambda w: w.guards.look("A", "acc", ["a"], void=True),
        lambda w: w.claims("A"),
        claimed_by_another=[lambda w: w.sends("B")],
    ),
    *_of(
        "guard_look",
        lambda w: w.guards.look("A", "acc", ["a"], void=True),
        lambda w: w.sends("A"),
        busy_and_then_unsent=[lambda w: w.records("A", "unsent")],
    ),
    *_of(
        "job_hold",
        lambda w: w.jobs.hold(JOB),
        finished=[lambda w: w.jobs.drop([JOB], "finished")],
        released=[lambda w: w.jobs.drop([JOB], "release"), lambda w: w.others.renew(sent=(), unsent=(), most=9)],
    ),
    *_of(
        "job_hold",
        lambda w: w.jobs.renew(sent=[OTHER_JOB], unsent=(), most=9),
        lambda w: w.dead.hold(JOB),
        finished=[lambda w: w.jobs.drop([JOB, OTHER_JOB], "finished")],
    ),
    *_of(
        "job_drop",
        lambda w: w.jobs.drop([JOB], "release"),
        lambda w: w.jobs.hold(JOB),
        taken=[lambda w: w.others.renew(sent=(), unsent=(), most=9)],
    ),
    *_of("job_drop", lambda w: w.jobs.drop([JOB], "finished"), lambda w: w.jobs.hold(JOB)),
    *_of(
        "lock",
        lambda w: w.locked("me"),
        given_back=[lambda w: w.unlocked("me")],
        of_another=[lambda w: w.unlocked("me"), lambda w: w.locked("other")],
    ),
    *_of(
        "lock",
        lambda w: w.locked("me"),
        lambda w: w.locked("other"),
        refused_and_then_free=[lambda w: w.unlocked("other")],
    ),
    *_of("unlock", lambda w: w.unlocked("me"), lambda w: w.locked("me"), of_another=[lambda w: w.locked("other")]),
    *_of(
        "stream_hold",
        lambda w: w.streams("s1"),
        dropped=[lambda w: w.sessions.drop_stream(ID, "s1")],
        dropped_and_full=[
            lambda w: w.sessions.drop_stream(ID, "s1"),
            lambda w: w.streams("s2"),
            lambda w: w.streams("s3"),
        ],
    ),
    *_of("token_put", lambda w: w.shares("t1"), newer=[lambda w: w.shares("t2")], dropped=[lambda w: w.drops("t1")]),
    *_of("token_drop", lambda w: w.drops("t1"), lambda w: w.shares("t1"), newer=[lambda w: w.shares("t2")]),
    *_of(
        "value_put",
        lambda w: w.store.put(w.keys.providers, "old", keep_ms=60_000),
        newer=[lambda w: w.store.put(w.keys.providers, "new", keep_ms=60_000)],
    ),
    *_of(
        "window",
        lambda w: w.spends(),
        others=[lambda w: w.spends(), lambda w: w.spends()],
        over=[lambda w: w.forget_window(w.keys.limit("policy", "who"))],
        begun_anew=[lambda w: w.forget_window(w.keys.limit("policy", "who")), lambda w: w.spends()],
    ),
    *_of("window", lambda w: w.spends(limit=replace(LIMIT, most=0))),
    *_of(
        "attempt_count",
        lambda w: w.counts("A"),
        given_back=[lambda w: w.gives_back("A")],
        forgotten=[lambda w: w.forgets("A"), lambda w: w.counts("B")],
        begun_anew=[lambda w: w.forget_window(w.keys.attempts("account", "who")), lambda w: w.counts("B")],
    ),
    *_of(
        "attempt_count",
        lambda w: w.counts("F"),
        *(lambda w, each=each: w.counts(each) for each in map(str, range(5))),
        refused_and_then_free=[lambda w: w.gives_back("0")],
    ),
    *_of("attempt_count", lambda w: w.counts("A"), lambda w: w.gives_back("A")),
    *_of(
        "attempt_give_back",
        lambda w: w.gives_back("A"),
        lambda w: w.counts("A"),
        lambda w: w.counts("B"),
        forgotten=[lambda w: w.forgets("B"), lambda w: w.counts("C")],
    ),
    *_of(
        "attempt_forget",
        lambda w: w.forgets("B"),
        lambda w: w.counts("A"),
        lambda w: w.counts("B"),
        counted_again=[lambda w: w.counts("C"), lambda w: w.counts("D")],
    ),
]


async def _put(world: World, sealed: str) -> None:
    await world.sessions.put_accounts(await world.read(), {"a": sealed})


@pytest.fixture
async def stores(valkey: str) -> AsyncIterator[tuple[RepeatingStore, RepeatingStore]]:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(Redis.from_url(valkey))
        for name in names():
            await redis.script_load(load(name).text)  # so that each takes one command
        opened = [
            await stack.enter_async_context(RepeatingStore(SecretStr(valkey), command_seconds=5)) for _ in range(2)
        ]
        for each in opened:
            each.seen = set()
        yield opened[0], opened[1]


_LATELY: Final = re.compile(r"\b\d{13}\b")
_LEFT: Final = re.compile(r"\b(?:89\d{4}|900000)\b")


def _timeless(text: str) -> str:
    """Without moments of the last and next hours, and without what is left of a window that has just begun."""
    text = _LEFT.sub("L", text)
    return _LATELY.sub(lambda found: "T" if abs(int(found[0]) - NOW) < 90_000_000 else found[0], text)


async def _dump(redis: Redis, prefix: str) -> Mapping[str, str]:
    """All that Redis holds, and whether it has an end; of operations only that they are remembered."""
    found: dict[str, str] = {}
    async for key in redis.scan_iter(f"{prefix}:*", count=10_000):
        match await redis.type(key):
            case "hash":
                value: Any = sorted((await redis.hgetall(key)).items())
            case "zset":
                ranked: Any = await redis.zrange(key, 0, -1, withscores=True)
                value = [(member, f"{score:.0f}") for member, score in ranked]
            case _:
                value = await redis.get(key)
        ends = await redis.pttl(key) > 0
        if key.startswith(f"{prefix}:op:"):
            assert ends, key
        else:
            found[key.removeprefix(prefix)] = f"{_timeless(repr(value))} {'ends' if ends else 'stays'}"
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_four_runs_leave_what_one_leaves_and_are_answered_as_the_first(
    stores: tuple[RepeatingStore, RepeatingStore], valkey: str, prefix: str, case: Case
) -> None:
    async def run(store: RepeatingStore, world: World, *, again: bool) -> object:
        async def others() -> None:
            for step in case.meanwhile:
                await step(world)

        for step in case.given:
            await step(world)
        store.seen.clear()
        store.meanwhile = others
        store.repeated = case.script if again else None
        answer = await case.does(world)
        assert case.script in store.seen
        if not again:
            await others()
        return answer

    once = await run(stores[0], World(stores[0], f"{prefix}a"), again=False)
    often = await run(stores[1], World(stores[1], f"{prefix}b"), again=True)
    async with Redis.from_url(valkey, decode_responses=True) as redis:
        assert await _dump(redis, f"{prefix}b") == await _dump(redis, f"{prefix}a")
    assert _timeless(repr(often)) == _timeless(repr(once))
    assert len(stores[1].answers) == RUNS
    assert [_timeless(repr(each)) for each in stores[1].answers] == [_timeless(repr(stores[1].answers[0]))] * RUNS


def test_every_script_has_a_case_or_a_reason_to_have_none() -> None:
    assert {case.script for case in CASES} | _REASONS_TO_REPEAT.keys() == set(names())
    assert _REASONS_TO_REPEAT.keys() == REPEATABLE
    assert not {case.script for case in CASES} & REPEATABLE


def test_no_other_command_changes_anything_that_a_repeat_would_change_again() -> None:
    """`ZREM` removes a stream, whose name is never used again; `SET` marks that there was a write, for `WAIT`."""
    source = Path(connection.__file__).read_text(encoding="utf-8")
    sent = set(re.findall(r'(?:_command|_keep|execute_command)\("([A-Z]+)"|\("([A-Z]+)", ', source))
    allowed = {"EVALSHA", "EVAL", "HGETALL", "GET", "PING", "INFO", "ZREM", "SET", "WAIT"}
    assert {"".join(found) for found in sent} == allowed
