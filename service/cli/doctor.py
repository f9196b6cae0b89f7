"""What is wrong with a deployment, and what to do about it: one check after the other, each told in a line."""

import asyncio
import logging
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr
from pyreqwest.exceptions import PyreqwestError

from service.errors import (
    ServiceError,
    StoreUnavailable,
    UpstreamCredentialsRejected,
    UpstreamError,
    UpstreamMalformed,
)
from service.settings import Settings
from service.stores.connection import Store
from service.stores.embedded import DataDirInUse, EmbeddedStore, EmbeddedStoreError
from service.stores.locks import Locks
from service.tenants import FIRST_TENANT, PREFIX, TenantRule, label_of
from service.tracing import Tracing
from service.upstream.client import UpstreamClient
from service.upstream.transport import Transport, TransportLimits

__all__ = ["Finding", "examine"]

_MOST_SKEW_SECONDS: Final = 30
_SLOW_STORE_SECONDS: Final = 0.05
_LOOK_SECONDS: Final = 10.0
_PINGS: Final = 5
_LEASE_MS: Final = 1000
_REFUSED: Final = "the upstream refuses the client id and secret"
_THREADS_SECONDS: Final = 0.1
"""pyreqwest's threads outlive a call for a moment; an interpreter that ends at that moment aborts."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        result: `fail` keeps the service from working, `warn` does not.
        to_do: What to do about it.
    """

    check: str
    result: Literal["ok", "warn", "fail"]
    told: str
    to_do: str | None = None


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Check everything that the settings name; whatever they say, nothing is linked and nobody signs in."""
    tenants = settings.tenants()
    for name, rule in tenants.items():
        yield _callers(settings, name, rule)
    if settings.redis_url is None:
        yield _embedded(settings)
    else:
        async for finding in _redis(settings, settings.redis_url):
            yield finding
    urls = [url for rule in tenants.values() for url in (rule.upstream_url, rule.credentials_url) if url]
    for url in dict.fromkeys(urls):
        async for finding in _address(settings, url):
            yield finding
    for name, rule in tenants.items():
        for finding in await _secrets(settings, name, rule):
            yield finding
    if settings.trace_share:
        yield await _traces(settings)
    async for finding in _entrances(settings):
        yield finding


def _check(check: str, tenant: str) -> str:
    """A check of one tenant, by the names that a deployer knows."""
    return check if tenant == FIRST_TENANT else f"{check} {tenant}"


def _callers(settings: Settings, tenant: str, rule: TenantRule) -> Finding:
    check = _check("callers", tenant)
    if settings.sandbox and tenant == FIRST_TENANT:
        return Finding(check, "ok", "sandbox: everybody knows the API key")
    if not rule.api_keys:
        to_do = f"make one with `omniconnect-bff keys new` and set {label_of(tenant)('api_keys')}"
        return Finding(check, "warn", "no API key is set, so no server can open a session", to_do)
    return Finding(check, "ok", f"API keys: {', '.join(rule.api_keys)}")


# The store


def _embedded(settings: Settings) -> Finding:
    try:
        with EmbeddedStore(settings.data_dir):
            pass
    except DataDirInUse as error:
        return Finding("store", "warn", str(error), "if that is this service, all is well")
    except (EmbeddedStoreError, OSError) as error:
        to_do = f"check {PREFIX}DATA_DIR and its owner, or set {PREFIX}REDIS_URL"
        return Finding("store", "fail", f"the embedded store does not start: {error}", to_do)
    if settings.data_dir is None and not settings.sandbox:
        told, to_do = "the embedded store starts, but forgets at every restart", f"set {PREFIX}DATA_DIR or REDIS_URL"
        return Finding("store", "warn", told, to_do)
    return Finding("store", "ok", "the embedded store starts")


async def _redis(settings: Settings, url: SecretStr) -> AsyncIterator[Finding]:
    servers: Sequence[Mapping[str, Any]] = ()
    async with Store(url, command_seconds=settings.redis_timeout) as store:
        try:
            seconds = await _latency(store)
            async with Locks(store=store, channel=f"{settings.redis_prefix}:doctor").held(
                f"{settings.redis_prefix}:{{doctor}}", lease_ms=_LEASE_MS
            ):
                pass
        except StoreUnavailable as error:
            cause = type(error.__cause__).__name__
            to_do = f"check {PREFIX}REDIS_URL, its password and rights (scripts, publish), and the network"
            yield Finding("redis", "fail", f"it does not do what is asked ({cause}: {error.__cause__})", to_do)
            return
        with suppress(StoreUnavailable):
            servers = await store.servers()
    told = f"answers in {seconds * 1000:.1f} ms, takes scripts"
    if seconds > min(_SLOW_STORE_SECONDS, settings.redis_timeout / 2):
        yield Finding("redis", "warn", told, f"move it closer, or raise {PREFIX}REDIS_TIMEOUT")
    else:
        yield Finding("redis", "ok", told)
    if not servers:
        yield Finding("redis server", "warn", "INFO is not allowed, so its settings were not read")
        return
    for finding in _judged(servers, replicas=settings.replicas):
        yield finding


async def _latency(store: Store) -> float:
    """The best of several, the first of which also connects."""
    best = float("inf")
    for _ in range(_PINGS):
        started = time.perf_counter()
        await store.ping()
        best = min(best, time.perf_counter() - started)
    return best


def _judged(servers: Sequence[Mapping[str, Any]], *, replicas: int) -> Iterator[Finding]:
    """What servers tell of themselves; in a Cluster the weakest counts."""
    first = servers[0]
    name = "Valkey" if "valkey_version" in first else "Redis"
    yield Finding("redis server", "ok", f"{name} {first.get('valkey_version', first.get('redis_version', '?'))}")
    policies = {each["maxmemory_policy"] for each in servers if "maxmemory_policy" in each}
    if policies == {"noeviction"}:
        yield Finding("redis memory", "ok", "maxmemory-policy is noeviction")
    elif policies:
        told = f"maxmemory-policy is {', '.join(sorted(policies - {'noeviction'}))}: what was linked could be forgotten"
        yield Finding("redis memory", "fail", told, "set `maxmemory-policy noeviction`")
    if all(each.get("aof_enabled") == 1 for each in servers):
        yield Finding("redis data", "ok", "survives a restart (append-only file)")
    else:
        to_do = "set `appendonly yes`, else a crash can lose the outcome of links"
        yield Finding("redis data", "warn", "the append-only file is off", to_do)
    yield _replicated(min(map(_followers, servers)), replicas)


def _followers(server: Mapping[str, Any]) -> int:
    """How many replicas get what is written there."""
    states = [each["state"] for name, each in server.items() if re.fullmatch(r"slave\d+", name)]
    return states.count("online")


def _replicated(following: int, needed: int) -> Finding:
    check, setting = "redis replicas", f"{PREFIX}REDIS_REPLICAS"
    told = f"{following} {'follows' if following == 1 else 'follow'}, and links wait for {needed or 'none'}"
    if following < needed:
        return Finding(check, "fail", f"{told}: none can be made", f"start more, or lower {setting}")
    if following and not needed:
        return Finding(check, "warn", f"{told}: a lost server takes results along", f"set {setting}=1")
    if following and following == needed:
        return Finding(check, "warn", f"{told}: none may be lost", "start one more")
    return Finding(check, "ok", told)


# The vendor


async def _address(settings: Settings, url: str) -> AsyncIterator[Finding]:
    host = urlsplit(url).hostname
    try:
        trusted = ssl.create_default_context()
        if settings.upstream_ca_file is not None:
            trusted.load_verify_locations(settings.upstream_ca_file)
    except OSError as error:
        yield Finding("upstream", "fail", f"{PREFIX}UPSTREAM_CA_FILE cannot be used: {error}", "give a PEM file")
        return
    proxy = settings.upstream_proxy.get_secret_value() if settings.upstream_proxy else None
    try:
        async with httpx.AsyncClient(verify=trusted, proxy=proxy, trust_env=False, timeout=_LOOK_SECONDS) as client:
            before = time.time()
            answer = await client.get(url)
            here = (before + time.time()) / 2
    except ImportError:
        yield Finding("upstream", "warn", f"{host}: not looked at through a SOCKS proxy", "see the next check")
        return
    except httpx.TransportError as error:
        yield _not_reached(host, error)
        return
    tls = "TLS is good" if url.startswith("https") else "plain HTTP"
    yield Finding("upstream", "ok", f"{host} answers (HTTP {answer.status_code}), {tls}")
    yield _clock(here, answer.headers.get("Date"))


def _not_reached(host: str | None, error: Exception) -> Finding:
    reason = f"{type(error).__name__}: {error}".rstrip(": ")
    if "CERTIFICATE_VERIFY_FAILED" in reason or "SSL" in reason:
        to_do = f"if a proxy of yours opens TLS, name its certificate in {PREFIX}UPSTREAM_CA_FILE; check the clock"
        return Finding("upstream", "fail", f"TLS to {host} fails ({reason})", to_do)
    to_do = f"check {PREFIX}UPSTREAM_URL, DNS and firewall; behind a proxy set {PREFIX}UPSTREAM_PROXY"
    return Finding("upstream", "fail", f"{host} cannot be reached ({reason})", to_do)


def _clock(here: float, date: str | None) -> Finding:
    try:
        skew = here - parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return Finding("clock", "warn", "not compared: the upstream tells no date", "see to NTP")
    direction = "ahead of" if skew > 0 else "behind"
    if abs(skew) >= _MOST_SKEW_SECONDS:
        return Finding("clock", "warn", f"{abs(skew):.0f} s {direction} the upstream's", "synchronize it (NTP)")
    return Finding("clock", "ok", f"agrees with the upstream's within {max(abs(skew), 1):.0f} s")


async def _secrets(settings: Settings, tenant: str, rule: TenantRule) -> list[Finding]:
    """While the secret is being changed, one of the two is enough."""
    active = await _credentials(settings, tenant, rule, rule.secret)
    if rule.next_secret is None:
        return [active]
    coming = await _credentials(settings, tenant, rule, rule.next_secret)
    check = _check("next secret", tenant)
    if coming.told == _REFUSED:
        return [active, Finding(check, "warn", "the upstream does not accept it yet")]
    if active.told == _REFUSED and coming.result == "ok":
        label = label_of(tenant)
        active = replace(active, result="warn", to_do=f"put {label('next_secret')} in the place of {label('secret')}")
    return [active, replace(coming, check=check)]


async def _credentials(settings: Settings, tenant: str, rule: TenantRule, secret: SecretStr) -> Finding:
    check, label = _check("credentials", tenant), label_of(tenant)
    try:
        transport = Transport(
            limits=TransportLimits(),
            user_agent="omniconnect-bff doctor",
            https_only=not settings.sandbox,
            proxy=settings.upstream_proxy,
            ca_pem=settings.upstream_ca_file.read_bytes() if settings.upstream_ca_file else None,
        )
    except (OSError, PyreqwestError):
        to_do = f"check {PREFIX}UPSTREAM_CA_FILE and {PREFIX}UPSTREAM_PROXY"
        return Finding(check, "fail", "not tried: no client can be built", to_do)
    async with transport:
        client = UpstreamClient(
            transport=transport,
            base_url=rule.upstream_url or settings.upstream_url,
            credentials_url=rule.credentials_url or settings.upstream_url,
            client_id=rule.client_id,
            secret=secret,
        )
        try:
            await client.fetch_token()
        except UpstreamCredentialsRejected:
            return Finding(check, "fail", _REFUSED, f"check {label('client_id')} and {label('secret')}")
        except UpstreamError as error:
            to_do = f"check the path in {label('upstream_url')}"
            return Finding(check, "fail", f"the upstream answers HTTP {error.status}", to_do)
        except UpstreamMalformed:
            to_do = f"check the path in {label('upstream_url')}"
            return Finding(check, "fail", "the upstream's answer is no token", to_do)
        except ServiceError as error:
            return Finding(check, "fail", f"not tried: {error.message}", "see the check of the upstream")
        finally:
            await asyncio.sleep(_THREADS_SECONDS)
    return Finding(check, "ok", "the upstream accepts the client id and secret")


# The collector


async def _traces(settings: Settings) -> Finding:
    # The exporter logs what goes wrong, which is told here.
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
    if await asyncio.to_thread(Tracing(settings.trace_share).reaches_collector):
        return Finding("traces", "ok", "the collector takes them")
    to_do = "check OTEL_EXPORTER_OTLP_ENDPOINT, and OTEL_EXPORTER_OTLP_HEADERS if it asks for a key"
    return Finding("traces", "warn", "the collector does not take them", to_do)


# This machine


async def _entrances(settings: Settings) -> AsyncIterator[Finding]:
    if settings.public_url is not None and settings.public_url.startswith("https://"):
        yield _proxies(settings)
    yield await _port("port", settings.host, settings.port)
    if settings.metrics_port is not None:
        yield await _port("metrics port", settings.metrics_host, settings.metrics_port, settings=f"{PREFIX}METRICS_")


def _proxies(settings: Settings) -> Finding:
    """Whoever is reached over https stands behind a proxy: this service speaks HTTP."""
    check = "callers' addresses"
    if settings.trusted_proxies:
        return Finding(check, "ok", f"believed from {', '.join(sorted(settings.trusted_proxies))}")
    told = "all callers have the proxy's, so that limits for one address are shared by everybody"
    return Finding(check, "warn", told, f"name the proxy in {PREFIX}TRUSTED_PROXIES")


async def _port(check: str, host: str, port: int, *, settings: str = PREFIX) -> Finding:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            reason = error.strerror
        else:
            return Finding(check, "ok", f"{where} is free")
    with suppress(httpx.TransportError, ValueError, KeyError, TypeError):
        async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
            status = (await client.get(f"http://{where}/readyz")).json()["status"]
            return Finding(check, "ok", f"{where}: this service runs there, {status}")
    return Finding(check, "fail", f"cannot listen on {where}: {reason}", f"set {settings}PORT and {settings}HOST")
