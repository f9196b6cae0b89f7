"""One guard per (upstream account, service account): at most one link call for each, whoever asks.

All guards of a tenant live in one slot, so that a whole choice is claimed by one script.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from service.stores.connection import Store
from service.stores.keys import Keys

__all__ = ["Claim", "GuardStore", "Look"]


@dataclass(frozen=True, slots=True)
class Claim:
    """What came of asking for a choice.

    Attributes:
        accounts: `claimed`: those still to be linked.
        attempts: `held`: who holds some of them; `unknown`: all unclear attempts, asked for or not.
        left_seconds: `held`: until the lease ends.
        why: `refused`: the vendor's status.
    """

    verdict: Literal["claimed", "done", "held", "overlap", "unknown", "refused", "voided"]
    accounts: Sequence[str] = ()
    attempts: Sequence[str] = ()
    left_seconds: float = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """How an attempt stands; `busy` means that its call may be under way."""

    verdict: Literal["done", "busy", "unknown", "refused", "voided", "unsent"]
    attempts: Sequence[str] = ()


class GuardStore:
    """Claims, marks and records. Every method raises `StoreUnavailable` when Redis fails.

    An attempt marks at most once. Who must start over takes a new name, so that a command of the first try that was
    held up on its way cannot undo the second one.

    What a later decision to send, or not to, hangs on is kept over the loss of a server: marks, results, and that an
    attempt is forbidden to send. A lost claim is found out when it is marked, and what was given back in vain lapses.
    """

    def __init__(self, *, store: Store, keys: Keys, lease_ms: int, sent_lease_ms: int, keep_ms: int) -> None:
        self._store = store
        self._keys = keys
        self._lease_ms = lease_ms
        self._sent_lease_ms = sent_lease_ms
        self._keep_ms = keep_ms
        self.topic = f"guards:{keys.tenant}"

    async def claim(
        self,
        attempt: str,
        account_id: str,
        choice: Sequence[str],
        *,
        digest: str,
        waited_for: str | None,
        resend: Sequence[str],
    ) -> Claim:
        """Claim all accounts of a choice that are not linked yet, or none."""
        answer = await self._store.run(
            "guard_claim",
            keys=self._names(attempt, account_id, choice),
            args=[attempt, digest, self._lease_ms, self._keep_ms, waited_for or "", *resend],
        )
        match answer[0]:
            case "claimed":
                return Claim("claimed", accounts=[choice[int(position)] for position in answer[1:]])
            case "held":
                return Claim("held", attempts=[answer[1]], left_seconds=int(answer[2]) / 1000)
            case "unknown":
                return Claim("unknown", attempts=answer[1:])
            case "refused":
                return Claim("refused", why=answer[1])
            case verdict:
                return Claim(cast('Literal["done", "overlap", "voided"]', verdict))

    async def mark_sent(
        self, attempt: str, account_id: str, accounts: Sequence[str]
    ) -> Literal["sent", "lost", "voided"]:
        """Mark accounts as being sent, only if the attempt still holds all of them; else they are given back."""
        return cast(
            'Literal["sent", "lost", "voided"]',
            await self._store.run(
                "guard_mark",
                keys=self._names(attempt, account_id, accounts),
                args=[attempt, self._sent_lease_ms, self._keys.channel, self.topic],
                kept=True,
            ),
        )

    async def record(
        self,
        attempt: str,
        account_id: str,
        accounts: Sequence[str],
        result: Literal["linked", "refused", "unknown", "unsent"],
        *,
        why: str = "",
    ) -> Sequence[str]:
        """Record how an attempt ended, or that it gave its claim or mark back without sending.

        Returns:
            `unknown`: all unclear attempts of these accounts, this one among them.
        """
        answer = await self._store.run(
            "guard_result",
            keys=self._names(attempt, account_id, accounts)[1:],
            args=[attempt, result, why, self._keep_ms, self._keys.channel, self.topic],
            kept=result != "unsent",
        )
        return cast("Sequence[str]", answer)

    async def look(self, attempt: str, account_id: str, choice: Sequence[str], *, void: bool) -> Look:
        """How an attempt stands; with `void`, it is forbidden to send if it has not yet."""
        answer = await self._store.run(
            "guard_look",
            keys=self._names(attempt, account_id, choice),
            args=[attempt, "void" if void else "", self._keep_ms, self._keys.channel, self.topic],
            kept=void,
        )
        match answer[0]:
            case "unknown":
                return Look("unknown", attempts=answer[1:])
            case verdict:
                return Look(verdict)

    def _names(self, attempt: str, account_id: str, accounts: Sequence[str]) -> list[str]:
        return [self._keys.void(attempt), *(self._keys.guard(account_id, account) for account in accounts)]
