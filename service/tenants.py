"""Tenants: pairs of client id and secret, who calls on behalf of each, and the file that names further ones."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic.alias_generators import to_camel

from service.addresses import LOOPBACK, WEB_SCHEMES, is_origin, is_url, parts_of
from service.link.returns import is_plain
from service.link.scopes import ALL_SCOPES, Scope

__all__ = [
    "FIRST_TENANT",
    "KEY_NAME",
    "PREFIX",
    "SANDBOX_API_KEY_SHA256",
    "ClientRule",
    "KeyRule",
    "TenantRule",
    "faults_of",
    "key_rules",
    "label_of",
    "named_parts",
    "read_tenants",
]

PREFIX: Final = "OMNICONNECT_"
"""Begins the name of every setting."""

FIRST_TENANT: Final = "default"
KEY_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
SANDBOX_API_KEY_SHA256: Final = "643d842f7d1580d2c5f9c30ca8dae4ae1c99452cfb8684eedcdac9259c7daa19"
_SANDBOX_MARK: Final = "sandbox-"
"""Begins every client id and secret that is public by design."""

_LEAST_SECRET_CHARACTERS: Final = 8
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NO_APP_SCHEMES: Final = frozenset(
    {"about", "blob", "chrome", "data", "feed", "file", "filesystem", "ftp", "http", "intent", "jar", "javascript"}
    | {"mailto", "resource", "sms", "tel", "vbscript", "view-source", "ws", "wss"}
)
"""What a browser itself does something with."""


class ClientRule(BaseModel):
    """A page that opens sessions by itself."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)

    name: str = ""
    origins: frozenset[str] = Field(min_length=1)
    enabled: bool = True


class KeyRule(BaseModel):
    """An API key, as it is stored, and what it may do."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    digest: str
    scopes: frozenset[Scope] = ALL_SCOPES


class TenantRule(BaseModel):
    """One pair of client id and secret, and those who call on its behalf."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True, hide_input_in_errors=True)

    client_id: str = Field(min_length=1)
    secret: SecretStr
    next_secret: SecretStr | None = None
    upstream_url: str | None = None  # the deployment's own, unless given
    credentials_url: str | None = None
    api_keys: dict[str, KeyRule] = Field(default_factory=dict)
    clients: dict[str, ClientRule] = Field(default_factory=dict)
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_jwks_url: str | None = None
    return_urls: frozenset[str] = frozenset()

    @field_validator("api_keys", mode="before")
    @classmethod
    def _read_api_keys(cls, value: object) -> object:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ValueError("must be a list of name:sha256hex[:scope+scope]")
        return key_rules(value)

    @property
    def secrets(self) -> list[SecretStr]:
        """All that the vendor may take."""
        return [self.secret, *([self.next_secret] if self.next_secret else [])]


def label_of(tenant: str) -> Callable[[str], str]:
    """What a deployer knows a tenant's setting by."""
    if tenant == FIRST_TENANT:
        return lambda name: f"{PREFIX}{name.upper()}"
    return lambda name: f"{PREFIX}TENANTS_FILE: {tenant}: {to_camel(name)}"


# The file


def read_tenants(path: Path) -> tuple[dict[str, TenantRule], list[str]]:
    """The tenants of a file, and what is wrong with it."""
    setting = f"{PREFIX}TENANTS_FILE"
    try:
        listed = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except OSError:
        return {}, [f"{setting} cannot be read"]
    except (ValueError, RecursionError):
        return {}, [f"{setting} must hold JSON in which no name comes twice"]
    if not isinstance(listed, dict):
        return {}, [f'{setting} must hold {{"name": {{"clientId", "secret"}}}}']
    tenants, faults = {}, []
    for name, given in listed.items():
        if not KEY_NAME.fullmatch(name) or name == FIRST_TENANT:
            faults.append(f"{setting}: a name is 1 to 64 letters, digits, - or _, and not {FIRST_TENANT}")
            continue
        try:
            tenants[name] = TenantRule.model_validate(given)
        except ValidationError as error:
            faults += _tenant_in_words(f"{setting}: {name}", error)
    return tenants, faults


def _tenant_in_words(tenant: str, error: ValidationError) -> list[str]:
    known = {to_camel(name) for name in TenantRule.model_fields}
    faults = []
    for each in error.errors(include_input=False, include_url=False, include_context=False):
        name = str(each["loc"][0]) if each["loc"] else ""
        # What is no field may be a value that stands where a name should.
        place = f"{tenant}: {name}" if name in known else tenant
        message = "an unknown field" if name and name not in known else each["msg"].removeprefix("Value error, ")
        faults.append(f"{place} is required" if each["type"] == "missing" else f"{place}: {message}")
    return faults


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError
    return dict(pairs)


# What is wrong


def faults_of(tenants: Mapping[str, TenantRule], *, sandbox: bool) -> list[str]:
    """What is wrong with tenants: with each of them, and between them."""
    faults = []
    for name, rule in tenants.items():
        faults += _tenant_faults(label_of(name), rule, sandbox=sandbox)
    return faults + _shared_faults(tenants)


