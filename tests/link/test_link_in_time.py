"""A caller who links is answered in bounded time, and a call that had no turn was not sent."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from typing_extensions import override

from service.clock import SYSTEM_CLOCK, Millis
from service.errors import (
    AlreadyInProgress,
    NotFound,
    SessionExpired,
    TooManyAttempts,
    UpstreamBusy,
    UpstreamLate,
    UpstreamTimeout,
)
from service.link import attach
from service.link.attempt import Choice, Patience
from service.sandbox.server import SandboxServer
from service.settings import Settings
from service.stores.guards import Claim, GuardStore
from service.stores.records import Intent
from service.stores.tokens import UpstreamToken
from service.upstream.client import TokenRejected
from service.upstream.transport import TransportLimits
from service.wiring import Timing
from tests.conftest import LeapingClock, MovableClock, running_replica
from tests.link.parts import ACCOUNT_ID, Tokens, connected, made_of
from tests.processes import eventually
from tests.walk import APS, SRP

CALL_SECONDS = 16
"""Of the time for an answer, what is kept for the call."""

AB = Choice(["A", "B"])


class Vendor:
    """Answers the batch call as it is told to, if its turn comes in time."""

    def __init__(self, *answers: Exception | None, seconds: float = 0, turn_seconds: float = 0) -> None:
        self.answers = list(answers)
        self.seconds = seconds
        self.turn_seconds = turn_seconds
        self.calls = 0

    async def link(self, *_: Any, give_up: float, **__: Any) -> None:
        await asyncio.sleep(self.turn_seconds)
        if SYSTEM_CLOCK.monotonic() >= give_up:
            raise UpstreamLate
        self.calls += 1
        await asyncio.sleep(self.seconds)
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer


class NoToken(Tokens):
    @override
    async def get(self, give_up: float) -> UpstreamToken:
        await asyncio.sleep(give_up - SYSTEM_CLOCK.monotonic())
        raise UpstreamTimeout


class Counted(GuardStore):
    claims = 0

    @override
    async def claim(self, *args: Any, **rest: Any) -> Claim:
        self.claims += 1
        return await super().claim(*args, **rest)


class ForbiddenOnce(GuardStore):
    """Somebody takes the first attempt for one whose process has died."""

    attempts: tuple[str, ...] = ()

    @override
    async def claim(self, attempt: str, account_id: str, choice: Sequence[str], **rest: Any) -> Claim:
        if not self.attempts:
            await self.look(attempt, account_id, choice, void=True)
        self.attempts += (attempt,)
        return await super().claim(attempt, account_id, choice, **rest)


async def test_an_attempt_that_is_forbidden_to_send_is_followed_by_another(valkey: str, prefix: str) -> None:
    async with connected(valkey) as store:
        vendor = Vendor()
        parts = made_of(store, prefix, SYSTEM_CLOCK, client=vendor, guard_kind=ForbiddenOnce)
        linked = await parts.attach.link(await parts.open("S"), AB)
        assert linked.accounts == AB.accounts
        assert vendor.calls == 1
        assert len(set(cast("ForbiddenOnce", parts.guards).attempts)) == 2
        assert (await parts.read("S")).intents == []


@pytest.mark.parametrize("why", ["somebody forbade it to send", "its answer came late"])
async def test_an_attempt_whose_mark_does_not_count_is_followed_by_another(
    valkey: str, prefix: str, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    clock, vendor, attempts = LeapingClock(), Vendor(), list[str]()
    async with connected(valkey) as store:
        parts = made_of(store, prefix, clock, client=vendor)
        mark = parts.guards.mark_sent

        async def lost_once(attempt: str, account_id: str, accounts: Sequence[str]) -> str:
            attempts.append(attempt)
            if len(attempts) > 1:
                return await mark(attempt, account_id, accounts)
            if why == "somebody forbade it to send":
                await parts.guards.look(attempt, account_id, accounts, void=True)
                return await mark(attempt, account_id, accounts)
            verdict = await mark(attempt, account_id, accounts)
            clock.forward(1.5)
            return verdict

        monkeypatch.setattr(parts.guards, "mark_sent", lost_once)
        linked = await parts.attach.link(await parts.open("S"), AB)
        assert linked.accounts == AB.accounts
        assert vendor.calls == 1
        assert len(set(attempts)) == 2
        assert (await parts.read("S")).intents == []


async def test_a_call_without_a_turn_is_not_sent_and_leaves_the_session_open(valkey: str, prefix: str) -> None:
    async with connected(valkey) as store:
        vendor = Vendor(UpstreamBusy())
        parts = made_of(store, prefix, SYSTEM_CLOCK, client=vendor)
        session = await parts.open("S")
        with pytest.raises(UpstreamBusy):
            await parts.attach.link(session, AB)
        session = await parts.read("S")
        assert (session.state, session.intents, session.unclear) == ("open", [], ())
        assert (await parts.attach.link(session, AB)).accounts == AB.accounts
        assert vendor.calls == 2
        await parts.tasks.drain(0)


async def test_a_call_whose_turn_comes_too_late_for_its_mark_is_not_sent(valkey: str, prefix: str) -> None:
    async with connected(valkey) as store:
        vendor = Vendor(turn_seconds=0.3)
        parts = made_of(store, prefix, SYSTEM_CLOCK, client=vendor, patience=Patience(send=0.2), sent_lease_ms=250)
        session = await parts.open("S")
        with pytest.raises(UpstreamLate):
            await parts.attach.link(session, AB)
        assert vendor.calls == 0
        session = await parts.read("S")
        assert (session.state, session.intents, session.unclear) == ("open", [], ())
        vendor.turn_seconds = 0
        assert (await parts.attach.link(session, AB)).accounts == AB.accounts
        assert vendor.calls == 1
        await parts.tasks.drain(0)


async def test_waiting_for_a_token_ends_in_time_for_the_call(valkey: str, prefix: str) -> None:
    async with connected(valkey) as store:
        vendor = Vendor()
        parts = made_of(store, prefix, SYSTEM_CLOCK, client=vendor, tokens=NoToken(), answer_seconds=CALL_SECONDS + 0.3)
        async with asyncio.timeout(3):
            with pytest.raises(UpstreamTimeout):
                await parts.attach.link(await parts.open("S"), AB)
        assert vendor.calls == 0
        assert ((await parts.read("S")).state, (await parts.read("S")).intents) == ("open", [])
        await parts.tasks.drain(0)


async def test_waiting_for_others_ends_in_time_for_the_call(valkey: str, prefix: str) -> None:
    async with connected(valkey) as store:
        parts = made_of(
            store, prefix, SYSTEM_CLOCK, client=Vendor(), answer_seconds=CALL_SECONDS + 0.3, guard_kind=Counted
        )
        session = await parts.open("S")
        await parts.guards.claim("other", ACCOUNT_ID, AB.accounts, digest=AB.digest, waited_for=None, resend=[])
        async with asyncio.timeout(3):
            with pytest.raises(AlreadyInProgress):
                await parts.attach.link(session, AB)
        assert cast("Counted", parts.guards).claims < 6, "it looks again four times a second, or when it is told"
        await parts.tasks.drain(0)


async def test_no_further_try_begins_too_late_for_its_call(valkey: str, prefix: str) -> None:
    async with connected(valkey) as store:
        vendor = Vendor(TokenRejected(), seconds=0.5)
        parts = made_of(store, prefix, SYSTEM_CLOCK, client=vendor, answer_seconds=CALL_SECONDS + 0.3)
        with pytest.raises(AlreadyInProgress):
            await parts.attach.link(await parts.open("S"), AB)
        assert vendor.calls == 1
        assert (await parts.read("S")).intents == []
        await parts.tasks.drain(0)


async def test_a_call_that_takes_too_long_goes_on_without_its_caller(
    valkey: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "_CALL_SECONDS", 0.1)
    async with connected(valkey) as store:
        vendor = Vendor(seconds=0.8)
        parts = made_of(store, prefix, SYSTEM_CLOCK, client=vendor, answer_seconds=0.4)
        with pytest.raises(AlreadyInProgress):
            await parts.attach.link(await parts.open("S"), AB)
        assert vendor.calls == 1
        (intent,) = (await parts.read("S")).intents
        assert 110_000 < intent.until - parts.clock.now() <= 120_000, "until then nobody takes it for a dead process's"
        await parts.tasks.drain(5)
        assert (await parts.read("S")).state == "linked"


@pytest.mark.parametrize("left", ["an intent", "an unclear attempt"])
async def test_what_a_dead_process_left_of_another_choice_keeps_nobody_from_linking(
    valkey: str, prefix: str, left: str
) -> None:
    async with connected(valkey) as store:
        vendor = Vendor()
        parts = made_of(store, prefix, SYSTEM_CLOCK, client=vendor)
        session = await parts.open("S")
        other = Choice(["C"])
        dead = Intent("att_dead", Millis(SYSTEM_CLOCK.now() - 1), other.digest, other.accounts)
        begun = await parts.sessions.begin_link(
            session, dead, now=SYSTEM_CLOCK.now(), most_intents=9, most_keys=9, idempotency=None
        )
        assert begun == "begun"
        if left == "an unclear attempt":
            await parts.sessions.settle_link("S", dead, "unknown", now=SYSTEM_CLOCK.now(), unclear=["att_dead"])
            assert (await parts.read("S")).state == "unknown"
        assert (await parts.attach.link(session, AB)).accounts == AB.accounts
        assert vendor.calls == 1
        assert (await parts.read("S")).intents == []


async def test_what_has_become_of_a_session_meanwhile_is_told(valkey: str, prefix: str, clock: MovableClock) -> None:
    async with connected(valkey) as store:
        parts = made_of(store, prefix, clock, client=Vendor())
        session = await parts.open("S")
        clock.forward(7200)
        late = Millis(clock.now() + 60_000)
        for stale, told in ((session, SessionExpired), (replace(session, id="gone"), NotFound)):
            with pytest.raises(told):
                await parts.attach.link(replace(stale, expires=late), AB)


@pytest.mark.parametrize(("left_ms", "told"), [(999_500, 1000), (400, 1)])
async def test_who_has_given_a_session_too_many_names_is_told_to_wait_for_its_end(
    valkey: str, prefix: str, clock: MovableClock, monkeypatch: pytest.MonkeyPatch, *, left_ms: int, told: int
) -> None:
    monkeypatch.setattr(attach, "MOST_IDEMPOTENCY_KEYS", 0)
    async with connected(valkey) as store:
        parts = made_of(store, prefix, clock, client=Vendor())
        session = await parts.open("S")
        monkeypatch.setattr(clock, "now", lambda: session.expires - left_ms)
        with pytest.raises(TooManyAttempts) as refused:
            await parts.attach.link(session, Choice(["A"], idempotency=("key", "request")))
        assert refused.value.retry_after == told


async def test_a_caller_who_is_sent_away_finds_the_link_later(valkey: str, prefix: str) -> None:
    async with connected(valkey) as store:
        vendor = Vendor(seconds=0.6)
        parts = made_of(store, prefix, SYSTEM_CLOCK, client=vendor)
        hasty = made_of(store, prefix, SYSTEM_CLOCK, client=vendor)
        hasty.attach._answer_seconds = 0.2  # less than is kept for the call: nothing may be begun
        session = await parts.open("S")
        with pytest.raises((AlreadyInProgress, UpstreamTimeout)):
            await hasty.attach.link(session, AB)
        assert vendor.calls == 0
        assert (await parts.attach.link(session, AB)).accounts == AB.accounts
        assert vendor.calls == 1
        await parts.tasks.drain(0)
        await hasty.tasks.drain(0)


async def test_credentials_without_a_turn_were_not_sent(settings: Settings, upstream: SandboxServer) -> None:
    limits = TransportLimits(max_connections=1, pool_wait_seconds=0.2)
    async with running_replica(settings, timing=Timing(upstream=limits)) as replica:
        walk = await replica.walk().open()
        await replica.client.get("/v1/providers", headers=walk.headers)
        upstream.world.faults.add("jobs", "delay", value=2)
        slow = asyncio.create_task(walk.validate("user_quick", provider=APS))
        await eventually(lambda: upstream.world.calls.all("jobs"))
        answer = (await walk.validate("user_quick", provider=SRP)).json()
        assert answer["validation"]["reason"] == "utility_unavailable"
        assert len(upstream.world.calls.all("jobs")) == 1
        assert (await slow).json()["validation"]["state"] == "succeeded"
