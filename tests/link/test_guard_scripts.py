"""The guard's scripts, one by one, against a real Valkey. A lease of zero has lapsed as soon as it is given."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

import pytest
from pydantic import SecretStr
from typing_extensions import override

from service.stores.connection import Store
from service.stores.guards import Claim, GuardStore
from service.stores.keys import Keys

ACCOUNT = "acc"
LONG_MS = 60_000


class _TwiceStore(Store):
    """Runs each script twice, as the store does after a lost reply."""

    @override
    async def run(self, script: str, *, keys: Sequence[str], args: Sequence[str | int] = (), kept: bool = False) -> Any:
        first = await super().run(script, keys=keys, args=args, kept=kept)
        again = await super().run(script, keys=keys, args=args, kept=kept)
        assert _lasting(again) == _lasting(first), script
        return again


def _lasting(answer: Any) -> Any:
    """An answer without the time that is left of a lease."""
    return answer[:2] if isinstance(answer, list) and answer[:1] == ["held"] else answer


class Guards:
    """One tenant's guards, with leases that last or that have lapsed at once."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store = store
        self.keys = Keys(prefix, "default")
        self.lasting = self._guards(LONG_MS, LONG_MS)
        self.claim_lapses = self._guards(0, LONG_MS)
        self.mark_lapses = self._guards(LONG_MS, 0)

    def _guards(self, lease_ms: int, sent_lease_ms: int) -> GuardStore:
        return GuardStore(
            store=self.store, keys=self.keys, lease_ms=lease_ms, sent_lease_ms=sent_lease_ms, keep_ms=LONG_MS
        )

    async def claim(
        self,
        attempt: str,
        choice: str,
        *,
        digest: str | None = None,
        waited_for: str | None = None,
        resend: Sequence[str] = (),
        by: GuardStore | None = None,
    ) -> Claim:
        return await (by or self.lasting).claim(
            attempt, ACCOUNT, list(choice), digest=digest or choice, waited_for=waited_for, resend=resend
        )

    async def mark(self, attempt: str, accounts: str, *, by: GuardStore | None = None) -> str:
        return await (by or self.lasting).mark_sent(attempt, ACCOUNT, list(accounts))

    async def record(
        self,
        attempt: str,
        accounts: str,
        result: Literal["linked", "refused", "unknown", "unsent"],
        why: str = "",
    ) -> Sequence[str]:
        return await self.lasting.record(attempt, ACCOUNT, list(accounts), result, why=why)

    async def look(self, attempt: str, choice: str, *, void: bool = False) -> tuple[str, Sequence[str]]:
        look = await self.lasting.look(attempt, ACCOUNT, list(choice), void=void)
        return look.verdict, sorted(look.attempts)

    async def sent(self, attempt: str, choice: str, *, resend: Sequence[str] = (), lapsed: bool = False) -> None:
        """An attempt whose call is under way; or was, when its process fell silent."""
        assert (await self.claim(attempt, choice, resend=resend)).verdict == "claimed"
        assert await self.mark(attempt, choice, by=self.mark_lapses if lapsed else None) == "sent"

    async def unclear(self, attempt: str, choice: str, *, resend: Sequence[str] = ()) -> None:
        """An attempt whose call ended without a clear answer."""
        await self.sent(attempt, choice, resend=resend)
        await self.record(attempt, choice, "unknown")


@pytest.fixture(params=["once", "twice"])
async def guards(request: pytest.FixtureRequest, valkey: str, prefix: str) -> AsyncIterator[Guards]:
    """Every rule holds as well when each script runs twice."""
    kind = Store if request.param == "once" else _TwiceStore
    async with kind(SecretStr(valkey), command_seconds=5) as store:
        yield Guards(store, prefix)


async def test_a_free_choice_is_claimed_whole(guards: Guards) -> None:
    assert await guards.claim("A", "abc") == Claim("claimed", accounts=["a", "b", "c"])


async def test_a_choice_that_is_linked_is_done(guards: Guards) -> None:
    await guards.sent("A", "ab")
    await guards.record("A", "ab", "linked")
    assert (await guards.claim("B", "ab")).verdict == "done"


async def test_of_a_choice_partly_linked_the_rest_is_claimed(guards: Guards) -> None:
    await guards.sent("A", "b")
    await guards.record("A", "b", "linked")
    assert await guards.claim("B", "abc") == Claim("claimed", accounts=["a", "c"])


async def test_the_same_choice_waits_for_the_attempt_that_holds_it(guards: Guards) -> None:
    await guards.claim("A", "ab")
    claim = await guards.claim("B", "ab")
    assert (claim.verdict, list(claim.attempts)) == ("held", ["A"])
    assert 0 < claim.left_seconds <= LONG_MS / 1000


async def test_another_choice_that_overlaps_is_told_so_and_gets_nothing(guards: Guards) -> None:
    await guards.claim("A", "ab")
    assert (await guards.claim("B", "bc")).verdict == "overlap"
    assert await guards.claim("C", "c") == Claim("claimed", accounts=["c"])


