"""What becomes of an attempt in its session, whatever order its results come in, however long its process slept."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from service.clock import Millis
from service.errors import AlreadyInProgress
from service.link.attempt import Choice
from service.link.settle import digest_of
from service.stores.records import Intent, SessionRecord
from tests.conftest import MovableClock
from tests.link.parts import ACCOUNT_ID, Parts, connected, made_of

AB = ["a", "b"]


def _intent(name: str, accounts: list[str], parts: Parts, *, seconds: int = 120) -> Intent:
    return Intent(name, Millis(parts.clock.now() + seconds * 1000), digest_of(accounts), accounts)


@pytest.fixture
async def parts(valkey: str, prefix: str, clock: MovableClock) -> AsyncIterator[Parts]:
    async with connected(valkey) as store:
        made = made_of(store, prefix, clock)
        yield made
        await made.tasks.drain(0)


@pytest.fixture
async def silent(valkey: str, prefix: str, clock: MovableClock) -> AsyncIterator[Parts]:
    """The same store, as a process leaves it that fell silent: its leases are over at once."""
    async with connected(valkey) as store:
        yield made_of(store, prefix, clock, lease_ms=0, sent_lease_ms=0)


async def _begin(parts: Parts, name: str, accounts: list[str] = AB, *, seconds: int = 120, key: str = "") -> str:
    intent = _intent(name, accounts, parts, seconds=seconds)
    named = (key, "f" + "".join(accounts)) if key else None
    session = await parts.sessions.read("S") or replace(await parts.open("another"), id="S")
    return await parts.sessions.begin_link(
        session, intent, now=parts.clock.now(), most_intents=3, most_keys=3, idempotency=named
    )


async def _claim(parts: Parts, name: str, accounts: list[str] = AB) -> str:
    claim = await parts.guards.claim(
        name, ACCOUNT_ID, accounts, digest=digest_of(accounts), waited_for=None, resend=["A", "B"]
    )
    return claim.verdict


async def _send(parts: Parts, name: str, accounts: list[str] = AB) -> None:
    assert await _claim(parts, name, accounts) == "claimed"
    assert await parts.guards.mark_sent(name, ACCOUNT_ID, accounts) == "sent"


async def _recovered(parts: Parts) -> tuple[str, list[str], list[str]]:
    session = await parts.settlement.recover(await parts.read("S"))
    return session.state, sorted(session.unclear), sorted(each.attempt for each in session.intents)


async def test_a_confirmation_that_only_the_guard_heard_of_is_made_good(parts: Parts) -> None:
    await parts.open("S")
    await _begin(parts, "A")
    await _send(parts, "A")
    await parts.guards.record("A", ACCOUNT_ID, AB, "linked")
    assert await _recovered(parts) == ("linked", [], [])
    session = await parts.read("S")
    assert session.choice == ("a", "b")
    assert session.link is not None
    assert session.link.account_id == ACCOUNT_ID


async def test_a_refusal_that_only_the_guard_heard_of_is_made_good(parts: Parts) -> None:
    await parts.open("S")
    await _begin(parts, "A")
    await _send(parts, "A")
    await parts.guards.record("A", ACCOUNT_ID, AB, "refused", why="400")
    assert await _recovered(parts) == ("open", [], [])


async def test_an_attempt_that_fell_silent_while_sending_leaves_the_session_unknown(
    parts: Parts, silent: Parts
) -> None:
    await parts.open("S")
    await _begin(parts, "A")
    await _send(silent, "A")
    assert await _recovered(parts) == ("unknown", ["A"], [])


async def test_an_attempt_that_may_still_run_is_left_alone(parts: Parts) -> None:
    await parts.open("S")
    await _begin(parts, "A")
    await _claim(parts, "A")
    assert await _recovered(parts) == ("open", [], ["A"])
    assert await parts.guards.mark_sent("A", ACCOUNT_ID, AB) == "sent"
    assert await _recovered(parts) == ("open", [], ["A"])


async def test_an_overdue_attempt_is_forbidden_to_send(
    parts: Parts, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: now)  # from the very moment on
    await parts.open("S")
    await _begin(parts, "A", seconds=0)
    await _claim(parts, "A")
    assert await _recovered(parts) == ("open", [], [])
    assert await parts.guards.mark_sent("A", ACCOUNT_ID, AB) == "voided"


async def test_a_confirmation_that_comes_late_ends_what_was_told_as_unknown(parts: Parts, silent: Parts) -> None:
    await parts.open("S")
    await _begin(parts, "A")
    await _send(silent, "A")
    assert (await _recovered(parts))[0] == "unknown"
    await parts.guards.record("A", ACCOUNT_ID, AB, "linked")
    assert await _recovered(parts) == ("linked", [], [])
    assert (await parts.read("S")).link == (await parts.settlement.recover(await parts.read("S"))).link is not None


async def test_a_confirmation_in_another_session_ends_what_was_told_as_unknown(parts: Parts, silent: Parts) -> None:
    await parts.open("S")
    await _begin(parts, "A")
    await _send(silent, "A")
    assert (await _recovered(parts))[0] == "unknown"
    await _send(parts, "C")
    await parts.guards.record("C", ACCOUNT_ID, AB, "linked")
    assert await _recovered(parts) == ("linked", [], [])


async def test_a_confirmation_of_a_part_does_not_make_the_rest_linked(parts: Parts, silent: Parts) -> None:
    await parts.open("S")
    await _send(silent, "X", ["b"])
    await _begin(parts, "A")
    claim = await parts.guards.claim("A", ACCOUNT_ID, AB, digest=digest_of(AB), waited_for=None, resend=())
    assert (claim.verdict, claim.attempts) == ("unknown", ["X"])
    intent = _intent("A", AB, parts)
    await parts.sessions.settle_link("S", intent, "unknown", now=parts.clock.now(), unclear=claim.attempts)
    await parts.guards.record("X", ACCOUNT_ID, ["b"], "linked")
    assert await _recovered(parts) == ("open", [], [])
    assert await _begin(parts, "B") == "begun"
    again = await parts.guards.claim("B", ACCOUNT_ID, AB, digest=digest_of(AB), waited_for=None, resend=())
    assert (again.verdict, again.accounts) == ("claimed", ["a"])


async def test_a_confirmation_of_a_part_leaves_the_other_part_unclear(parts: Parts, silent: Parts) -> None:
    await parts.open("S")
    await _send(silent, "X", ["b"])
    await _send(silent, "Y", ["a"])
    intent = _intent("A", AB, parts)
    await parts.sessions.settle_link("S", intent, "unknown", now=parts.clock.now(), unclear=["X", "Y"])
    await parts.guards.record("X", ACCOUNT_ID, ["b"], "linked")
    assert await _recovered(parts) == ("unknown", ["Y"], [])


@pytest.mark.parametrize("void", [False, True], ids=["unsent", "forbidden"])
async def test_an_unclear_attempt_that_proves_unsent_opens_the_session_again(
    parts: Parts, silent: Parts, *, void: bool
) -> None:
    await parts.open("S")
    await _begin(parts, "A")
    await _send(silent, "A")
    assert (await _recovered(parts))[0] == "unknown"
    await parts.guards.record("A", ACCOUNT_ID, AB, "unsent")
    if void:
        assert (await parts.guards.look("A", ACCOUNT_ID, AB, void=True)).verdict == "voided"
    assert await _recovered(parts) == ("open", [], [])
    forbidden = (await parts.guards.look("A", ACCOUNT_ID, AB, void=False)).verdict
    assert forbidden == ("voided" if void else "unsent"), "to recover forbids nothing"


async def test_a_refusal_that_comes_late_opens_the_session_again(parts: Parts, silent: Parts) -> None:
    await parts.open("S")
    await _begin(parts, "A")
    await _send(silent, "A")
    assert (await _recovered(parts))[0] == "unknown"
    await parts.guards.record("A", ACCOUNT_ID, AB, "refused", why="400")
    assert await _recovered(parts) == ("open", [], [])
    assert (await parts.read("S")).choice == ()


async def test_results_settled_out_of_order_forget_no_unclear_attempt(parts: Parts) -> None:
    await parts.open("S")
    for name, told in (("B", ["A", "B"]), ("A", ["A"])):
        intent = _intent(name, AB, parts)
        await parts.sessions.settle_link("S", intent, "unknown", now=parts.clock.now(), unclear=told)
    session = await parts.read("S")
    assert sorted(session.unclear) == ["A", "B"]


async def test_giving_up_one_attempt_leaves_another_one_unclear(parts: Parts) -> None:
    await parts.open("S")
    now = parts.clock.now()
    await parts.sessions.settle_link("S", _intent("A", AB, parts), "unknown", now=now, unclear=["A"])
    await parts.sessions.settle_link("S", _intent("B", AB, parts), "open", now=now)
    session = await parts.read("S")
    assert (session.state, list(session.unclear)) == ("unknown", ["A"])


async def test_a_closed_session_stays_closed_whatever_is_settled_late(parts: Parts) -> None:
    await parts.open("S")
    await _begin(parts, "A")
    stale = await parts.read("S")
    assert (await parts.settlement.close(await parts.read("S"))).state == "closed"
    await _send(parts, "X")
    await parts.guards.record("X", ACCOUNT_ID, AB, "linked")
    assert (await parts.settlement.recover(stale)).state == "closed"


async def test_the_link_that_a_session_was_told_of_first_stays(parts: Parts, clock: MovableClock) -> None:
    session = await parts.open("S")
    first = parts.settlement.new_link(session)
    clock.forward(1)
    second = parts.settlement.new_link(session)
    assert second.id == first.id, "whoever tells of it calls it the same"
    for link in (first, second):
        intent = _intent("A", AB, parts)
        settled = await parts.sessions.settle_link("S", intent, "linked", now=parts.clock.now(), link=link)
        assert settled.link == first


async def test_closing_voids_who_has_not_sent(parts: Parts) -> None:
    await parts.open("S")
    await _begin(parts, "A")
    await _claim(parts, "A")
    assert (await parts.settlement.close(await parts.read("S"))).state == "closed"
    assert await parts.guards.mark_sent("A", ACCOUNT_ID, AB) == "voided"
    assert await _begin(parts, "B") == "closed"


async def test_closing_begins_again_when_an_attempt_has_begun_meanwhile(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await parts.open("S")
    close = parts.sessions.close
    begun: list[str] = []

    async def close_too_late(session: SessionRecord, *, now: Millis, voided: Sequence[str]) -> str:
        if not begun:
            begun.append(await _begin(parts, "A"))
        return await close(session, now=now, voided=voided)

    monkeypatch.setattr(parts.sessions, "close", close_too_late)
    assert (await parts.settlement.close(await parts.read("S"))).state == "closed"
    assert begun == ["begun"]
    assert await _claim(parts, "A") == "voided"


async def test_closing_while_sending_is_refused_and_changes_nothing(parts: Parts) -> None:
    await parts.open("S")
    await _begin(parts, "A")
    await _send(parts, "A")
    with pytest.raises(AlreadyInProgress):
        await parts.settlement.close(await parts.read("S"))
    await parts.guards.record("A", ACCOUNT_ID, AB, "linked")
    assert (await parts.settlement.close(await parts.read("S"))).state == "linked"


async def test_closing_an_unknown_session_leaves_a_resend_alone(parts: Parts, silent: Parts) -> None:
    await parts.open("S")
    await _begin(parts, "A")
    await _send(silent, "A")
    assert (await parts.settlement.close(await parts.read("S"))).state == "unknown"
    assert await _begin(parts, "B") == "begun"
    assert await _claim(parts, "B") == "claimed"
    with pytest.raises(AlreadyInProgress):
        await parts.settlement.close(await parts.read("S"))
    assert await parts.guards.mark_sent("B", ACCOUNT_ID, AB) == "sent"


async def test_closing_a_linked_session_leaves_those_alone_who_wait_for_its_link(parts: Parts) -> None:
    await parts.open("S")
    await _begin(parts, "A")
    await _begin(parts, "B")
    await _send(parts, "A")
    link = parts.settlement.new_link(await parts.read("S"))
    intent = _intent("A", AB, parts)
    await parts.guards.record("A", ACCOUNT_ID, AB, "linked")
    await parts.sessions.settle_link("S", intent, "linked", now=parts.clock.now(), link=link)
    assert (await parts.settlement.close(await parts.read("S"))).state == "linked"
    assert await _claim(parts, "B") == "done"


async def test_closing_a_linked_session_waits_for_no_resend_that_is_still_under_way(
    parts: Parts, silent: Parts
) -> None:
    await parts.open("S")
    await _begin(parts, "A")
    await _send(silent, "A")
    assert await _recovered(parts) == ("unknown", ["A"], [])
    await _begin(parts, "B")
    await _send(parts, "B")
    await parts.guards.record("A", ACCOUNT_ID, AB, "linked")
    link = parts.settlement.new_link(await parts.read("S"))
    intent = _intent("A", AB, parts)
    await parts.sessions.settle_link("S", intent, "linked", now=parts.clock.now(), link=link)
    assert (await parts.settlement.close(await parts.read("S"))).state == "linked"


async def test_closing_after_the_end_of_its_time_leaves_no_attempt_behind(parts: Parts, clock: MovableClock) -> None:
    await parts.open("S")
    await _begin(parts, "A", seconds=2 * 3600)
    clock.forward(3600)
    session = await parts.settlement.close(await parts.read("S"))
    assert (session.state, session.intents) == ("open", [])


@pytest.mark.parametrize("again", [False, True])
async def test_beginning_tells_why_not(parts: Parts, clock: MovableClock, *, again: bool) -> None:
    async def begin(name: str, accounts: list[str] = AB, *, key: str = "") -> str:
        verdict = await _begin(parts, name, accounts, key=key)
        if again:
            assert await _begin(parts, name, accounts, key=key) == verdict
        return verdict

    assert await begin("A") == "missing"
    await parts.open("S")
    assert await begin("A", key="k") == "begun"
    assert await begin("B") == "begun"
    assert await begin("C", key="k") == "begun"
    assert await begin("D", ["c"]) == "other"
    assert await begin("D") == "other", "as many wait as may"
    assert await begin("D", ["c"], key="k") == "reused"
    for name in "ABC":
        intent = _intent(name, AB, parts)
        await parts.sessions.settle_link("S", intent, "open", now=parts.clock.now())
    assert await begin("D", ["c"]) == "begun"
    await parts.sessions.settle_link("S", _intent("D", ["c"], parts), "open", now=parts.clock.now())
    clock.forward(3600)
    assert await begin("E") == "expired"


async def test_a_choice_is_named_by_its_accounts() -> None:
    assert Choice(("a", "b")).digest == Choice(["a", "b"]).digest != Choice(["ab"]).digest
