"""Who is calling, and what is theirs. Unknown and somebody else's look the same, and that is decided here alone."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from service.clock import Clock
from service.errors import Forbidden, NotFound, RateLimited, SessionExpired, StoreUnavailable, Unauthenticated
from service.link.clients import Clients, PublishableClient
from service.link.flow import State, state_of
from service.link.identity import UserTokens, issuer_of
from service.link.limits import Doors
from service.link.scopes import ALL_SCOPES, Scope
from service.stores.limits import Limit, Quota
from service.stores.records import SessionRecord
from service.stores.sessions import READ_WINDOW_SECONDS, Reads, SessionStore

__all__ = [
    "SESSION_ID",
    "SESSION_TOKEN_PREFIX",
    "Access",
    "ApiKey",
    "Caller",
    "ClientCaller",
    "KeyCaller",
    "Knock",
    "Opener",
    "SessionCaller",
    "UserCaller",
    "new_session_id",
    "new_session_token",
    "token_hash",
]

SESSION_TOKEN_PREFIX: Final = "oms_"  # noqa: S105 -- the prefix alone opens nothing
_LONGEST_CREDENTIAL: Final = 512
_DOTS_OF_A_JWT: Final = 2
SESSION_ID: Final = re.compile(r"ses_[0-9a-f]{32}")
_SESSION_TOKEN: Final = re.compile(r"oms_([0-9a-f]{32})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key of a host's server: it may act for any subject of its tenant, as far as its scopes go."""

    name: str
    tenant: str
    scopes: frozenset[Scope] = ALL_SCOPES


@dataclass(frozen=True, slots=True)
class KeyCaller:
    """A host's server."""

    key: ApiKey

    @property
    def tenant(self) -> str:
        """On whose behalf."""
        return self.key.tenant


@dataclass(frozen=True, slots=True)
class SessionCaller:
    """Whoever holds a session's token: may act in that session, and nowhere else.

    Attributes:
        quota: What is left of this session's reads.
    """

    session: SessionRecord
    quota: Quota

    @property
    def tenant(self) -> str:
        """On whose behalf."""
        return self.session.tenant


@dataclass(frozen=True, slots=True)
class UserCaller:
    """A person, known by a token of the host's identity provider."""

    subject: str
    tenant: str


@dataclass(frozen=True, slots=True)
class ClientCaller:
    """A page that is registered as a publishable client."""

    client: PublishableClient

    @property
    def tenant(self) -> str:
        """On whose behalf."""
        return self.client.tenant


Caller = KeyCaller | UserCaller | ClientCaller | SessionCaller
Opener = KeyCaller | UserCaller | ClientCaller


@dataclass(frozen=True, slots=True)
class Knock:
    """What a request says of who sends it.

    Attributes:
        credential: The bearer credential, if there is one.
        client_id: A publishable client's id, if the request names one.
        origin: The page that a browser sends it from (RFC 6454).
        address: Where it comes from, as far as trusted proxies tell.
    """

    credential: str | None = field(repr=False)
    client_id: str | None
    origin: str | None
    address: str


def new_session_id() -> str:
    """128 random bits."""
    return f"ses_{secrets.token_hex(16)}"


def new_session_token(session_id: str) -> str:
    """A token that names its session, so that one read both finds and checks it, and adds 256 random bits."""
    return f"oms_{session_id.removeprefix('ses_')}_{secrets.token_urlsafe(32)}"


def token_hash(credential: str) -> str:
    """What is stored of a credential. Credentials here are random and long, so a plain SHA-256 tells nothing."""
    return hashlib.sha256(credential.encode()).hexdigest()


