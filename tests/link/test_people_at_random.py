"""Random people at two replicas, which crash: what they are told is what a simple model of the flow says.

The model knows no Redis, no leases and no replicas.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeVar

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis
from typing_extensions import override

from service.errors import StoreUnavailable
from service.sandbox.companies import COMPANIES
from service.sandbox.people import account_of
from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY
from tests.conftest import Replica, make_settings, running_replica
from tests.fuzzing import FUZZ, tell
from tests.processes import eventually
from tests.walk import APS, SRP, Walk

PROGRAMS: Final = 4 * FUZZ
STEPS: Final = 20
MOST_PASSWORDS: Final = 5
MOST_PEOPLE: Final = 5
MOST_CRASHES: Final = 3
_T = TypeVar("_T")

SIGN_INS: Final = [
    ("user_quick", APS),
    ("user_quick", SRP),
    ("user_link_refused", APS),
    ("user_bad", APS),
    ("user_job_error", SRP),
]
ENDS: Final = {"user_bad": ("rejected", "OM400"), "user_job_error": ("failed", "OM500")}
CODES: Final = {"closed": (409, "session_closed"), "unknown": (504, "outcome_unknown")}


def accounts_of(username: str, provider: str) -> set[str]:
    """Ids of the service accounts that signing in leads to."""
    return {each.id for each in account_of(username, COMPANIES[provider]).service_accounts}


REFUSED: Final = accounts_of("user_link_refused", APS)


@dataclass
class Person:
    """One session, as the model sees it."""

    walk: Walk
    state: str = "open"
    choice: tuple[str, ...] = ()
    told: Sequence[str] = ()
    outcome: Any = None
    link_id: str = ""
    tries: int = 0
    learned: set[str] = field(default_factory=set)
    validations: dict[str, str] = field(default_factory=dict)
    dead_tokens: list[str] = field(default_factory=list)


class Life:
    """What runs while one program is played: two replicas on one store, and the vendor."""

    def __init__(self, loop: asyncio.AbstractEventLoop, valkey: str, vendor: SandboxServer, prefix: str) -> None:
        self._loop = loop
        self.vendor = vendor
        self.valkey = valkey
        self.settings = make_settings(valkey, vendor.url, prefix, session_reads=1_000_000, account_attempts=1000)
        self.crashes = 0
        self._running: list[tuple[Replica, AsyncExitStack]] = []

    def do(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Let the test's event loop do it; the program waits in its own thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def start(self) -> None:
        self.vendor.world.reset()
        self.vendor.world.settings.speed = 0.02
        for at in range(2):
            await self._start(at)

    async def _start(self, at: int) -> None:
        stack = AsyncExitStack()
        replica = await stack.enter_async_context(running_replica(self.settings))
        self._running.insert(at, (replica, stack))

    def at(self, which: int) -> httpx.AsyncClient:
        return self._running[which][0].client

    async def crash(self, which: int) -> None:
        """Nothing that it would still do reaches the store or anybody; then another one takes its place."""
        self.crashes += 1
        replica, stack = self._running.pop(which)
        attach = replica.app.state.steps.attach
        attach._sessions._store._command = _gone
        while tasks := attach._tasks._tasks.copy():
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.05)
        await stack.aclose()
        await self._start(which)

    async def expire_guards(self) -> None:
        """Let the leases of all link calls run out."""
        async with Redis.from_url(self.valkey, decode_responses=True) as redis:
            async for key in redis.scan_iter(f"{self.settings.redis_prefix}:{{g:*", count=1000):
                if await redis.type(key) == "hash" and await redis.hexists(key, "until"):
                    await redis.hset(key, "until", "1")

    async def stop(self) -> None:
        self.vendor.world.faults.clear()
        for _, stack in self._running:
            await stack.aclose()

    def sent(self) -> list[tuple[str, ...]]:
        """The choices of all link calls that reached the vendor."""
        return [tuple(sorted(json.loads(call.body))) for call in self.vendor.world.calls.all("batch")]


async def _gone(*_: object) -> NoReturn:
    raise StoreUnavailable


class People(RuleBasedStateMachine):
    """What people do, and what they must be told."""

    life: Life
    tally: Counter[str]

    people = Bundle("people")
    replicas = st.integers(0, 1)
    sign_ins = st.sampled_from(SIGN_INS)
    seldom = st.sampled_from([False, False, False, True])

    def __init__(self) -> None:
        super().__init__()
        self.everybody: list[Person] = []
        self.linked: set[str] = set()
        self.unclear: dict[str, set[str]] = {}
        self.expected: list[tuple[str, ...]] = []
        self.life.do(self.life.start())

    @override
    def teardown(self) -> None:
        self.tally.update(f"sessions {person.state}" for person in self.everybody)
        self.tally["link calls"] += len(self.expected)
        self.tally["crashes"] += self.life.crashes
        self.life.do(self.life.stop())

    def _at(self, person: Person, replica: int) -> Walk:
        return person.walk.at(self.life.at(replica))

    @initialize(target=people)
    def first(self) -> Any:
        return multiple(*(self.open(at, ("user_quick", APS)) for at in (0, 1)))

    @rule(target=people, replica=replicas, sign_in=sign_ins)
    @precondition(lambda self: len(self.everybody) < MOST_PEOPLE)
    def open(self, replica: int, sign_in: tuple[str, str]) -> Person:
        walk = Walk(self.life.at(replica), api_key=SANDBOX_API_KEY)
        person = Person(self.life.do(walk.open(subject=f"person-{len(self.everybody)}")))
        self.everybody.append(person)
        self.sign_in(person, replica, sign_in, crash=False)
        return person

    @rule(person=people, replica=replicas, sign_in=sign_ins, crash=seldom)
    def sign_in(self, person: Person, replica: int, sign_in: tuple[str, str], *, crash: bool) -> None:
        username, provider = sign_in
        crash = crash and self.life.crashes < MOST_CRASHES
        if person.tries >= MOST_PASSWORDS:
            return
        walk = self._at(person, replica)
        started = self.life.do(walk.validate(username, provider=provider, wait=None if crash else 20))
        if person.state != "open":
            state = "closed" if person.state == "linked" else person.state
            assert (started.status_code, started.json()["code"]) == CODES[state], started.text
            return
        person.tries += 1
        validation = started.json()["validation"]
        if crash:
            self.life.do(self.life.crash(replica))
            finished = self.life.do(self._at(person, 1 - replica).validation(validation["id"], wait=25))
            validation = finished.json()["validation"]
            assert validation["state"] != "pending", finished.text
        else:
            assert started.status_code == 201, started.text
        state, _ = ENDS.get(username, ("succeeded", "OM200"))
        assert validation["state"] == state, validation
        person.validations[validation["id"]] = state
        if state == "succeeded":
            person.learned |= accounts_of(username, provider)

    @rule(person=people, replica=replicas)
    def look_for_accounts(self, person: Person, replica: int) -> None:
        answer = self.life.do(self._at(person, replica).accounts())
        if person.state == "closed":
            assert (answer.status_code, answer.json()["code"]) == CODES["closed"]
        elif not person.learned:
            assert (answer.status_code, answer.json()["code"]) == (409, "validation_required")
        else:
            assert {each["id"] for each in answer.json()["serviceAccounts"]} == person.learned

    @rule(
        person=people,
        replica=replicas,
        pick=st.sets(st.integers(0, 5), min_size=1, max_size=3),
        lost=seldom,
        resend=st.booleans(),
        how_many=st.integers(1, 3),
    )
    def link(self, person: Person, replica: int, pick: set[int], *, lost: bool, resend: bool, how_many: int) -> None:
        """Some at the same time, at both replicas: one call, and one answer for all of them."""
        known = sorted(person.learned)
        choice = tuple(sorted({known[each % len(known)] for each in pick})) if known else ("strange",)
        if person.state == "unknown" and resend:
            choice = person.choice
        named = list(person.told) if resend else []
        rest = tuple(each for each in choice if each not in self.linked)
        if lost:
            self.life.vendor.world.faults.add("batch", "reset", after=True)
        walks = [self._at(person, (replica + each) % 2) for each in range(how_many)]
        answers = self.life.do(_together([walk.link(list(choice), resendUnknown=named) for walk in walks]))
        self.life.vendor.world.faults.clear()
        for answer in answers:
            if not self._foreseen(person, choice, answer):
                break
        else:
            return
        before = set().union(*(self.unclear.get(each, set()) for each in rest))
        if not before <= set(named):
            self._is_unknown(person, choice, answers, before)
        elif not rest:
            self._is_linked(person, choice, answers)
        else:
            refused = not lost and bool(REFUSED & set(rest))
            # Whoever comes after a refusal, and has not waited for it, tries again.
            calls = len(self.life.sent()) - len(self.expected) if refused else 1
            assert 1 <= calls <= how_many
            self.expected += [rest] * calls
            self._was_sent(person, choice, rest, answers, lost=lost, before=before)

    def _foreseen(self, person: Person, choice: tuple[str, ...], answer: httpx.Response) -> bool:
        """Whether the session's state alone decides, and it is told so."""
        told = (answer.status_code, answer.json().get("code"))
        if person.state == "closed":
            assert told == CODES["closed"], answer.text
        elif not person.learned.issuperset(choice):
            assert told == (404, "not_found"), answer.text
        elif person.state == "linked" and choice == person.choice:
            assert answer.json()["link"]["id"] == person.link_id
            assert answer.headers["idempotency-replayed"] == "true"
        elif person.state == "linked":
            assert told == CODES["closed"], answer.text
        elif person.state == "unknown" and choice != person.choice:
            if self._left(person.choice):
                assert told == CODES["unknown"], answer.text
            return bool(self._left(person.choice))
        else:
            return False
        return True

    def _left(self, choice: tuple[str, ...]) -> set[str]:
        """The unclear attempts that stand in a choice's way."""
        return set().union(*(self.unclear.get(each, set()) for each in choice if each not in self.linked))

    def _is_unknown(
        self, person: Person, choice: tuple[str, ...], answers: list[httpx.Response], attempts: set[str]
    ) -> None:
        for answer in answers:
            assert (answer.status_code, answer.json()["code"]) == CODES["unknown"], answer.text
            assert attempts <= set(answer.json()["attempts"])
            person.told = answer.json()["attempts"]
        person.state, person.choice = "unknown", choice

    def _is_linked(self, person: Person, choice: tuple[str, ...], answers: list[httpx.Response]) -> None:
        for answer in answers:
            assert answer.status_code == 201, answer.text
            assert {each["id"] for each in answer.json()["serviceAccounts"]} == set(choice)
        (person.link_id,) = {answer.json()["link"]["id"] for answer in answers}
        person.state, person.choice, person.told = "linked", choice, ()

    def _was_sent(
        self,
        person: Person,
        choice: tuple[str, ...],
        rest: tuple[str, ...],
        answers: list[httpx.Response],
        *,
        lost: bool,
        before: set[str],
    ) -> None:
        if lost:
            told = {attempt for answer in answers for attempt in answer.json()["attempts"]}
            (new,) = told - before
            for account in rest:
                self.unclear.setdefault(account, set()).update(before | {new})
            self._is_unknown(person, choice, answers, before | {new})
        elif REFUSED & set(rest):
            for answer in answers:
                assert (answer.status_code, answer.json()["code"]) == (502, "upstream_error"), answer.text
        else:
            self.linked |= set(rest)
            self._is_linked(person, choice, answers)

    @rule(person=people, replica=replicas, pick=st.sets(st.integers(0, 5), min_size=1, max_size=3))
    @precondition(lambda self: any(each.state == "open" and each.learned for each in self.everybody))
    def crash_while_linking(self, person: Person, replica: int, pick: set[int]) -> None:
        known = sorted(person.learned)
        choice = tuple(sorted({known[each % len(known)] for each in pick})) if known else ()
        rest = tuple(each for each in choice if each not in self.linked)
        if person.state != "open" or not rest or self._left(choice):
            return
        self.expected.append(rest)
        self.life.do(self._crash_meanwhile(person, replica, choice))
        again = self.life.do(self._at(person, 1 - replica).link(list(choice)))
        assert again.json()["code"] == "outcome_unknown", again.text
        (new,) = again.json()["attempts"]
        for account in rest:
            self.unclear[account] = {new}
        self._is_unknown(person, choice, [again], {new})

    async def _crash_meanwhile(self, person: Person, replica: int, choice: tuple[str, ...]) -> None:
        life = self.life
        life.vendor.world.faults.add("batch", "hang")
        sent = len(life.sent())
        linking = asyncio.ensure_future(self._at(person, replica).link(list(choice)))
        await eventually(lambda: len(life.sent()) > sent)
        await life.crash(replica)
        with suppress(httpx.TransportError):
            await linking
        await life.expire_guards()

    @rule(person=people, replica=replicas)
    def close(self, person: Person, replica: int) -> None:
        answer = self.life.do(self._at(person, replica).close())
        assert answer.status_code == 200, answer.text
        if person.state == "open":
            person.state = "closed"
        self._holds(person, answer)

    @rule(person=people, replica=replicas)
    def replace_token(self, person: Person, replica: int) -> None:
        walk = self._at(person, replica)
        answer = self.life.do(walk.client.post(f"{walk.path}/tokens", headers=walk.server_headers))
        assert answer.status_code == 201, answer.text
        person.dead_tokens.append(person.walk.token)
        person.walk.token = answer.json()["session"]["token"]

    @rule(person=people, replica=replicas)
    def use_a_dead_token(self, person: Person, replica: int) -> None:
        for token in person.dead_tokens[-1:]:
            walk = self._at(person, replica)
            walk.token = token
            for answer in self.life.do(_together([walk.show(), walk.validate(), walk.link(["a"]), walk.close()])):
                assert answer.status_code == 401, answer.text

    @rule(person=people, other=people, replica=replicas)
    def pry(self, person: Person, other: Person, replica: int) -> None:
        """Somebody else's, or nobody's: the same answer."""
        if person is other:
            return
        walk = self._at(other, replica)
        walk.token = person.walk.token
        theirs = next(iter(other.validations), "val_0")
        calls = [walk.show(), walk.accounts(), walk.validate(), walk.link(["a"]), walk.close(), walk.validation(theirs)]
        own = self._at(person, replica)
        for answer in self.life.do(_together([*calls, own.validation(theirs)])):
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), answer.text

    @rule(replica=replicas)
    @precondition(lambda self: self.life.crashes < MOST_CRASHES)
    def crash(self, replica: int) -> None:
        self.life.do(self.life.crash(replica))

    @rule(person=people, replica=replicas, by_server=st.booleans())
    def read(self, person: Person, replica: int, *, by_server: bool) -> None:
        answer = self.life.do(self._at(person, replica).show(by_server=by_server))
        assert answer.status_code == 200, answer.text
        self._holds(person, answer)

    def _holds(self, person: Person, answer: httpx.Response) -> None:
        """What is over stays as it was told; what was unclear may have become clear."""
        session = answer.json()["session"]
        assert session["subject"] == f"person-{self.everybody.index(person)}"
        if person.state == "unknown" and not self._left(person.choice):
            if set(person.choice) <= self.linked:
                assert session["state"] == "linked", session
                person.link_id = session["link"]["id"]
            person.state = session["state"]
        assert session["state"] == person.state, session
        assert {each["id"]: each["state"] for each in session["validations"]} == person.validations
        if person.state == "linked":
            assert session["choice"] == list(person.choice)
            assert session["link"]["id"] == person.link_id
        if person.state in {"linked", "closed"}:
            assert person.outcome in {None, json.dumps(session["outcome"])}
            person.outcome = json.dumps(session["outcome"])
            assert session["outcome"]["status"] == ("OM200" if person.state == "linked" else "OM400")

    @invariant()
    def nothing_was_sent_but_what_the_model_says(self) -> None:
        assert self.life.sent() == self.expected


async def _together(calls: list[Coroutine[Any, Any, httpx.Response]]) -> list[httpx.Response]:
    return await asyncio.gather(*calls)


@pytest.mark.timeout(1800)
async def test_people_are_told_what_the_model_says(
    valkey: str, omniconnect_sandbox_server: SandboxServer, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    loop, tally = asyncio.get_running_loop(), Counter[str]()

    class _Here(People):
        def __init__(self) -> None:
            tally["programs"] += 1
            self.tally = tally
            self.life = Life(loop, valkey, omniconnect_sandbox_server, f"{prefix}-{tally['programs']}")
            super().__init__()

    await asyncio.to_thread(
        run_state_machine_as_test,
        _Here,
        settings=settings(
            max_examples=PROGRAMS,
            stateful_step_count=STEPS,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    tell(capsys, f"people at random: {dict(tally)}")
