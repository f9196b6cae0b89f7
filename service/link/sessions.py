"""The life of a link session: opened by a host, walked by a person, ended once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import SecretStr

from service.clock import Clock, Millis
from service.errors import NotFound
from service.link.access import KeyCaller, new_session_id, new_session_token, token_hash
from service.link.settle import Settlement
from service.link.token import TokenSource
from service.stores.records import SessionRecord
from service.stores.sessions import NewSession, SessionStore

__all__ = ["Opened", "Sessions"]

DEFAULT_TTL_SECONDS: Final = 30 * 60


@dataclass(frozen=True, slots=True)
class Opened:
    """A session with the token that is shown once."""

    session: SessionRecord
    token: SecretStr


class Sessions:
    """Opens, reads and ends sessions."""

    def __init__(self, *, tokens: TokenSource, sessions: SessionStore, settlement: Settlement, clock: Clock) -> None:
        self._tokens = tokens
        self._sessions = sessions
        self._settlement = settlement
        self._clock = clock

    async def open(
        self, caller: KeyCaller, *, subject: str | None, metadata: Mapping[str, str], ttl_seconds: int | None
    ) -> Opened:
        """Open a session, once the vendor has accepted this service's own credentials.

        Raises:
            UpstreamCredentialsRejected: It has not; no session is made.
            ServiceError: The vendor or Redis failed; no session is made.
        """
        upstream = await self._tokens.get()
        now = self._clock.now()
        session_id = new_session_id()
        token = new_session_token(session_id)
        ttl_ms = (ttl_seconds if ttl_seconds is not None else DEFAULT_TTL_SECONDS) * 1000
        new = NewSession(
            id=session_id,
            tenant=caller.key.tenant,
            owner=caller.key.name,
            subject=subject,
            metadata=metadata,
            created=now,
            expires=Millis(now + ttl_ms),
            token_hash=token_hash(token),
            account_id=upstream.account_id,
        )
        return Opened(await self._sessions.create(new), SecretStr(token))

    async def look(self, session: SessionRecord) -> SessionRecord:
        """A session that was just read, after making good what a process that died has left in it."""
        return await self._settlement.recover(session)

    async def replace_token(self, session: SessionRecord) -> Opened:
        """Issue a new token; the old one dies with this."""
        token = new_session_token(session.id)
        if not await self._sessions.replace_token(session.id, token_hash(token)):
            raise NotFound
        return Opened(session, SecretStr(token))

    async def close(self, session: SessionRecord) -> SessionRecord:
        """End a session at the person's wish, or leave it as it has ended.

        Raises:
            AlreadyInProgress: A link call may be under way.
        """
        return await self._settlement.close(session.id)
