"""What lives as long as the process, and the steps built from it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from importlib.metadata import version
from typing import Final

from service.api.caller import Steps
from service.api.ops import Health
from service.clock import SYSTEM_CLOCK, Clock
from service.errors import StoreUnavailable, UpstreamError
from service.link.access import Access, ApiKey
from service.link.accounts import Accounts
from service.link.attach import Attach
from service.link.attempt import Attempts, Patience
from service.link.changes import Changes
from service.link.clients import Clients, PublishableClient
from service.link.events import Events
from service.link.hosted import HostedPages
from service.link.identity import IssuerRules, KeySet, UserTokens
from service.link.limits import Doors, Lockout
from service.link.logos import Logos
from service.link.providers import Providers
from service.link.returns import ReturnUrls
from service.link.sessions import Sessions
from service.link.settle import Settlement
from service.link.tasks import Tasks
from service.link.token import TokenSource
from service.link.validate import TimeLimits, Validations
from service.link.watch import Cadence, Watchers
from service.settings import SANDBOX_API_KEY_SHA256, SANDBOX_PUBLISHABLE_CLIENT, Settings
from service.stores.connection import Store
from service.stores.durations import DurationStore
from service.stores.guards import GuardStore
from service.stores.jobs import JobStore
from service.stores.keys import Keys
from service.stores.limits import LimitStore
from service.stores.locks import Locks
from service.stores.notices import Notices
from service.stores.sealing import KeyRing
from service.stores.sessions import SessionStore
from service.stores.tokens import TokenStore
from service.telemetry import TASKS, log
from service.upstream.client import UpstreamClient
from service.upstream.companies import KNOWN_COMPANIES, CompanyRule, CompanyTable
from service.upstream.limiter import LimiterRules
from service.upstream.pictures import PictureClient
from service.upstream.transport import Transport, TransportLimits

__all__ = ["Process", "Timing", "wire"]

_TENANT: Final = "default"
_DRAIN_SECONDS: Final = 15.0
"""Longer than a link call that is under way."""

_PING_SECONDS: Final = 2.0
_LOOPBACK: Final = ("localhost", "127.0.0.1")
_WIDGET_PORT: Final = 4200
"""Where the vendor's `local` builds expect their server."""

