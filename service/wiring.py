"""What lives as long as the process, and the steps built from it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

from service.api.caller import Steps
from service.api.ops import Health
from service.clock import SYSTEM_CLOCK, Clock
from service.errors import StoreUnavailable
from service.link.access import Access, ApiKey
from service.link.accounts import Accounts
from service.link.attach import Attach
from service.link.attempt import Attempts, Patience
from service.link.providers import Providers
from service.link.sessions import Sessions
from service.link.settle import Settlement
from service.link.tasks import Tasks
from service.link.token import TokenSource
from service.link.validate import TimeLimits, Validations
from service.link.watch import Cadence, Watchers
from service.settings import SANDBOX_API_KEY_SHA256, Settings
from service.stores.connection import Store
from service.stores.guards import GuardStore
from service.stores.jobs import JobStore
from service.stores.keys import Keys
from service.stores.locks import Locks
from service.stores.notices import Notices
from service.stores.sealing import KeyRing
from service.stores.sessions import SessionStore
from service.stores.tokens import TokenStore
from service.telemetry import log
from service.upstream.client import UpstreamClient
from service.upstream.companies import CompanyRule, CompanyTable
from service.upstream.transport import Transport, TransportLimits

__all__ = ["Process", "Timing", "wire"]

TENANT: Final = "default"
_DRAIN_SECONDS: Final = 15.0
"""Longer than a link call that is under way."""

_PING_SECONDS: Final = 2.0
_GUARD_KEEP_MS: Final = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Timing:
    """Bounds that no deployment needs to change, in seconds.

    Attributes:
        claim_lease: How long an attempt holds accounts while it gets its token.
        sent_lease: How long a marked attempt may take; longer than its bounded call.
    """

    upstream: TransportLimits = field(default_factory=TransportLimits)
    patience: Patience = field(default_factory=Patience)
    claim_lease: float = 30.0
    sent_lease: float = 15.0


class Process:
    """The parts that open something, and the order in which they close."""

    def __init__(
        self,
        *,
        steps: Steps,
        health: Health,
        store: Store,
        transport: Transport,
        notices: Notices,
        watchers: Watchers,
        tasks: Tasks,
    ) -> None:
        self.steps = steps
        self.health = health
        self._store = store
        self._transport = transport
        self._notices = notices
        self._watchers = watchers
        self._tasks = tasks

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep leases, subscription and health while the process serves; let work under way finish at the end."""
        async with self._store, self._transport:
            loops = [
                asyncio.create_task(self._notices.listen(), name="notices"),
                asyncio.create_task(self._watchers.run(), name="leases"),
                asyncio.create_task(self._keep_health(), name="health"),
            ]
            try:
                yield
            finally:
                self.drain()
                loops[1].cancel()
                with suppress(StoreUnavailable):
                    await self._watchers.release()
                await self._tasks.drain(_DRAIN_SECONDS)
                for loop in loops:
                    loop.cancel()
                await asyncio.gather(*loops, return_exceptions=True)

    def drain(self) -> None:
        """Take no new work, and let everybody who waits go."""
        self.health.draining = True
        self.steps.validations.drain()

    async def _keep_health(self) -> None:
        while True:
            try:
                await self._store.ping()
            except StoreUnavailable:
                if self.health.store_answers:
                    log.error("store_lost")
                self.health.store_answers = False
            else:
                self.health.store_answers = self.health.started = True
            await asyncio.sleep(_PING_SECONDS if self.health.started else _PING_SECONDS / 20)


