"""The store fails at one step of a link: what was begun is given back, what is certain is written down later."""

from collections.abc import AsyncIterator, Sequence
from typing import Any
from unittest.mock import patch

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from typing_extensions import override

from service.clock import SYSTEM_CLOCK
from service.errors import (
    AlreadyInProgress,
    OutcomeUnknown,
    ServiceError,
    StoreUnavailable,
    UpstreamBusy,
    UpstreamError,
)
from service.link import settle
from service.link.attempt import Choice
from service.stores.connection import Store
from service.upstream.client import LinkRefused, LinkUnclear
from tests.conftest import MovableClock
from tests.link.parts import ACCOUNT_ID, Parts, connected, made_of
from tests.link.waiting import until

AB = Choice(("a", "b"))


class _Vendor:
    def __init__(self) -> None:
        self.calls = 0
        self.raises: Exception | None = None

    async def link(self, _token: SecretStr, *, account_id: str, service_account_ids: Sequence[str], **_: float) -> None:
        assert account_id
        assert service_account_ids
        self.calls += 1
        if self.raises is not None:
            raise self.raises


class _LossyStore(Store):
    """Loses commands of one script, or only their replies, or that a replica has what they did."""

    script = ""
    times = 0
    after = True
    done = False

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.ran: list[tuple[str, bool]] = []

    def lose(self, script: str, times: int, *, after: bool, done: bool = False) -> None:
        self.script, self.times, self.after, self.done = script, times, after, done

    @override
    async def run(self, script: str, *, keys: Sequence[str], args: Sequence[str | int] = (), kept: bool = False) -> Any:
        self.ran.append((script, kept))
        lost = script == self.script and self.times > 0
        if lost:
            self.times -= 1
        if lost and not self.after:
            raise StoreUnavailable
        answer = await super().run(script, keys=keys, args=args, kept=kept)
        if lost:
            raise StoreUnavailable(done=self.done)
        return answer


@pytest.fixture(autouse=True)
def _soon() -> Any:
    with patch.multiple(settle, _WAIT_SECONDS=0.1, _TRY_AGAIN_SECONDS=0.01):
        yield


@pytest.fixture
async def store(valkey: str) -> AsyncIterator[_LossyStore]:
    async with _LossyStore(SecretStr(valkey), command_seconds=5) as lossy:
        yield lossy


@pytest.fixture
def vendor() -> _Vendor:
    return _Vendor()


@pytest.fixture
async def parts(store: _LossyStore, vendor: _Vendor, prefix: str) -> AsyncIterator[Parts]:
    made = made_of(store, prefix, SYSTEM_CLOCK, client=vendor)
    yield made
    await made.tasks.drain(5)


@pytest.mark.parametrize("after", [False, True], ids=["command", "reply"])
@pytest.mark.parametrize("script", ["link_begin", "guard_claim", "guard_mark"])
async def test_what_is_lost_before_the_call_leaves_nothing_behind(
    parts: Parts, store: _LossyStore, vendor: _Vendor, script: str, *, after: bool
) -> None:
    session, other = await parts.open("S"), await parts.open("T")
    store.lose(script, 1, after=after)
    with pytest.raises(StoreUnavailable):
        await parts.attach.link(session, AB)
    assert vendor.calls == 0
    left = await parts.read("S")
    assert (left.state, left.intents) == ("open", [])
    await parts.attach.link(other, Choice(("b",)))
    assert vendor.calls == 1


async def test_who_holds_nothing_gives_nothing_back(parts: Parts, store: _LossyStore, vendor: _Vendor) -> None:
    other = Choice(("b", "c"))
    await parts.guards.claim("other", ACCOUNT_ID, other.accounts, digest=other.digest, waited_for=None, resend=[])
    with pytest.raises(AlreadyInProgress):
        await parts.attach.link(await parts.open("S"), AB)
    assert "guard_result" not in dict(store.ran)
    assert vendor.calls == 0


@pytest.mark.parametrize("after", [False, True], ids=["command", "reply"])
@pytest.mark.parametrize("script", ["guard_result", "link_settle"])
async def test_a_confirmation_is_told_at_once_and_written_down_as_soon_as_possible(
    parts: Parts, store: _LossyStore, vendor: _Vendor, script: str, *, after: bool
) -> None:
    session = await parts.open("S")
    store.lose(script, 20, after=after)
    linked = await parts.attach.link(session, AB)
    assert linked.accounts == ("a", "b")

    async def recorded() -> bool:
        return (await parts.read("S")).state == "linked"

    await until(recorded)
    again = await parts.attach.link(await parts.read("S"), AB)
    assert again.link == linked.link
    assert vendor.calls == 1