def _tenant_faults(label: Callable[[str], str], rule: TenantRule, *, sandbox: bool) -> list[str]:
    """What is wrong with one tenant."""
    faults = _credential_faults(label, rule, sandbox=sandbox)
    for name, url in (("upstream_url", rule.upstream_url), ("credentials_url", rule.credentials_url)):
        fault = _upstream_url_fault(url, sandbox=sandbox) if url is not None else None
        if fault:
            faults.append(f"{label(name)} {fault}")
    for client_id, client in rule.clients.items():
        if not KEY_NAME.fullmatch(client_id):
            faults.append(f"{label('clients')}: an id is 1 to 64 letters, digits, - or _")
        if not all(is_origin(origin) for origin in client.origins):
            faults.append(f"{label('clients')}: each origin is https://host[:port], or http://localhost[:port]")
    issuer = (rule.jwt_issuer, rule.jwt_audience, rule.jwt_jwks_url)
    if any(issuer) and not all(issuer):
        names = [label(f"jwt_{part}") for part in ("issuer", "audience", "jwks_url")]
        faults.append(f"{names[0]}, {names[1]} and {names[2]} belong together")
    if rule.jwt_jwks_url and not sandbox and urlsplit(rule.jwt_jwks_url).scheme != "https":
        faults.append(f"{label('jwt_jwks_url')} must be https")
    faults += [f"{label('return_urls')} {fault}" for url in rule.return_urls if (fault := _return_url_fault(url))]
    return faults


def _credential_faults(label: Callable[[str], str], rule: TenantRule, *, sandbox: bool) -> list[str]:
    """Whether real credentials and the sandbox's stand where they belong."""
    secrets = [each.get_secret_value() for each in rule.secrets]
    public = [each.startswith(_SANDBOX_MARK) for each in (rule.client_id, *secrets)]
    if sandbox:
        told = f"{PREFIX}SANDBOX takes only the sandbox's own client id and secret, never real ones"
        return [] if all(public) else [f"{label('client_id')}: {told}"]
    faults = []
    if any(public):
        faults.append(f"{label('client_id')}: the sandbox's client id and secret work only with {PREFIX}SANDBOX=true")
    if SANDBOX_API_KEY_SHA256 in {each.digest for each in rule.api_keys.values()}:
        faults.append(f"{label('api_keys')}: the sandbox's API key works only with {PREFIX}SANDBOX=true")
    for name, secret in zip(("secret", "next_secret"), secrets, strict=False):
        if len(secret) < _LEAST_SECRET_CHARACTERS:
            faults.append(f"{label(name)} is too short to be one")
    return faults


def _shared_faults(tenants: Mapping[str, TenantRule]) -> list[str]:
    """What decides for whom a caller acts may not be two tenants', nor one key stand there with two sets of scopes."""
    identities: list[tuple[str, str, str]] = []
    for tenant, rule in tenants.items():
        identities.append((tenant, "client_id", rule.client_id))
        identities += [(tenant, "api_keys", each.digest) for each in rule.api_keys.values()]
        identities += [(tenant, "clients", each) for each in rule.clients]
        identities += [(tenant, "jwt_issuer", rule.jwt_issuer)] if rule.jwt_issuer else []
    seen = Counter((kind, value) for _, kind, value in identities)
    return [
        f"{label_of(tenant)(kind)}: one of them stands elsewhere, too; it can be only one's"
        for tenant, kind in dict.fromkeys((tenant, kind) for tenant, kind, value in identities if seen[kind, value] > 1)
    ]


def _upstream_url_fault(url: str, *, sandbox: bool) -> str | None:
    parts = parts_of(url)
    if parts is None or not is_url(url, WEB_SCHEMES) or parts.query or parts.fragment:
        return "must be an http(s) URL without query"
    if parts.username or parts.password:
        return "must not hold credentials"
    if not sandbox and parts.scheme != "https":
        return "must be https"
    if sandbox and (parts.scheme == "https" or "omnimetic" in (parts.hostname or "")):
        return f"looks real; with {PREFIX}SANDBOX it must be the sandbox's, over http"
    return None


def _return_url_fault(url: str) -> str | None:
    parts = parts_of(url)
    if parts is None or not is_plain(url):
        return "must hold URLs, with unusual characters percent-encoded"
    if parts.query or parts.fragment or parts.username is not None:
        return "must hold URLs without user, query and fragment"
    if parts.scheme == "https":
        return None if parts.hostname else "must hold URLs with a host"
    if parts.scheme == "http" and parts.hostname in LOOPBACK:
        return None
    if parts.scheme in _NO_APP_SCHEMES:
        return "must hold https URLs, or those of an app's own scheme"
    return None


# API keys


def key_rules(parts: Iterable[str]) -> dict[str, KeyRule]:
    """Read `name:sha256hex[:scope+scope]`.

    Raises:
        ValueError: One of them is something else; the message has no value in it.
    """
    rules = {}
    for name, rest in named_parts(parts, "name:sha256hex[:scope+scope]"):
        digest, colon, scopes = rest.partition(":")
        if not _SHA256.fullmatch(digest):
            raise ValueError("each key is stored as the SHA-256 of it, 64 hex digits; `omniconnect-bff keys new`")
        named = frozenset(scopes.split("+")) if colon else ALL_SCOPES
        if not named <= ALL_SCOPES:
            raise ValueError(f"scopes are {', '.join(sorted(ALL_SCOPES))}, joined by +; a key without any has all")
        rules[name] = KeyRule(digest=digest, scopes=frozenset(Scope(each) for each in named))
    return rules


def named_parts(parts: Iterable[str], form: str) -> list[tuple[str, str]]:
    """Read `name:rest`, each name once; `form` tells what it should be.

    Raises:
        ValueError: As `key_rules`.
    """
    found = []
    for part in parts:
        name, colon, rest = part.strip().partition(":")
        if not colon or not KEY_NAME.fullmatch(name) or not rest:
            raise ValueError(f"each part must be {form}")
        found.append((name, rest))
    if len({name for name, _ in found}) != len(found):
        raise ValueError("each name may appear once")
    return found