async def test_the_same_service_account_under_another_upstream_account_is_another_one(guards: Guards) -> None:
    await guards.claim("A", "a")
    claim = await guards.lasting.claim("B", "other", ["a"], digest="a", waited_for=None, resend=())
    assert claim.verdict == "claimed"


async def test_a_claim_whose_lease_ran_out_is_free(guards: Guards) -> None:
    await guards.claim("A", "ab", by=guards.claim_lapses)
    assert (await guards.claim("B", "ab")).verdict == "claimed"
    assert await guards.mark("A", "ab") == "lost"


async def test_a_mark_whose_lease_ran_out_is_unknown(guards: Guards) -> None:
    await guards.sent("A", "ab", lapsed=True)
    claim = await guards.claim("B", "ab")
    assert (claim.verdict, list(claim.attempts)) == ("unknown", ["A"])


async def test_a_claim_that_nobody_took_over_may_still_be_marked(guards: Guards) -> None:
    await guards.claim("A", "ab", by=guards.claim_lapses)
    assert await guards.mark("A", "ab") == "sent"


async def test_a_mark_needs_every_account_and_gives_the_others_back(guards: Guards) -> None:
    await guards.claim("A", "ab", by=guards.claim_lapses)
    await guards.claim("B", "b")
    assert await guards.mark("A", "ab") == "lost"
    assert (await guards.claim("C", "a")).verdict == "claimed"
    assert await guards.mark("B", "b") == "sent"


async def test_what_is_linked_by_now_is_not_marked(guards: Guards) -> None:
    await guards.sent("A", "a", lapsed=True)
    await guards.claim("B", "a", resend=["A"])
    await guards.record("A", "a", "linked")
    assert await guards.mark("B", "a") == "lost"
    assert (await guards.claim("B", "a")).verdict == "done"


async def test_a_claim_that_arrives_late_does_not_weaken_the_mark(guards: Guards) -> None:
    await guards.sent("A", "ab")
    await guards.claim("A", "ab", by=guards.claim_lapses)
    assert (await guards.claim("B", "ab")).verdict == "held"
    assert await guards.look("A", "ab") == ("busy", [])


async def test_a_mark_that_arrives_late_does_not_take_back_the_first_one(guards: Guards) -> None:
    await guards.sent("X", "a", lapsed=True)
    await guards.sent("A", "ab", resend=["X"])
    await guards.record("X", "a", "linked")
    await guards.mark("A", "ab")
    assert (await guards.claim("B", "b", digest="ab")).verdict == "held"


async def test_a_refused_choice_is_free_for_who_comes_later(guards: Guards) -> None:
    await guards.sent("A", "ab")
    await guards.record("A", "ab", "refused", "400")
    assert (await guards.claim("B", "ab")).verdict == "claimed"


async def test_who_waited_for_the_refused_attempt_shares_the_refusal(guards: Guards) -> None:
    await guards.sent("A", "ab")
    await guards.record("A", "ab", "refused", "422")
    assert await guards.claim("B", "ab", waited_for="A") == Claim("refused", why="422")


async def test_who_waited_for_an_attempt_that_gave_up_unsent_may_send(guards: Guards) -> None:
    await guards.claim("A", "ab")
    await guards.record("A", "ab", "unsent")
    assert (await guards.claim("B", "ab", waited_for="A")).verdict == "claimed"


async def test_an_unclear_attempt_sticks_to_each_of_its_accounts(guards: Guards) -> None:
    await guards.unclear("A", "ab")
    for choice in ("ab", "a", "bc"):
        claim = await guards.claim("B", choice)
        assert (claim.verdict, list(claim.attempts)) == ("unknown", ["A"])
    assert (await guards.claim("B", "c")).verdict == "claimed"


async def test_naming_the_unclear_attempt_claims_again(guards: Guards) -> None:
    await guards.unclear("A", "ab")
    assert (await guards.claim("B", "ab", resend=["A"])).verdict == "claimed"


async def test_naming_another_attempt_claims_nothing(guards: Guards) -> None:
    await guards.unclear("A", "ab")
    assert (await guards.claim("B", "ab", resend=["X"])).verdict == "unknown"


async def test_a_newer_unclear_attempt_needs_asking_again_and_all_are_told(guards: Guards) -> None:
    await guards.unclear("A", "ab")
    await guards.unclear("B", "ab", resend=["A"])
    claim = await guards.claim("C", "ab", resend=["A"])
    assert claim.verdict == "unknown"
    assert sorted(claim.attempts) == ["A", "B"]
    assert (await guards.claim("C", "ab", resend=["A", "B"])).verdict == "claimed"


async def test_recording_an_unclear_attempt_tells_all_that_must_be_named(guards: Guards) -> None:
    await guards.unclear("A", "ab")
    await guards.sent("B", "ab", resend=["A"])
    assert sorted(await guards.record("B", "ab", "unknown")) == ["A", "B"]


async def test_a_refused_resend_leaves_the_older_attempt_unclear(guards: Guards) -> None:
    await guards.unclear("A", "ab")
    await guards.sent("B", "ab", resend=["A"])
    await guards.record("B", "ab", "refused", "400")
    claim = await guards.claim("C", "ab")
    assert (claim.verdict, list(claim.attempts)) == ("unknown", ["A"])


