"""The store fails at one step of a link: what was begun is given back, what is certain is written down later."""

from collections.abc import AsyncIterator, Sequence
from typing import Any
from unittest.mock import patch

import pytest
from pydantic import SecretStr
from typing_extensions import override

from service.clock import SYSTEM_CLOCK
from service.errors import OutcomeUnknown, ServiceError, StoreUnavailable, UpstreamError
from service.link import settle
from service.link.attempt import Choice
from service.stores.connection import Store
from service.upstream.client import LinkRefused, LinkUnclear
from tests.link.parts import Parts, connected, made_of
from tests.link.waiting import until

AB = Choice(("a", "b"))


class _Vendor:
    def __init__(self) -> None:
        self.calls = 0
        self.raises: Exception | None = None

    async def link(self, _token: SecretStr, *, account_id: str, service_account_ids: Sequence[str]) -> None:
        assert account_id
        assert service_account_ids
        self.calls += 1
        if self.raises is not None:
            raise self.raises


class _LossyStore(Store):
    """Loses commands of one script, or only their replies."""

    script = ""
    times = 0
    after = True

    def lose(self, script: str, times: int, *, after: bool) -> None:
        self.script, self.times, self.after = script, times, after

    @override
    async def run(self, script: str, *, keys: Sequence[str], args: Sequence[str | int] = (), kept: bool = False) -> Any:
        lost = script == self.script and self.times > 0
        if lost:
            self.times -= 1
        if lost and not self.after:
            raise StoreUnavailable
        answer = await super().run(script, keys=keys, args=args, kept=kept)
        if lost:
            raise StoreUnavailable
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
    with pytest.raises(told):
        await parts.attach.link(session, AB)
    (intent,) = (await parts.read("S")).intents
    assert store.times > 0

    async def settled() -> bool:
        return not (await parts.read("S")).intents

    await until(settled)
    assert (await parts.read("S")).state == state
    look = await parts.guards.look(intent.attempt, session.account_id, AB.accounts, void=False)
    assert look.verdict == ("refused" if state == "open" else "unknown")


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
