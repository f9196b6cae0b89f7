"""Builds what lives as long as the process, and the steps of each tenant, from the settings."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from importlib.metadata import version
from typing import Final, NamedTuple

from pydantic import SecretStr

from service.api.caller import Steps, Tenants
from service.api.ops import Health
from service.clock import SYSTEM_CLOCK, Clock
from service.errors import UpstreamError
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
from service.link.sessions import LONGEST_TTL_SECONDS, Sessions
from service.link.settle import Settlement
from service.link.tasks import Tasks
from service.link.token import TokenSource
from service.link.validate import TimeLimits, Validations
from service.link.watch import Cadence, Watchers
from service.process import Process
from service.settings import Settings
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
from service.tenants import FIRST_TENANT, TenantRule
from service.tracing import Tracing
from service.upstream.client import UpstreamClient
from service.upstream.companies import KNOWN_COMPANIES, CompanyRule, CompanyTable
from service.upstream.limiter import LimiterRules
from service.upstream.pictures import PictureClient
from service.upstream.transport import Transport, TransportLimits

__all__ = ["Timing", "wire"]

_GUARD_KEEP_MS: Final = 24 * 3600 * 1000
"""At least; a session asks the guards what became of its calls for as long as it can be read."""


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


class _Shared(NamedTuple):
    """What all tenants of a process have in common."""

    settings: Settings
    timing: Timing
    clock: Clock
    store: Store
    notices: Notices
    locks: Locks
    tasks: Tasks
    sessions: SessionStore
    limits: LimitStore
    doors: Doors
    key_ring: KeyRing
    changes: Changes
    pictures: PictureClient
    agent: str
    ca_pem: bytes | None
    vendor_secrets: Sequence[SecretStr]
    tracing: Tracing | None


class _Tenant(NamedTuple):
    """What is one tenant's alone: nothing here may be reached on another's behalf."""

    id: str
    rule: TenantRule
    client: UpstreamClient
    transport: Transport
    identity: Transport | None
    settlement: Settlement
    watchers: Watchers
    sessions: Sessions
    providers: Providers
    logos: Logos
    validations: Validations
    accounts: Accounts
    attach: Attach


def wire(settings: Settings, *, clock: Clock = SYSTEM_CLOCK, timing: Timing | None = None) -> Process:
    """Build everything; nothing is opened before `Process.running`."""
    if settings.redis_url is None:
        raise ValueError("the embedded store is started by the process that owns it, which sets its URL")
    rules = settings.tenants()
    ids = {name: _tenant_id(settings, rule.client_id) for name, rule in rules.items()}
    first = ids[FIRST_TENANT]
    store = Store(settings.redis_url, command_seconds=settings.redis_timeout, replicas=settings.replicas)
    # Of these keys only those are used that are no tenant's.
    keys = Keys(settings.redis_prefix, first)
    notices = Notices(store=store, channel=keys.channel)
    tasks = Tasks()
    sessions = SessionStore(store=store, keys=keys, retention_ms=int(settings.retention_hours * 3_600_000))
    limits = LimitStore(store=store, keys=keys)
    doors = Doors(limits=limits, first_tenant=first, refusals_per_minute=settings.refusals_per_minute)
    agent = f"omniconnect-bff/{version('omniconnect-bff')}"
    ca_pem = settings.upstream_ca_file.read_bytes() if settings.upstream_ca_file else None
    shared = _Shared(
        settings=settings,
        timing=timing or Timing(),
        clock=clock,
        store=store,
        notices=notices,
        locks=Locks(store=store, channel=keys.channel),
        tasks=tasks,
        sessions=sessions,
        limits=limits,
        doors=doors,
        key_ring=KeyRing(settings.ring()),
        changes=Changes(sessions=sessions, notices=notices, tasks=tasks, clock=clock),
        pictures=PictureClient(user_agent=agent, loopback=settings.sandbox, ca_pem=ca_pem),
        agent=agent,
        ca_pem=ca_pem,
        vendor_secrets=[secret for rule in rules.values() for secret in rule.secrets],
        tracing=Tracing(settings.trace_share) if settings.trace_share else None,
    )
    tenants = {name: _tenant(shared, name, ids[name], rule) for name, rule in rules.items()}
    clients = Clients(client for each in tenants.values() for client in _clients(each))
    access = Access(
        api_keys={digest: key for each in tenants.values() for digest, key in _api_keys(each).items()},
        clients=clients,
        users={each.rule.jwt_issuer: _users(shared, each) for each in tenants.values() if each.rule.jwt_issuer},
        tenants=ids.values(),
        doors=doors,
        reads_per_minute=settings.session_reads,
        sessions=sessions,
        clock=clock,
    )
    settlements = {each.id: each.settlement for each in tenants.values()}
    pages = HostedPages(sessions=sessions, settlements=settlements, doors=doors, clock=clock)
    events = Events(sessions=sessions, settlements=settlements, changes=shared.changes, clock=clock)
    steps = {
        name: Steps(
            access=access,
            sessions=each.sessions,
            providers=each.providers,
            logos=each.logos,
            validations=each.validations,
            accounts=each.accounts,
            attach=each.attach,
            hosted=pages,
            events=events,
            changes=shared.changes,
            clock=clock,
        )
        for name, each in tenants.items()
    }
    return Process(
        steps=steps[FIRST_TENANT],
        tenants=Tenants(by_id={ids[name]: each for name, each in steps.items()}, by_name=steps),
        health=Health(
            mode="sandbox" if settings.sandbox else "production",
            upstreams=[each.client for each in tenants.values()],
        ),
        store=store,
        transports=[part for each in tenants.values() for part in (each.transport, each.identity) if part is not None],
        origins=clients.origins,
        notices=notices,
        watchers=[each.watchers for each in tenants.values()],
        tasks=tasks,
        tracing=shared.tracing,
    )


def _tenant(shared: _Shared, name: str, tenant: str, rule: TenantRule) -> _Tenant:
    settings, timing, clock, tasks = shared.settings, shared.timing, shared.clock, shared.tasks
    store, notices, sessions = shared.store, shared.notices, shared.sessions
    https_only = not settings.sandbox
    keys = Keys(settings.redis_prefix, tenant)
    guards = GuardStore(
        store=store,
        keys=keys,
        lease_ms=int(timing.claim_lease * 1000),
        sent_lease_ms=int(timing.sent_lease * 1000),
        keep_ms=max(_GUARD_KEEP_MS, LONGEST_TTL_SECONDS * 1000 + sessions.retention_ms),
    )
    # Of its own: a vendor that hangs for one tenant takes no connection of another's.
    transport = Transport(
        limits=timing.upstream,
        user_agent=shared.agent,
        https_only=https_only,
        proxy=settings.upstream_proxy,
        ca_pem=shared.ca_pem,
    )
    # The identity provider is no part of the vendor: connections, certificates and limits of its own.
    identity = (
        Transport(limits=TransportLimits(max_connections=4), user_agent=shared.agent, https_only=https_only)
        if rule.jwt_jwks_url
        else None
    )
    base_url = rule.upstream_url or settings.upstream_url
    client = UpstreamClient(
        transport=transport,
        base_url=base_url,
        credentials_url=rule.credentials_url or base_url,
        client_id=rule.client_id,
        secret=rule.secret,
        next_secret=rule.next_secret,
        rules=timing.limiter,
        clock=clock,
        tracing=shared.tracing,
    )
    table = CompanyTable(extra=_rules(settings), https_only=https_only)
    tokens = TokenSource(
        client=client,
        store=TokenStore(store=store, keys=keys, key_ring=shared.key_ring),
        key=keys.token,
        locks=shared.locks,
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
        logos_query="" if name == FIRST_TENANT else f"?tenant={name}",
        locks=shared.locks,
        notices=notices,
        tasks=tasks,
        clock=clock,
    )
    lockout = Lockout(
        limits=shared.limits,
        by_account=settings.account_attempts,
        by_address=settings.address_attempts,
        key=shared.key_ring.derive("utility accounts"),
        tenant=tenant,
    )
    accounts = Accounts(
        client=client,
        tokens=tokens,
        sessions=sessions,
        doors=shared.doors,
        keys=keys,
        key_ring=shared.key_ring,
        clock=clock,
    )
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
    return _Tenant(
        id=tenant,
        rule=rule,
        client=client,
        transport=transport,
        identity=identity,
        settlement=settlement,
        watchers=watchers,
        sessions=Sessions(
            tokens=tokens,
            sessions=sessions,
            settlement=settlement,
            return_urls=ReturnUrls(rule.return_urls, loopback=settings.sandbox),
            vendor_secrets=shared.vendor_secrets,
            clock=clock,
        ),
        providers=providers,
        logos=Logos(providers=providers, pictures=shared.pictures, tasks=tasks, clock=clock),
        validations=Validations(
            client=client,
            tokens=tokens,
            providers=providers,
            table=table,
            sessions=sessions,
            watchers=watchers,
            lockout=lockout,
            doors=shared.doors,
            changes=shared.changes,
            settlement=settlement,
            clock=clock,
            limits=TimeLimits(settings.password_minutes * 60, settings.oauth_minutes * 60),
        ),
        accounts=accounts,
        attach=Attach(
            accounts=accounts, sessions=sessions, attempts=attempts, settlement=settlement, tasks=tasks, clock=clock
        ),
    )


def _tenant_id(settings: Settings, client_id: str) -> str:
    """Names what is shared in Redis after whom it belongs to: the sandbox's must never be taken for the vendor's.

    What a tenant is called in the settings is no part of it: it may be renamed, or become the first one, and keeps its
    sessions.
    """
    mode = "sandbox" if settings.sandbox else "production"
    return f"default-{hashlib.sha256(f'{mode} {client_id}'.encode()).hexdigest()[:12]}"


def _api_keys(tenant: _Tenant) -> Mapping[str, ApiKey]:
    return {key.digest: ApiKey(name, tenant.id, key.scopes) for name, key in tenant.rule.api_keys.items()}


def _clients(tenant: _Tenant) -> list[PublishableClient]:
    return [
        PublishableClient(name, rule.name or name, tenant.id, rule.origins, rule.enabled)
        for name, rule in tenant.rule.clients.items()
    ]


def _users(shared: _Shared, tenant: _Tenant) -> UserTokens:
    rule, transport = tenant.rule, tenant.identity
    if transport is None or rule.jwt_issuer is None or rule.jwt_audience is None or rule.jwt_jwks_url is None:
        raise ValueError("the settings let these be given together only")
    url = rule.jwt_jwks_url

    async def fetch() -> bytes:
        answer = await transport.read(url, token=None)
        if answer.status != HTTPStatus.OK:
            raise UpstreamError(answer.status)
        return answer.body

    rules = IssuerRules(rule.jwt_issuer, rule.jwt_audience, tuple(shared.settings.jwt_algorithms))
    return UserTokens(tenant=tenant.id, rules=rules, keys=KeySet(fetch=fetch, tasks=shared.tasks, clock=shared.clock))


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
