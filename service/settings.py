"""Everything that a deployment decides, and what its settings must agree on."""

import base64
import binascii
import json
import ssl
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.addresses import LOOPBACK, is_origin, is_public_url, is_url, store_url_fault
from service.tenants import (
    FIRST_TENANT,
    PREFIX,
    SANDBOX_API_KEY_SHA256,
    ClientRule,
    KeyRule,
    TenantRule,
    faults_of,
    key_rules,
    named_parts,
    read_tenants,
)

__all__ = ["ProviderRule", "Settings", "SettingsError"]

DEFAULT_UPSTREAM_URL: Final = "https://app.omnimetic.com/api"
SANDBOX_CLIENT_ID: Final = "sandbox-client-id"
SANDBOX_SECRET: Final = "sandbox-secret"  # noqa: S105 -- public by design
SANDBOX_API_KEY: Final = "sandbox_api_key"
SANDBOX_PUBLISHABLE_CLIENT: Final = "sandbox-web"
SANDBOX_ENCRYPTION_KEY: Final = "c2FuZGJveCBvbmx5IC0gbm90IGEgc2VjcmV0ICAgICA="

_AES_256_BYTES: Final = 32
_MAKE_ONE: Final = "`omniconnect-bff keys new main --encryption` makes one"
_ASYMMETRIC: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"})
"""A shared secret would let whoever checks tokens make them."""

_WIDGET_PORT: Final = 4200
"""Where the vendor's `local` builds expect their server."""

_PROXY_SCHEMES: Final = frozenset({"http", "https", "socks5", "socks5h"})


class SettingsError(Exception):
    """Settings that cannot be used.

    Attributes:
        faults: All of them, one sentence each, none with a value.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class ProviderRule(BaseModel):
    """How people sign in at one company: adds to, or replaces, what is known by name."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)

    job_type: str | None = None  # what is None is left as it is known, or follows from the rest
    sign_in: Literal["password", "oauth"] | None = None
    authorize_url: str | None = None
    client_id: str | None = None
    redirect_uri: str | None = None