class Access:
    """Turns a bearer credential into a caller, and an id in a path into an object that this caller may touch.

    Attributes:
        api_keys: By SHA-256 of the key.
        users: By issuer of their tokens.
        tenants: Whose sessions there are.
    """

    def __init__(
        self,
        *,
        api_keys: Mapping[str, ApiKey],
        clients: Clients,
        users: Mapping[str, UserTokens],
        tenants: Collection[str],
        doors: Doors,
        sessions: SessionStore,
        clock: Clock,
        reads_per_minute: int,
    ) -> None:
        self._api_keys = api_keys
        self._clients = clients
        self._users = users
        self._tenants = frozenset(tenants)
        self._doors = doors
        self._sessions = sessions
        self._clock = clock
        self._reads_limit = Limit("session", reads_per_minute, READ_WINDOW_SECONDS)

    async def identify(self, knock: Knock) -> Caller:
        """Who sends this.

        Raises:
            Unauthenticated: Nobody we know.
            RateLimited: Somebody who asks too often.
            StoreUnavailable: It cannot be checked.
        """
        try:
            if knock.credential is None:
                return await self._page(knock)
            return await self._bearer(knock.credential)
        except Unauthenticated:
            # Guessing is slowed down, by address; with Redis away there is nothing to be had by it either.
            with suppress(StoreUnavailable):
                await self._doors.refused(knock.address)
            raise

    async def _page(self, knock: Knock) -> ClientCaller:
        client = self._clients.admit(knock.client_id, knock.origin)
        await self._doors.by_page(client, knock.address)
        return ClientCaller(client)

    async def _bearer(self, credential: str) -> KeyCaller | UserCaller | SessionCaller:
        if not credential.isascii():
            raise Unauthenticated
        if credential.startswith(SESSION_TOKEN_PREFIX):
            return await self.session_of(credential)
        if credential.count(".") == _DOTS_OF_A_JWT:
            users = self._users.get(issuer_of(credential))
            if users is None:
                raise Unauthenticated
            return UserCaller(await users.subject_of(credential), users.tenant)
        key = self._api_keys.get(token_hash(credential)) if len(credential) <= _LONGEST_CREDENTIAL else None
        if key is None:
            raise Unauthenticated
        return KeyCaller(key)

    async def session_of(self, token: str) -> SessionCaller:
        """The session that a token opens; this read is counted.

        Raises:
            Unauthenticated: None.
            RateLimited: It is asked for too often.
        """
        parts = _SESSION_TOKEN.fullmatch(token)
        presented = token_hash(token)
        found = (
            await self._sessions.read_counted(f"ses_{parts[1]}", reader="token", token_hash=presented)
            if parts
            else None
        )
        if found is None:
            raise Unauthenticated
        session, reads = found
        if session.tenant not in self._tenants or self._is_forgotten(session):
            raise Unauthenticated
        if not hmac.compare_digest(session.token_hash, presented):
            raise Unauthenticated
        return SessionCaller(session, self._quota(reads))

    def _quota(self, reads: Reads) -> Quota:
        limit = self._reads_limit
        quota = Quota(limit, limit.most - reads.count, reads.seconds_left)
        if quota.left < 0:
            raise RateLimited(
                policy=limit.policy, limit=limit.most, window=limit.window_seconds, retry_after=quota.reset_seconds
            )
        return quota

    async def opener(self, knock: Knock) -> Opener:
        """Whoever may open sessions.

        Raises:
            Forbidden: The holder of a session's token: one session does not open another. A key without the scope.
        """
        caller = await self.identify(knock)
        match caller:
            case SessionCaller():
                raise Forbidden
            case KeyCaller():
                self.require_scope(caller, Scope.SESSIONS_WRITE)
                await self._doors.by_key(caller.tenant, caller.key.name)
            case UserCaller():
                await self._doors.by_user(caller.tenant, caller.subject)
            case ClientCaller():
                pass
        return caller

    def require_key(self, caller: Caller, scope: Scope) -> KeyCaller:
        """A host's server.

        Raises:
            Forbidden: Known, but not a host's server, or its key lacks the scope.
        """
        if not isinstance(caller, KeyCaller):
            raise Forbidden
        self.require_scope(caller, scope)
        return caller

    def require_scope(self, caller: Caller, scope: Scope) -> None:
        """Scopes are of keys; what others may do follows from what they are.

        Raises:
            Forbidden: The key is restricted to other things.
        """
        if isinstance(caller, KeyCaller) and scope not in caller.key.scopes:
            raise Forbidden

    def own_session(self, session_id: str, caller: Caller) -> SessionRecord:
        """A session, for whoever holds its token.

        Raises:
            Forbidden: Anybody else we know: they may look at sessions, not act in them.
            NotFound: Another session's token.
        """
        if not isinstance(caller, SessionCaller):
            raise Forbidden
        if caller.session.id != session_id:
            raise NotFound
        return caller.session

    async def readable_session(self, session_id: str, caller: Caller, scope: Scope) -> SessionRecord:
        """A session, for whoever holds its token, for its subject, and for the servers of its tenant.

        Raises:
            Forbidden: A page, or a key without the scope.
            NotFound: Unknown, or somebody else's.
        """
        match caller:
            case SessionCaller():
                return self.own_session(session_id, caller)
            case KeyCaller():
                self.require_scope(caller, scope)
                return await self.tenant_session(session_id, caller.tenant, reader=f"key:{caller.key.name}")
            case UserCaller():
                reader = f"user:{token_hash(caller.subject)}"
                return await self.tenant_session(session_id, caller.tenant, reader=reader, subject=caller.subject)
            case ClientCaller():
                raise Forbidden

    def living_session(self, caller: Caller) -> SessionRecord:
        """The session of whoever holds its token, while it lives.

        Raises:
            Forbidden: Anybody else we know.
            SessionExpired: Its time is over.
        """
        if not isinstance(caller, SessionCaller):
            raise Forbidden
        if state_of(caller.session, self._clock.now()) is State.EXPIRED:
            raise SessionExpired
        return caller.session

    async def tenant_session(
        self, session_id: str, tenant: str, *, reader: str, subject: str | None = None
    ) -> SessionRecord:
        """A session of a tenant, or of one of its people; this read is counted for who reads.

        Raises:
            NotFound: Unknown, or somebody else's.
            RateLimited: It is asked for too often.
        """
        known = SESSION_ID.fullmatch(session_id)
        found = await self._sessions.read_counted(session_id, reader=f"{tenant}:{reader}") if known else None
        if found is None:
            raise NotFound
        session, reads = found
        if session.tenant != tenant or self._is_forgotten(session):
            raise NotFound
        if subject is not None and session.subject != subject:
            raise NotFound
        self._quota(reads)  # last: what is somebody else's must never answer otherwise than what does not exist
        return session

    def _is_forgotten(self, session: SessionRecord) -> bool:
        ended = session.ended if session.ended is not None else session.expires
        return ended + self._sessions.retention_ms <= self._clock.now()