async def test_a_session_hears_of_no_confirmation_that_the_guard_has_not(
    parts: Parts, store: _LossyStore, vendor: _Vendor
) -> None:
    store.lose("guard_result", 1_000_000, after=False)
    assert (await parts.attach.link(await parts.open("S"), AB)).accounts == ("a", "b")
    assert (await parts.read("S")).state == "open"
    store.times = 0

    async def recorded() -> bool:
        return (await parts.read("S")).state == "linked"

    await until(recorded)
    assert vendor.calls == 1


async def test_a_confirmation_that_no_replica_has_is_settled_and_told_again_until_one_has(
    parts: Parts, store: _LossyStore, vendor: _Vendor
) -> None:
    store.lose("guard_result", 3, after=True, done=True)
    await parts.attach.link(await parts.open("S"), AB)
    await parts.tasks.drain(5)
    assert (await parts.read("S")).state == "linked"
    ends = [each for each in store.ran if each[0] in {"guard_result", "link_settle"}]
    assert ends == [("guard_result", True), ("link_settle", True)] * 4
    store.ran.clear()
    assert (await parts.attach.link(await parts.open("T"), AB)).replayed
    assert "guard_result" not in dict(store.ran)
    assert vendor.calls == 1


async def test_what_sending_hangs_on_is_with_a_replica_before_it_goes_on(
    parts: Parts, store: _LossyStore, vendor: _Vendor
) -> None:
    session = await parts.open("S")
    for answer, kept in ((UpstreamBusy(), False), (LinkRefused(400), True), (LinkUnclear(), True)):
        vendor.raises = answer
        store.ran.clear()
        with pytest.raises(ServiceError):
            await parts.attach.link(session, AB)
        assert dict(store.ran) | {"link_begin": True, "guard_mark": True, "guard_result": kept} == dict(store.ran)
    for void in (True, False):
        store.ran.clear()
        await parts.guards.look("att_0", ACCOUNT_ID, AB.accounts, void=void)
        assert store.ran == [("guard_look", void)]


async def test_the_link_is_told_as_it_was_written_down_first(
    parts: Parts, store: _LossyStore, prefix: str, clock: MovableClock
) -> None:
    other = made_of(store, prefix, clock)
    clock.forward(60)
    record = parts.guards.record

    async def record_and_be_overtaken(*args: Any, **rest: Any) -> Sequence[str]:
        unclear = await record(*args, **rest)
        await other.settlement.recover(await other.read("S"))
        return unclear

    with patch.object(parts.guards, "record", record_and_be_overtaken):
        linked = await parts.attach.link(await parts.open("S"), AB)
    assert linked.link == (await parts.read("S")).link
    assert linked.link.linked_at > parts.clock.now()


@pytest.mark.parametrize(
    ("answer", "told", "state"),
    [(LinkRefused(400), UpstreamError, "open"), (LinkUnclear(), OutcomeUnknown, "unknown")],
)
async def test_the_session_never_hears_of_an_end_before_the_guard(
    parts: Parts, store: _LossyStore, vendor: _Vendor, *, answer: Exception, told: type[ServiceError], state: str
) -> None:
    session = await parts.open("S")
    vendor.raises = answer
    store.lose("guard_result", 40, after=False)
    with pytest.raises(told) as raised:
        await parts.attach.link(session, AB)
    (intent,) = (await parts.read("S")).intents
    if isinstance(raised.value, OutcomeUnknown):
        assert list(raised.value.attempts) == [intent.attempt]
    assert store.times > 0

    async def settled() -> bool:
        return not (await parts.read("S")).intents

    await until(settled)
    assert (await parts.read("S")).state == state
    look = await parts.guards.look(intent.attempt, session.account_id, AB.accounts, void=False)
    assert look.verdict == ("refused" if state == "open" else "unknown")


async def test_what_cannot_be_written_down_for_long_is_given_up_and_logged(
    parts: Parts, store: _LossyStore, vendor: _Vendor
) -> None:
    session = await parts.open("S")
    vendor.raises = LinkRefused(400)
    store.lose("guard_result", 1_000_000, after=False)
    with patch.object(settle, "_INSIST_SECONDS", 0.05), capture_logs() as logs:
        with pytest.raises(UpstreamError):
            await parts.attach.link(session, AB)
        await parts.tasks.drain(5)
    assert "link_result_not_recorded" in [each["event"] for each in logs]
    assert 2 <= 1_000_000 - store.times < 50


async def test_while_a_refusal_is_not_written_down_nobody_else_sends(
    parts: Parts, store: _LossyStore, vendor: _Vendor, valkey: str, prefix: str
) -> None:
    session = await parts.open("S")
    vendor.raises = LinkRefused(400)
    store.lose("guard_result", 30, after=False)
    with pytest.raises(UpstreamError):
        await parts.attach.link(session, AB)
    async with connected(valkey) as healthy:
        elsewhere = made_of(healthy, prefix, SYSTEM_CLOCK, client=vendor)
        with pytest.raises(UpstreamError):
            await elsewhere.attach.link(await elsewhere.open("T"), AB)
    assert vendor.calls == 1, "who waited shares the refusal"
