"""Who is calling, and what is theirs. Unknown and somebody else's look the same, and that is decided here alone."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from service.clock import Clock
from service.errors import Forbidden, NotFound, RateLimited, Unauthenticated
from service.stores.records import SessionRecord
from service.stores.sessions import READ_WINDOW_SECONDS, SessionStore

__all__ = [
    "Access",
    "ApiKey",
    "Caller",
    "KeyCaller",
    "SessionCaller",
    "new_session_id",
    "new_session_token",
    "token_hash",
]

READS_PER_WINDOW: Final = 300
_LONGEST_CREDENTIAL: Final = 512
_SESSION_ID: Final = re.compile(r"ses_[0-9a-f]{32}")
_SESSION_TOKEN: Final = re.compile(r"oms_([0-9a-f]{32})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key of a host's server: it may act for any subject of its tenant."""

    name: str
    tenant: str
    scopes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class KeyCaller:
    """A host's server."""

    key: ApiKey


@dataclass(frozen=True, slots=True)
class SessionCaller:
    """Whoever holds a session's token: may act in that session, and nowhere else."""

    session: SessionRecord


Caller = KeyCaller | SessionCaller


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
    """

    def __init__(self, *, api_keys: Mapping[str, ApiKey], sessions: SessionStore, clock: Clock) -> None:
        self._api_keys = api_keys
        self._sessions = sessions
        self._clock = clock

    async def identify(self, credential: str | None) -> Caller:
        """Who presents this bearer credential.

        Raises:
            Unauthenticated: Nobody we know.
            RateLimited: A session that is asked for too often.
            StoreUnavailable: A session's token cannot be checked.
        """
        if credential is None or len(credential) > _LONGEST_CREDENTIAL or not credential.isascii():
            raise Unauthenticated
        if credential.startswith("oms_"):
            return SessionCaller(await self._session_of(credential))
        key = self._api_keys.get(token_hash(credential))
        if key is None:
            raise Unauthenticated
        return KeyCaller(key)

    async def _session_of(self, token: str) -> SessionRecord:
        parts = _SESSION_TOKEN.fullmatch(token)
        presented = token_hash(token)
        found = await self._sessions.read_counted(f"ses_{parts[1]}", presented) if parts else None
        if found is None:
            raise Unauthenticated
        session, reads = found
        if not hmac.compare_digest(session.token_hash, presented) or self._is_forgotten(session):
            raise Unauthenticated
        if reads.count > READS_PER_WINDOW:
            raise RateLimited(
                policy="session", limit=READS_PER_WINDOW, window=READ_WINDOW_SECONDS, retry_after=reads.seconds_left
            )
        return session

    async def require_key(self, credential: str | None) -> KeyCaller:
        """A host's server.

        Raises:
            Forbidden: Known, but not a host's server.
        """
        caller = await self.identify(credential)
        if not isinstance(caller, KeyCaller):
            raise Forbidden
        return caller

    async def own_session(self, session_id: str, credential: str | None) -> SessionRecord:
        """A session, for whoever holds its token.

        Raises:
            Forbidden: A host's server: it may look at sessions, not act in them.
            NotFound: Another session's token.
        """
        caller = await self.identify(credential)
        if isinstance(caller, KeyCaller):
            raise Forbidden
        if caller.session.id != session_id:
            raise NotFound
        return caller.session

    async def readable_session(self, session_id: str, credential: str | None) -> SessionRecord:
        """A session, for whoever holds its token, and for the servers of its tenant.

        Raises:
            NotFound: Unknown, or somebody else's.
        """
        caller = await self.identify(credential)
        if isinstance(caller, SessionCaller):
            if caller.session.id != session_id:
                raise NotFound
            return caller.session
        return await self.tenant_session(session_id, caller)

    async def tenant_session(self, session_id: str, caller: KeyCaller) -> SessionRecord:
        """A session of the caller's tenant.

        Raises:
            NotFound: Unknown, or another tenant's.
        """
        session = await self._sessions.read(session_id) if _SESSION_ID.fullmatch(session_id) else None
        if session is None or session.tenant != caller.key.tenant or self._is_forgotten(session):
            raise NotFound
        return session

    def _is_forgotten(self, session: SessionRecord) -> bool:
        ended = session.ended if session.ended is not None else session.expires
        return ended + self._sessions.retention_ms <= self._clock.now()