async def test_a_confirmation_counts_whoever_holds_the_account_by_now(guards: Guards) -> None:
    await guards.sent("A", "ab", lapsed=True)
    await guards.sent("B", "ab", resend=["A"])
    await guards.record("A", "ab", "linked")
    assert (await guards.claim("C", "ab")).verdict == "done"
    await guards.record("B", "ab", "unknown")
    assert (await guards.claim("C", "ab")).verdict == "done"


async def test_a_late_refusal_takes_only_its_own_attempt_from_the_unclear_ones(guards: Guards) -> None:
    await guards.sent("A", "ab", lapsed=True)
    await guards.unclear("B", "ab", resend=["A"])
    await guards.record("A", "ab", "refused", "400")
    claim = await guards.claim("C", "ab")
    assert (claim.verdict, list(claim.attempts)) == ("unknown", ["B"])


@pytest.mark.parametrize("result", ["refused", "unknown", "unsent"])
async def test_a_late_result_does_not_free_what_another_attempt_sends(
    guards: Guards, result: Literal["refused", "unknown", "unsent"]
) -> None:
    await guards.sent("A", "ab", lapsed=True)
    await guards.sent("B", "ab", resend=["A"])
    await guards.record("A", "ab", result, "400")
    claim = await guards.claim("C", "ab")
    assert (claim.verdict, list(claim.attempts)) == ("held", ["B"])


async def test_a_late_refusal_of_a_resent_attempt_is_not_shared(guards: Guards) -> None:
    await guards.sent("A", "ab", lapsed=True)
    await guards.unclear("B", "ab", resend=["A"])
    await guards.record("A", "ab", "refused", "400")
    assert (await guards.claim("C", "ab", waited_for="A")).verdict == "unknown"


async def test_a_mark_taken_back_leaves_nothing(guards: Guards) -> None:
    await guards.sent("A", "ab", lapsed=True)
    assert (await guards.claim("B", "ab")).verdict == "unknown"
    await guards.record("A", "ab", "unsent")
    assert (await guards.claim("B", "ab")).verdict == "claimed"


async def test_a_voided_attempt_can_neither_claim_nor_mark(guards: Guards) -> None:
    await guards.claim("A", "ab")
    assert await guards.look("A", "ab", void=True) == ("voided", [])
    assert await guards.mark("A", "ab") == "voided"
    assert (await guards.claim("A", "ab")).verdict == "voided"
    assert (await guards.claim("B", "ab")).verdict == "claimed"


async def test_an_attempt_that_is_sending_cannot_be_voided(guards: Guards) -> None:
    await guards.sent("A", "ab")
    assert await guards.look("A", "ab", void=True) == ("busy", [])
    assert await guards.mark("A", "ab") == "sent"


async def test_an_attempt_that_fell_silent_while_sending_is_unknown_and_not_voided(guards: Guards) -> None:
    await guards.sent("A", "ab", lapsed=True)
    assert await guards.look("A", "ab", void=True) == ("unknown", ["A"])
    assert (await guards.claim("B", "ab")).verdict == "unknown"


async def test_voiding_who_waits_leaves_the_holder_alone(guards: Guards) -> None:
    await guards.claim("A", "ab")
    assert (await guards.claim("B", "ab")).verdict == "held"
    assert await guards.look("B", "ab", void=True) == ("voided", [])
    assert await guards.mark("A", "ab") == "sent"


async def test_looking_tells_each_end_of_an_attempt(guards: Guards) -> None:
    assert await guards.look("A", "ab") == ("unsent", [])
    await guards.claim("A", "ab")
    assert await guards.look("A", "ab") == ("unsent", [])
    await guards.mark("A", "ab")
    await guards.record("A", "ab", "refused", "400")
    assert await guards.look("A", "ab") == ("refused", [])
    await guards.unclear("B", "ab")
    assert await guards.look("B", "ab") == ("unknown", ["B"])
    await guards.record("B", "ab", "linked")
    assert await guards.look("B", "ab") == ("done", [])
    assert await guards.look("C", "ab", void=True) == ("done", [])


async def test_looking_at_the_rest_of_a_choice_finds_it_done(guards: Guards) -> None:
    await guards.sent("A", "b")
    await guards.record("A", "b", "linked")
    assert await guards.look("B", "ab") == ("unsent", [])
    await guards.sent("C", "a")
    await guards.record("C", "a", "linked")
    assert await guards.look("B", "ab") == ("done", [])


async def test_every_key_of_the_guard_has_an_end(guards: Guards, prefix: str) -> None:
    await guards.unclear("A", "a")
    await guards.sent("B", "b")
    await guards.claim("C", "c")
    await guards.look("D", "d", void=True)
    client: Any = guards.store._client
    found = await client.keys(f"{prefix}*")
    assert len([key for key in found if not key.startswith(f"{prefix}:op:")]) == 4
    longest = max(LONG_MS, guards.store.remember_ms)
    assert all([0 < await client.pttl(key) <= longest for key in found])