class Settings(BaseSettings):
    """Everything a deployment decides."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True, env_ignore_empty=True
    )

    client_id: str = Field(description="Client id that Omnimetic gave you.")
    secret: SecretStr = Field(description="Secret that Omnimetic gave you. Never leaves this service.")
    next_secret: SecretStr | None = Field(
        None, description="Secret that will take its place: used once the vendor refuses the first."
    )
    upstream_url: str = Field(DEFAULT_UPSTREAM_URL, description="Base URL of the vendor's API.")
    credentials_url: str | None = Field(None, description="Base URL for `POST /jobs`, if it is another one.")
    upstream_proxy: SecretStr | None = Field(
        None, description="Proxy for calls to the vendor. `HTTP_PROXY` and the like are not obeyed."
    )
    upstream_ca_file: Path | None = Field(None, description="PEM file with one more certificate authority to trust.")
    redis_url: SecretStr | None = Field(
        None,
        description="Redis or Valkey: `redis://`, `rediss://`, `unix://`, `redis+cluster://`, `redis+sentinel://`. "
        "Without it an embedded Valkey is started.",
    )
    redis_prefix: str = Field("omniconnect", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Begins every key.")
    redis_timeout: float = Field(0.25, gt=0, le=10, description="Seconds to connect, and for each command.")
    redis_replicas: int | None = Field(
        None,
        ge=0,
        le=8,
        description="Replicas that must have a link's intent before it is sent, and its result. Unset: 1 with "
        "Sentinel or Cluster, else 0.",
    )
    data_dir: Path | None = Field(
        None, description="Where the embedded store keeps its data; without it a restart forgets."
    )
    encryption_keys: Annotated[dict[str, SecretStr], NoDecode] = Field(
        default_factory=dict,
        description="`name:base64` of 32 bytes, comma-separated; the first seals, all open. Required with `REDIS_URL`.",
    )
    api_keys: Annotated[dict[str, KeyRule], NoDecode] = Field(
        default_factory=dict,
        description="`name:sha256hex[:scope+scope]`, comma-separated. `omniconnect-bff keys new` makes one.",
    )
    provider_table: Annotated[dict[str, ProviderRule], NoDecode] = Field(
        default_factory=dict,
        description='JSON: `{"Company name": {"jobType", "signIn", "authorizeUrl", "clientId", "redirectUri"}}`.',
    )
    clients: Annotated[dict[str, ClientRule], NoDecode] = Field(
        default_factory=dict,
        description='Pages that open sessions by themselves: `{"client id": {"name", "origins": [], "enabled"}}`.',
    )
    jwt_issuer: str | None = Field(None, description="Issuer of your users' JWTs; with audience and JWKS URL.")
    jwt_audience: str | None = Field(None, description="Audience that your users' JWTs must name.")
    jwt_jwks_url: str | None = Field(None, description="Where your identity provider publishes its keys.")
    jwt_algorithms: Annotated[frozenset[str], NoDecode] = Field(
        frozenset({"ES256", "RS256"}), description="Signature algorithms that are taken, comma-separated."
    )
    tenants_file: Path | None = Field(
        None, description="JSON file with further client ids, each with its own secret, keys and pages."
    )
    trusted_proxies: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(), description="Addresses or networks whose `X-Forwarded-For` is believed, comma-separated."
    )
    sandbox: bool = Field(
        False, description="Speak to the sandbox upstream instead of the vendor. Never in production."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    workers: int = Field(1, ge=1, le=64, description="Processes.")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of a listener of its own for `/metrics`, `/livez` and `/readyz`; without it only the sandbox "
        "serves `/metrics`.",
    )
    metrics_host: str = Field("127.0.0.1", description="Address of that listener.")
    public_url: str | None = Field(None, description="Where callers reach this service. The hosted page needs it.")
    application_name: str | None = Field(
        None, max_length=80, description="Your application's name, as the hosted page tells it to people."
    )
    return_urls: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        description="Where the hosted page may send people back, comma-separated: https, or an app's own scheme. "
        "A query may be added.",
    )
    frame_ancestors: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(), description="Origins that may show the hosted page in a frame, comma-separated; none by default."
    )
    widget: bool = Field(True, description="Answer the vendor's own widget under `/api`.")
    docs: bool | None = Field(None, description="Serve `/docs`; by default in the sandbox alone.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="What is logged.")
    trace_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of requests of which OpenTelemetry traces are kept, 1 for all; where they go is said by "
        "`OTEL_EXPORTER_OTLP_ENDPOINT`.",
    )
    drain_seconds: float = Field(
        2.0, ge=0, le=60, description="After SIGTERM, how long requests are still accepted while `/readyz` fails."
    )
    retention_hours: float = Field(24.0, gt=0, le=24 * 30, description="How long an ended session stays readable.")
    poll_seconds: float = Field(
        1.0,
        gt=0,
        le=30,
        description="Between two polls at a provider that nothing is known of; what is learned scales with it.",
    )
    poll_lease_seconds: float = Field(
        10.0, ge=0.2, le=60, description="How long a silent process keeps its validations."
    )
    password_minutes: float = Field(3.0, gt=0, le=60, description="Time limit of a validation by password.")
    account_attempts: int = Field(
        5,
        ge=1,
        le=1_000_000,
        description="Passwords that may be tried for one utility account before 15 minutes without one.",
    )
    address_attempts: int = Field(
        30,
        ge=1,
        le=1_000_000,
        description="Wrong passwords that may be tried from one address in 15 minutes, in sessions that pages opened.",
    )
    refusals_per_minute: int = Field(
        60, ge=1, le=1_000_000, description="Bad credentials that one address may present before it is told to wait."
    )
    session_reads: int = Field(
        300, ge=1, le=1_000_000_000, description="Reads of one session in a minute, by each who may read it."
    )
    oauth_minutes: float = Field(15.0, gt=0, le=60, description="Time limit of a validation by OAuth.")

    _further: dict[str, TenantRule] = PrivateAttr(default_factory=dict)

    @field_validator("encryption_keys", mode="before")
    @classmethod
    def _read_encryption_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return {name: SecretStr(key) for name, key in named_parts(value.split(","), "name:base64")}

    @field_validator("api_keys", mode="before")
    @classmethod
    def _read_api_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return key_rules(value.split(","))

    @field_validator("jwt_algorithms", "trusted_proxies", "return_urls", "frame_ancestors", mode="before")
    @classmethod
    def _read_list(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return frozenset(part.strip() for part in value.split(",") if part.strip())

    @field_validator("provider_table", "clients", mode="before")
    @classmethod
    def _read_json(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            # Not `from` it: a decoding error keeps the whole text.
            raise ValueError("must be JSON") from None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        self._further, faults = read_tenants(self.tenants_file) if self.tenants_file else ({}, [])
        faults += [*self._store_faults(), *self._address_faults(), *self._caller_faults(), *self._mode_faults()]
        faults += faults_of(self.tenants(), sandbox=self.sandbox)
        if faults:
            raise SettingsError(faults)
        return self

    @property
    def serves_docs(self) -> bool:
        """Whether there is a `/docs`."""
        return self.sandbox if self.docs is None else self.docs

    def ring(self) -> dict[str, bytes]:
        """The encryption keys, decoded."""
        return {name: base64.b64decode(key.get_secret_value()) for name, key in self.encryption_keys.items()}

    @property
    def replicas(self) -> int:
        """How many replicas must have what must not be lost with a server."""
        if self.redis_replicas is not None:
            return self.redis_replicas
        url = self.redis_url.get_secret_value() if self.redis_url else ""
        return int(urlsplit(url).scheme.endswith(("+sentinel", "+cluster")))

    def tenants(self) -> dict[str, TenantRule]:
        """All tenants by name, the first of which is the one that these settings themselves are about."""
        given = {name: getattr(self, name) for name in TenantRule.model_fields}
        api_keys, clients = dict(self.api_keys), dict(self.clients)
        if self.sandbox:
            if SANDBOX_API_KEY_SHA256 not in {each.digest for each in api_keys.values()}:
                api_keys["sandbox"] = KeyRule(digest=SANDBOX_API_KEY_SHA256)
            ports = [port for port in (self.port, _WIDGET_PORT) if port]
            here = frozenset({f"http://{host}:{port}" for host in LOOPBACK for port in ports})
            clients.setdefault(SANDBOX_PUBLISHABLE_CLIENT, ClientRule(name="Sandbox", origins=here))
        first = TenantRule.model_construct(**{**given, "api_keys": api_keys, "clients": clients})
        address = {"upstream_url": self.upstream_url, "credentials_url": self.credentials_url}
        further = {
            name: rule
            if rule.upstream_url
            else rule.model_copy(update={each: url for each, url in address.items() if getattr(rule, each) is None})
            for name, rule in self._further.items()
        }
        return {FIRST_TENANT: first, **further}

    def _store_faults(self) -> list[str]:
        faults = []
        if self.redis_url is not None:
            fault = store_url_fault(self.redis_url.get_secret_value())
            if fault:
                faults.append(f"{PREFIX}REDIS_URL {fault}")
            if not self.encryption_keys:
                faults.append(f"{PREFIX}ENCRYPTION_KEYS is required with {PREFIX}REDIS_URL; {_MAKE_ONE}")
            if self.data_dir is not None:
                faults.append(f"{PREFIX}DATA_DIR is for the embedded store, {PREFIX}REDIS_URL for another: set one")
        for place, key in enumerate(self.encryption_keys.values(), start=1):
            try:
                size = len(base64.b64decode(key.get_secret_value(), validate=True))
            except (binascii.Error, ValueError):
                size = 0
            if size != _AES_256_BYTES:
                # Not by its name: whoever swaps the two has written the key there.
                faults.append(f"{PREFIX}ENCRYPTION_KEYS: key {place} is not base64 of 32 bytes; {_MAKE_ONE}")
        return faults

    def _address_faults(self) -> list[str]:
        faults = []
        if self.metrics_port and self.metrics_port == self.port:
            faults.append(f"{PREFIX}METRICS_PORT must be another one than {PREFIX}PORT")
        if self.public_url is not None and not is_public_url(self.public_url, sandbox=self.sandbox):
            faults.append(f"{PREFIX}PUBLIC_URL must be an https URL without user, query and fragment")
        if self.upstream_proxy is not None and not is_url(self.upstream_proxy.get_secret_value(), _PROXY_SCHEMES):
            faults.append(f"{PREFIX}UPSTREAM_PROXY must begin with one of {', '.join(sorted(_PROXY_SCHEMES))} and ://")
        if self.upstream_ca_file is not None and not _holds_certificates(self.upstream_ca_file):
            faults.append(f"{PREFIX}UPSTREAM_CA_FILE cannot be read, or holds no PEM certificate")
        return faults

    def _caller_faults(self) -> list[str]:
        faults = [
            f"{PREFIX}PROVIDER_TABLE: {name} has an authorizeUrl, so its signIn is oauth"
            for name, rule in self.provider_table.items()
            if rule.authorize_url and rule.sign_in == "password"
        ]
        if not self.jwt_algorithms <= _ASYMMETRIC:
            faults.append(f"{PREFIX}JWT_ALGORITHMS: only {', '.join(sorted(_ASYMMETRIC))}")
        if not all(is_origin(origin) for origin in self.frame_ancestors):
            faults.append(f"{PREFIX}FRAME_ANCESTORS: each origin is https://host[:port], or http://localhost[:port]")
        for proxy in self.trusted_proxies:
            try:
                everybody = ip_network(proxy, strict=False).prefixlen == 0
            except ValueError:
                faults.append(f"{PREFIX}TRUSTED_PROXIES: addresses or networks, such as 10.0.0.0/8")
            else:
                if everybody:
                    # Then callers name their own address, and limits by address hold nobody.
                    faults.append(f"{PREFIX}TRUSTED_PROXIES must not be everybody")
        return faults

    def _mode_faults(self) -> list[str]:
        if not self.sandbox and SANDBOX_ENCRYPTION_KEY in {
            key.get_secret_value() for key in self.encryption_keys.values()
        }:
            return [f"the encryption key of docker-compose.yml works only with {PREFIX}SANDBOX=true"]
        return []


def _holds_certificates(path: Path) -> bool:
    try:
        ssl.create_default_context(cadata=path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # among them ssl.SSLError and UnicodeDecodeError
        return False
    return True