_GUARD_KEEP_MS: Final = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Timing:
    """Bounds that no deployment needs to change, in seconds.

    Attributes:
        claim_lease: How long an attempt holds accounts while it gets its token.
        sent_lease: How long a marked attempt may take; longer than its bounded call.
    """

    upstream: TransportLimits = field(default_factory=TransportLimits)
    limiter: LimiterRules = field(default_factory=LimiterRules)
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
        identity: Transport | None,
        origins: frozenset[str],
        notices: Notices,
        watchers: Watchers,
        tasks: Tasks,
    ) -> None:
        self.steps = steps
        self.health = health
        self._store = store
        self._transport = transport
        self._identity = identity
        self.origins = origins
        self._notices = notices
        self._watchers = watchers
        self._tasks = tasks

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep leases, subscription and health while the process serves; let work under way finish at the end."""
        async with self._store, self._transport, self._identity or nullcontext():
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

    def announce_end(self) -> None:
        """Fail `/readyz`, and go on serving."""
        self.health.draining = True

    def drain(self) -> None:
        """Take no new work, and let everybody who waits go."""
        self.health.draining = self.health.closing = True
        self.steps.changes.drain()

    async def _keep_health(self) -> None:
        while True:
            TASKS.set(len(asyncio.all_tasks()))
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
    tenant = _tenant(settings)
    keys = Keys(settings.redis_prefix, tenant)
    store = Store(settings.redis_url, command_seconds=settings.redis_timeout, replicas=settings.replicas)
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
    agent = f"omniconnect-bff/{version('omniconnect-bff')}"
    ca_pem = settings.upstream_ca_file.read_bytes() if settings.upstream_ca_file else None
    transport = Transport(
        limits=timing.upstream,
        user_agent=agent,
        https_only=https_only,
        proxy=settings.upstream_proxy,
        ca_pem=ca_pem,
    )
    pictures = PictureClient(user_agent=agent, loopback=settings.sandbox, ca_pem=ca_pem)
    # The identity provider is no part of the vendor: connections, certificates and limits of its own.
    identity = (
        Transport(limits=TransportLimits(max_connections=4), user_agent=agent, https_only=https_only)
        if settings.jwt_jwks_url
        else None
    )
    client = UpstreamClient(
        transport=transport,
        base_url=settings.upstream_url,
        credentials_url=settings.credentials_url or settings.upstream_url,
        client_id=settings.client_id,
        secret=settings.secret,
        rules=timing.limiter,
        clock=clock,
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
    limits = LimitStore(store=store, keys=keys)
    doors = Doors(limits=limits, tenant=tenant, refusals_per_minute=settings.refusals_per_minute)
    lockout = Lockout(
        limits=limits,
        by_account=settings.account_attempts,
        by_address=settings.address_attempts,
        key=key_ring.derive("utility accounts"),
        tenant=tenant,
    )
    accounts = Accounts(
        client=client,
        tokens=tokens,
        sessions=sessions,
        doors=doors,
        keys=keys,
        key_ring=key_ring,
        tasks=tasks,
        clock=clock,
    )
    clients = Clients(_clients(settings, tenant))
    cadence = Cadence(poll=settings.poll_seconds, lease=settings.poll_lease_seconds)
    watchers = Watchers(
        client=client,
        tokens=tokens,
        accounts=accounts,
        lockout=lockout,
        sessions=sessions,
        jobs=JobStore(store=store, keys=keys, lease_ms=int(cadence.lease * 1000)),
        durations=DurationStore(store=store, keys=keys),
        notices=notices,
        tasks=tasks,
        clock=clock,
        cadence=cadence,
    )
    changes = Changes(sessions=sessions, notices=notices, tasks=tasks, clock=clock)
    settlement = Settlement(sessions=sessions, guards=guards, tasks=tasks, clock=clock)
    validations = Validations(
        client=client,
        tokens=tokens,
        providers=providers,
        table=table,
        sessions=sessions,
        watchers=watchers,
        lockout=lockout,
        doors=doors,
        changes=changes,
        settlement=settlement,
        clock=clock,
        limits=TimeLimits(settings.password_minutes * 60, settings.oauth_minutes * 60),
    )
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
        access=Access(
            api_keys=_api_keys(settings, tenant),
            clients=clients,
            users=_users(settings, identity, tasks=tasks, clock=clock),
            tenant=tenant,
            doors=doors,
            reads_per_minute=settings.session_reads,
            sessions=sessions,
            clock=clock,
        ),
        sessions=Sessions(
            tokens=tokens,
            sessions=sessions,
            settlement=settlement,
            return_urls=ReturnUrls(settings.return_urls, loopback=settings.sandbox),
            secret=settings.secret,
            clock=clock,
        ),
        providers=providers,
        logos=Logos(providers=providers, pictures=pictures, tasks=tasks, clock=clock),
        validations=validations,
        accounts=accounts,
        attach=Attach(
            accounts=accounts, sessions=sessions, attempts=attempts, settlement=settlement, tasks=tasks, clock=clock
        ),
        events=Events(sessions=sessions, changes=changes, clock=clock),
        changes=changes,
        hosted=HostedPages(sessions=sessions, settlement=settlement, doors=doors, tenant=tenant, clock=clock),
        clock=clock,
    )
    health = Health(mode="sandbox" if settings.sandbox else "production", upstream=client)
    return Process(
        steps=steps,
        health=health,
        store=store,
        transport=transport,
        identity=identity,
        origins=clients.origins,
        notices=notices,
        watchers=watchers,
        tasks=tasks,
    )


def _tenant(settings: Settings) -> str:
    """Names what is shared in Redis after whom it belongs to: the sandbox's must never be taken for the vendor's."""
    mode = "sandbox" if settings.sandbox else "production"
    return f"{_TENANT}-{hashlib.sha256(f'{mode} {settings.client_id}'.encode()).hexdigest()[:12]}"


def _api_keys(settings: Settings, tenant: str) -> Mapping[str, ApiKey]:
    keys = {digest: ApiKey(name, tenant) for name, digest in settings.api_keys.items()}
    if settings.sandbox:
        keys[SANDBOX_API_KEY_SHA256] = ApiKey("sandbox", tenant)
    return keys


def _clients(settings: Settings, tenant: str) -> list[PublishableClient]:
    clients = [
        PublishableClient(name, rule.name or name, tenant, rule.origins, rule.enabled)
        for name, rule in settings.clients.items()
    ]
    if settings.sandbox and SANDBOX_PUBLISHABLE_CLIENT not in settings.clients:
        here = frozenset({f"http://{host}:{port}" for host in _LOOPBACK for port in (settings.port, _WIDGET_PORT)})
        clients.append(PublishableClient(SANDBOX_PUBLISHABLE_CLIENT, "Sandbox", tenant, here))
    return clients


def _users(settings: Settings, transport: Transport | None, *, tasks: Tasks, clock: Clock) -> UserTokens | None:
    url = settings.jwt_jwks_url
    if url is None or transport is None:
        return None

    async def fetch() -> bytes:
        answer = await transport.read(url, token=None)
        if answer.status != HTTPStatus.OK:
            raise UpstreamError(answer.status)
        return answer.body

    rules = IssuerRules(settings.jwt_issuer or "", settings.jwt_audience or "", tuple(settings.jwt_algorithms))
    return UserTokens(rules=rules, keys=KeySet(fetch=fetch, tasks=tasks, clock=clock))


def _rules(settings: Settings) -> Mapping[str, CompanyRule]:
    """What a deployment says of companies, on top of what is known of them."""
    known = {name.casefold(): rule for name, rule in KNOWN_COMPANIES.items()}
    rules = {}
    for name, rule in settings.provider_table.items():
        given = rule.model_dump(exclude_none=True)
        if rule.authorize_url:
            # Asking for the password that such a page is there to keep away would be the worst reading.
            given["sign_in"] = "oauth"
        rules[name] = replace(known.get(name.casefold(), CompanyRule()), **given)
    return rules
