"""Settings: `OMNICONNECT_*` environment variables. Wrong ones stop the start, all told at once, in words."""

import base64
import binascii
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

__all__ = ["ProviderRule", "Settings", "SettingsError", "load_settings"]

PREFIX: Final = "OMNICONNECT_"
DEFAULT_UPSTREAM_URL: Final = "https://app.omnimetic.com/api"
SANDBOX_CLIENT_ID: Final = "sandbox-client-id"
SANDBOX_SECRET: Final = "sandbox-secret"  # noqa: S105 -- public by design
SANDBOX_API_KEY: Final = "sandbox_api_key"
SANDBOX_API_KEY_SHA256: Final = "643d842f7d1580d2c5f9c30ca8dae4ae1c99452cfb8684eedcdac9259c7daa19"

_AES_256_BYTES: Final = 32
_LEAST_SECRET_CHARACTERS: Final = 8
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_STORE_SCHEMES: Final = frozenset(
    {"redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel"}
)


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

    job_type: str | None = None
    sign_in: Literal["password", "oauth"] = "password"
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
    data_dir: Path | None = Field(
        None, description="Where the embedded store keeps its data; without it a restart forgets."
    )
    encryption_keys: Annotated[dict[str, SecretStr], NoDecode] = Field(
        default_factory=dict,
        description="`name:base64` of 32 bytes, comma-separated; the first seals, all open. Required with `REDIS_URL`.",
    )
    api_keys: Annotated[dict[str, tuple[str, frozenset[str]]], NoDecode] = Field(
        default_factory=dict,
        description="`name:sha256hex[:scope+scope]`, comma-separated. `omniconnect-bff keys new` makes one.",
    )
    provider_table: dict[str, ProviderRule] = Field(
        default_factory=dict,
        description='JSON: `{"Company name": {"jobType", "signIn", "authorizeUrl", "clientId", "redirectUri"}}`.',
    )
    sandbox: bool = Field(
        False, description="Speak to the sandbox upstream instead of the vendor. Never in production."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    workers: int = Field(1, ge=1, le=64, description="Processes.")
    public_url: str | None = Field(None, description="Where callers reach this service; named in the OpenAPI document.")
    docs: bool = Field(True, description="Serve `/docs`.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="What is logged.")
    drain_seconds: float = Field(
        2.0, ge=0, le=60, description="After SIGTERM, how long requests are still accepted while `/readyz` fails."
    )
    retention_hours: float = Field(24.0, gt=0, le=24 * 30, description="How long an ended session stays readable.")
    poll_seconds: float = Field(1.0, gt=0, le=30, description="Between two polls of one running validation.")
    poll_lease_seconds: float = Field(
        10.0, ge=0.2, le=60, description="How long a silent process keeps its validations."
    )
    password_minutes: float = Field(3.0, gt=0, le=60, description="Time limit of a validation by password.")
    oauth_minutes: float = Field(15.0, gt=0, le=60, description="Time limit of a validation by OAuth.")

    @field_validator("encryption_keys", mode="before")
    @classmethod
    def _read_encryption_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return {name: SecretStr(key) for name, key in _pairs(value, "name:base64")}

    @field_validator("api_keys", mode="before")
    @classmethod
    def _read_api_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        keys: dict[str, tuple[str, frozenset[str]]] = {}
        for name, rest in _pairs(value, "name:sha256hex"):
            digest, _, scopes = rest.partition(":")
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ValueError("each key is stored as the SHA-256 of it, 64 hex digits; `omniconnect-bff keys new`")
            keys[name] = (digest, frozenset(filter(None, scopes.split("+"))))
        return keys

    @model_validator(mode="after")
    def _agree(self) -> Self:
        faults = [*self._store_faults(), *self._address_faults(), *self._mode_faults()]
        if faults:
            raise SettingsError(faults)
        return self

    def ring(self) -> dict[str, bytes]:
        """The encryption keys, decoded."""
        return {name: base64.b64decode(key.get_secret_value()) for name, key in self.encryption_keys.items()}

    def _store_faults(self) -> list[str]:
        faults = []
        if self.redis_url is not None:
            if urlsplit(self.redis_url.get_secret_value()).scheme not in _STORE_SCHEMES:
                faults.append(f"{PREFIX}REDIS_URL must begin with one of {', '.join(sorted(_STORE_SCHEMES))} and ://")
            if not self.encryption_keys:
                faults.append(f"{PREFIX}ENCRYPTION_KEYS is required with {PREFIX}REDIS_URL; `omniconnect-bff keys new`")
            if self.data_dir is not None:
                faults.append(f"{PREFIX}DATA_DIR is for the embedded store, {PREFIX}REDIS_URL for another: set one")
        for name, key in self.encryption_keys.items():
            try:
                size = len(base64.b64decode(key.get_secret_value(), validate=True))
            except (binascii.Error, ValueError):
                size = 0
            if size != _AES_256_BYTES:
                faults.append(f"{PREFIX}ENCRYPTION_KEYS: the key {name} is not base64 of 32 bytes")
        return faults

    def _address_faults(self) -> list[str]:
        faults = []
        for name, url in (("UPSTREAM_URL", self.upstream_url), ("CREDENTIALS_URL", self.credentials_url)):
            if url is None:
                continue
            parts = urlsplit(url)
            if not parts.hostname or parts.scheme not in {"http", "https"} or parts.query or parts.fragment:
                faults.append(f"{PREFIX}{name} must be an http(s) URL without query")
            elif parts.username or parts.password:
                faults.append(f"{PREFIX}{name} must not hold credentials")
            elif not self.sandbox and parts.scheme != "https":
                faults.append(f"{PREFIX}{name} must be https")
            elif self.sandbox and (parts.scheme == "https" or "omnimetic" in parts.hostname):
                faults.append(f"{PREFIX}{name} looks real; with {PREFIX}SANDBOX it must be the sandbox's, over http")
        if self.upstream_ca_file is not None and not self.upstream_ca_file.is_file():
            faults.append(f"{PREFIX}UPSTREAM_CA_FILE does not exist")
        return faults

    def _mode_faults(self) -> list[str]:
        faults = []
        digests = {digest for digest, _ in self.api_keys.values()}
        secret = self.secret.get_secret_value()
        if self.sandbox:
            if (self.client_id, secret) != (SANDBOX_CLIENT_ID, SANDBOX_SECRET):
                faults.append(f"{PREFIX}SANDBOX takes only the sandbox's own client id and secret, never real ones")
            return faults
        if self.client_id == SANDBOX_CLIENT_ID or secret == SANDBOX_SECRET:
            faults.append(f"the sandbox's client id and secret work only with {PREFIX}SANDBOX=true")
        if SANDBOX_API_KEY_SHA256 in digests:
            faults.append(f"the sandbox's API key works only with {PREFIX}SANDBOX=true")
        if len(secret) < _LEAST_SECRET_CHARACTERS:
            faults.append(f"{PREFIX}SECRET is too short to be one")
        return faults


def load_settings(environ: Mapping[str, str] | None = None, **given: Any) -> Settings:  # noqa: ANN401 -- any setting
    """Read the settings from the environment; `given` ones win.

    Raises:
        SettingsError: With all faults at once, none of which shows a value.
    """
    environ = os.environ if environ is None else environ
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    faults = [f"{name} is not a setting" for name in sorted(environ) if name.startswith(PREFIX) and name not in known]
    try:
        settings = Settings(**given)
    except ValidationError as error:
        raise SettingsError(faults + _in_words(error) + _further_faults(error, given)) from None
    except SettingsError as error:
        raise SettingsError(faults + error.faults) from None
    if faults:
        raise SettingsError(faults)
    return settings


def _further_faults(error: ValidationError, given: Mapping[str, Any]) -> list[str]:
    """What else is wrong, with stand-ins for the settings that are known to be."""
    stand_ins = {"client_id": "stand-in", "secret": "stand-in-stand-in"}
    bad = {str(each["loc"][0]) for each in error.errors() if each["loc"]}
    defaults = {
        name: stand_ins.get(name, Settings.model_fields[name].get_default(call_default_factory=True)) for name in bad
    }
    try:
        Settings(**{**given, **defaults})
    except SettingsError as further:
        return [each for each in further.faults if not any(f"{PREFIX}{name.upper()}" in each for name in bad)]
    except ValidationError:
        pass
    return []


def _in_words(error: ValidationError) -> list[str]:
    faults = []
    for each in error.errors(include_input=False, include_url=False, include_context=False):
        name = f"{PREFIX}{str(each['loc'][0]).upper()}" if each["loc"] else "settings"
        message = "is required" if each["type"] == "missing" else each["msg"].removeprefix("Value error, ")
        faults.append(f"{name}: {message}" if each["type"] != "missing" else f"{name} {message}")
    return faults


def _pairs(text: str, form: str) -> list[tuple[str, str]]:
    pairs = []
    for part in text.split(","):
        name, colon, rest = part.strip().partition(":")
        if not colon or not _NAME.fullmatch(name) or not rest:
            raise ValueError(f"each part must be {form}")
        pairs.append((name, rest))
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("each name may appear once")
    return pairs