def wire(settings: Settings, *, clock: Clock = SYSTEM_CLOCK, timing: Timing | None = None) -> Process:
    """Build everything; nothing is opened before `Process.running`."""
    timing = timing or Timing()
    if settings.redis_url is None:
        raise ValueError("the embedded store is started by the process that owns it, which sets its URL")
    https_only = not settings.sandbox
    keys = Keys(settings.redis_prefix, TENANT)
    store = Store(settings.redis_url, command_seconds=settings.redis_timeout)
    key_ring = KeyRing(settings.ring())
    notices = Notices(store=store, channel=keys.channel)
    locks = Locks(store=store, channel=keys.channel)
    tasks = Tasks()
    sessions = SessionStore(store=store, keys=keys, retention_ms=int(settings.retention_hours * 3_600_000))
    guards = GuardStore(
        store=store,
        keys=keys,
        lease_ms=int(timing.claim_lease * 1000),
        sent_lease_ms=int(timing.sent_lease * 1000),
        keep_ms=_GUARD_KEEP_MS,
    )
    transport = Transport(
        limits=timing.upstream,
        user_agent=f"omniconnect-bff/{version('omniconnect-bff')}",
        https_only=https_only,
        proxy=settings.upstream_proxy,
        ca_pem=settings.upstream_ca_file.read_bytes() if settings.upstream_ca_file else None,
    )
    client = UpstreamClient(
        transport=transport,
        base_url=settings.upstream_url,
        credentials_url=settings.credentials_url or settings.upstream_url,
        client_id=settings.client_id,
        secret=settings.secret,
    )
    table = CompanyTable(extra=_rules(settings), https_only=https_only)
    tokens = TokenSource(
        client=client,
        store=TokenStore(store=store, keys=keys, key_ring=key_ring),
        key=keys.token,
        locks=locks,
        notices=notices,
        tasks=tasks,
        clock=clock,
    )
    providers = Providers(
        client=client,
        tokens=tokens,
        table=table,
        store=store,
        key=keys.providers,
        https_only=https_only,
        locks=locks,
        notices=notices,
        tasks=tasks,
        clock=clock,
    )
    accounts = Accounts(
        client=client, tokens=tokens, sessions=sessions, keys=keys, key_ring=key_ring, tasks=tasks, clock=clock
    )
    cadence = Cadence(poll=settings.poll_seconds, lease=settings.poll_lease_seconds)
    watchers = Watchers(
        client=client,
        tokens=tokens,
        accounts=accounts,
        sessions=sessions,
        jobs=JobStore(store=store, keys=keys, lease_ms=int(cadence.lease * 1000)),
        notices=notices,
        tasks=tasks,
        clock=clock,
        cadence=cadence,
    )
    validations = Validations(
        client=client,
        tokens=tokens,
        providers=providers,
        table=table,
        sessions=sessions,
        watchers=watchers,
        notices=notices,
        clock=clock,
        limits=TimeLimits(settings.password_minutes * 60, settings.oauth_minutes * 60),
    )
    settlement = Settlement(sessions=sessions, guards=guards, tasks=tasks, clock=clock)
    attempts = Attempts(
        client=client,
        tokens=tokens,
        sessions=sessions,
        guards=guards,
        settlement=settlement,
        notices=notices,
        clock=clock,
        patience=timing.patience,
    )
    steps = Steps(
        access=Access(api_keys=_api_keys(settings), sessions=sessions, clock=clock),
        sessions=Sessions(tokens=tokens, sessions=sessions, settlement=settlement, clock=clock),
        providers=providers,
        validations=validations,
        accounts=accounts,
        attach=Attach(
            accounts=accounts, sessions=sessions, attempts=attempts, settlement=settlement, tasks=tasks, clock=clock
        ),
        clock=clock,
    )
    health = Health(mode="sandbox" if settings.sandbox else "production", upstream=client)
    return Process(
        steps=steps,
        health=health,
        store=store,
        transport=transport,
        notices=notices,
        watchers=watchers,
        tasks=tasks,
    )


def _api_keys(settings: Settings) -> Mapping[str, ApiKey]:
    keys = {digest: ApiKey(name, TENANT, scopes) for name, (digest, scopes) in settings.api_keys.items()}
    if settings.sandbox:
        keys[SANDBOX_API_KEY_SHA256] = ApiKey("sandbox", TENANT)
    return keys


def _rules(settings: Settings) -> Mapping[str, CompanyRule]:
    return {name: CompanyRule(**rule.model_dump()) for name, rule in settings.provider_table.items()}
