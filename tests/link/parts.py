"""The parts of the link step as the wiring builds them, with stand-ins for the steps before it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from pydantic import SecretStr

from service.clock import Clock, Millis
from service.link.attach import Attach
from service.link.attempt import Attempts, Patience
from service.link.settle import Settlement
from service.link.tasks import Tasks
from service.sandbox.world import ACCOUNT_ID
from service.stores.connection import Store
from service.stores.guards import GuardStore
from service.stores.keys import Keys
from service.stores.notices import Notices
from service.stores.records import SessionRecord
from service.stores.sessions import NewSession, SessionStore
from service.stores.tokens import UpstreamToken

__all__ = ["ACCOUNT_ID", "Parts", "Tokens", "connected", "made_of"]

HOUR_MS = 3_600_000


class _Anything:
    """Stands for step 3: every account has been learned."""

    def learned(self, _session: SessionRecord) -> "_Anything":
        return self

    def issuperset(self, _accounts: Sequence[str]) -> bool:
        return True


class Tokens:
    """Stands for step 1."""

    value = "t"

    async def get(self, give_up: float) -> UpstreamToken:  # noqa: ARG002 -- it is at hand
        return UpstreamToken("v", ACCOUNT_ID, SecretStr(self.value), Millis(2**50), Millis(2**50))

    async def drop(self, _token: UpstreamToken) -> None:
        pass

    def accepted(self) -> None:
        pass


@dataclass(frozen=True)
class Parts:
    """One process's share of the link step."""

    sessions: SessionStore
    guards: GuardStore
    settlement: Settlement
    attach: Attach
    tasks: Tasks
    notices: Notices
    clock: Clock

    async def open(self, session_id: str) -> SessionRecord:
        now = self.clock.now()
        new = NewSession(
            session_id, "default", "host", None, {}, now, Millis(now + HOUR_MS), token_hash="", account_id=ACCOUNT_ID
        )
        return await self.sessions.create(new)

    async def read(self, session_id: str) -> SessionRecord:
        session = await self.sessions.read(session_id)
        assert session is not None
        return session


def made_of(
    store: Store,
    prefix: str,
    clock: Clock,
    *,
    client: Any = None,
    tokens: Tokens | None = None,
    lease_ms: int = 60_000,
    sent_lease_ms: int = 60_000,
    patience: Patience | None = None,
    answer_seconds: float = 55,
    guard_kind: type[GuardStore] = GuardStore,
) -> Parts:
    keys = Keys(prefix, "default")
    tasks = Tasks()
    notices = Notices(store=store, channel=keys.channel)
    sessions = SessionStore(store=store, keys=keys, retention_ms=HOUR_MS)
    guards = guard_kind(store=store, keys=keys, lease_ms=lease_ms, sent_lease_ms=sent_lease_ms, keep_ms=HOUR_MS)
    settlement = Settlement(sessions=sessions, guards=guards, tasks=tasks, clock=clock)
    attempts = Attempts(
        client=client,
        tokens=cast("Any", tokens or Tokens()),
        sessions=sessions,
        guards=guards,
        settlement=settlement,
        notices=notices,
        clock=clock,
        patience=patience or Patience(),
    )
    attach = Attach(
        accounts=cast("Any", _Anything()),
        sessions=sessions,
        attempts=attempts,
        settlement=settlement,
        tasks=tasks,
        clock=clock,
        answer_seconds=answer_seconds,
    )
    return Parts(sessions, guards, settlement, attach, tasks, notices, clock)


@asynccontextmanager
async def connected(url: str, kind: type[Store] = Store) -> AsyncIterator[Store]:
    async with kind(SecretStr(url), command_seconds=5) as store:
        yield store
