"""End users' JSON Web Tokens: issued by the host's own identity provider, checked here in full (RFC 7519, RFC 8725)."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import jwt
import orjson
from jwt.utils import base64url_decode

from service.clock import Clock
from service.errors import ServiceError, Unauthenticated, UpstreamUnavailable
from service.link.tasks import Tasks
from service.telemetry import log

__all__ = ["IssuerRules", "KeySet", "UserTokens", "issuer_of"]

_FRESH_SECONDS: Final = 600.0
_ASK_AGAIN_SECONDS: Final = 30.0
"""A token with an unknown key id may ask for the keys again, but strangers must not set the pace."""

_FIRST_KEYS_SECONDS: Final = 2.0
"""As long as no key is known, nobody can get in, so the provider is asked again sooner."""

_WAIT_SECONDS: Final = 5.0
_MOST_KEYS: Final = 50
_MOST_WAITING: Final = 50
"""Requests whose key is unknown: more would fill the process while the provider is slow."""

_LEEWAY_SECONDS: Final = 30.0
_LONGEST_TOKEN: Final = 8192
_LONGEST_SUBJECT: Final = 255
_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_BAD: Final = (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
"""What reading a hostile token may raise: deep nesting and infinite times among it."""


@dataclass(frozen=True, slots=True)
class IssuerRules:
    """Whose tokens are taken.

    Attributes:
        algorithms: Asymmetric ones only; what the token's own header says is compared with these, never obeyed.
    """

    issuer: str
    audience: str
    algorithms: Sequence[str]


class KeySet:
    """The provider's public keys (RFC 7517): cached, refreshed in the background, kept through an outage."""

    def __init__(self, *, fetch: Callable[[], Awaitable[bytes]], tasks: Tasks, clock: Clock) -> None:
        self._fetch = fetch
        self._tasks = tasks
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = float("-inf")
        self._asked_at = float("-inf")
        self._running: asyncio.Task[None] | None = None
        self._waiting = 0

    async def find(self, key_id: str) -> jwt.PyJWK | None:
        """The key of this id; None if the provider has none.

        Raises:
            UpstreamUnavailable: The provider has never been reached.
        """
        now = self._clock.monotonic()
        known = self._keys.get(key_id)
        if known is not None:
            if now - self._fetched_at > _FRESH_SECONDS:
                self._refresh()
            return known
        running = self._refresh()
        if running is not None:
            if self._waiting >= _MOST_WAITING:
                raise UpstreamUnavailable
            self._waiting += 1
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_WAIT_SECONDS):
                        await asyncio.shield(running)
            finally:
                self._waiting -= 1
        if not self._keys:
            raise UpstreamUnavailable
        return self._keys.get(key_id)

    def _refresh(self) -> asyncio.Task[None] | None:
        if self._running is not None and not self._running.done():
            return self._running
        pause = _ASK_AGAIN_SECONDS if self._keys else _FIRST_KEYS_SECONDS
        if self._clock.monotonic() - self._asked_at < pause:
            return None
        self._asked_at = self._clock.monotonic()
        self._running = self._tasks.spawn(self._read(), name="read signing keys")
        return self._running

    async def _read(self) -> None:
        try:
            listed = orjson.loads(await self._fetch())["keys"]
            keys = {key["kid"]: parsed for key in listed[:_MOST_KEYS] if (parsed := _public_key(key)) is not None}
        except (ServiceError, ValueError, KeyError, TypeError) as error:
            log.warning("signing_keys_not_read", error=type(error).__name__)
            return
        if keys:
            self._keys = keys
            self._fetched_at = self._clock.monotonic()


def _public_key(key: object) -> jwt.PyJWK | None:
    """One key for signatures; anything else in the set, shared secrets above all, is left out."""
    if not isinstance(key, dict) or not isinstance(key.get("kid"), str):
        return None
    if key.get("kty") not in {"RSA", "EC", "OKP"} or key.get("use", "sig") != "sig" or "d" in key:
        return None
    try:
        return jwt.PyJWK.from_dict(key)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None


def issuer_of(token: str) -> str:
    """Who a token says has issued it: unchecked, and good for nothing but to choose whose rules check it.

    Raises:
        Unauthenticated: It says nothing.
    """
    # PyJWT passes over characters that are none of base64url.
    if len(token) > _LONGEST_TOKEN or not _COMPACT.fullmatch(token):
        raise Unauthenticated
    try:
        claims = orjson.loads(base64url_decode(token.split(".")[1]))
    except ValueError as error:
        raise Unauthenticated from error
    issuer = claims.get("iss") if isinstance(claims, dict) else None
    if not isinstance(issuer, str):
        raise Unauthenticated
    return issuer


class UserTokens:
    """Turns a token of one issuer into the subject that it speaks for.

    Attributes:
        tenant: Whose users these are.
    """

    def __init__(self, *, tenant: str, rules: IssuerRules, keys: KeySet) -> None:
        self.tenant = tenant
        self._rules = rules
        self._keys = keys

    async def subject_of(self, token: str) -> str:
        """The `sub` of a token, found by its `issuer_of`, that is good in every respect.

        Raises:
            Unauthenticated: It is not.
            UpstreamUnavailable: Its key cannot be had.
        """
        try:
            header = jwt.get_unverified_header(token)
        except _BAD as error:
            raise Unauthenticated from error
        key_id = header.get("kid")
        # RFC 8725, sections 3.1 and 3.10: our own list decides, and keys come from our own source alone.
        if header.get("alg") not in self._rules.algorithms or not isinstance(key_id, str) or "crit" in header:
            raise Unauthenticated
        key = await self._keys.find(key_id)
        if key is None or key.algorithm_name != header["alg"]:
            raise Unauthenticated
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[header["alg"]],
                audience=self._rules.audience,
                issuer=self._rules.issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except _BAD as error:
            raise Unauthenticated from error
        subject = claims["sub"]
        # JSON can hold halves of surrogate pairs, which are no text.
        if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_SUBJECT or _SURROGATE.search(subject):
            raise Unauthenticated
        return subject
