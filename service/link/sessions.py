"""The life of a link session: opened by a host, walked by a person, ended once."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from pydantic import SecretStr

from service.clock import Clock, Millis
from service.errors import Forbidden, NotFound
from service.link.access import (
    ClientCaller,
    KeyCaller,
    Opener,
    UserCaller,
    new_session_id,
    new_session_token,
    token_hash,
)
from service.link.returns import HostedPage, ReturnUrls
from service.link.settle import Settlement
from service.link.token import TokenSource
from service.stores.records import HostedRecord, SessionRecord
from service.stores.sessions import Invitation, NewSession, SessionStore
from service.telemetry import log

__all__ = ["Invited", "Opened", "Sessions"]

DEFAULT_TTL_SECONDS: Final = 30 * 60
LONGEST_TTL_SECONDS: Final = 4 * 3600


@dataclass(frozen=True, slots=True)
class Opened:
    """A session with the token that is shown once."""

    session: SessionRecord
    token: SecretStr


@dataclass(frozen=True, slots=True)
class Invited:
    """A session that the hosted page will begin, with the secret of its address, shown once."""

    session: SessionRecord
    secret: SecretStr


class Sessions:
    """Opens, reads and ends sessions."""

    def __init__(
        self,
        *,
        tokens: TokenSource,
        sessions: SessionStore,
        settlement: Settlement,
        return_urls: ReturnUrls,
        vendor_secrets: Iterable[SecretStr],
        clock: Clock,
    ) -> None:
        self._tokens = tokens
        self._sessions = sessions
        self._settlement = settlement
        self._return_urls = return_urls
        self._vendor_secrets = frozenset(token_hash(each.get_secret_value()) for each in vendor_secrets)
        self._leak_told = False
        self._clock = clock

    async def open(
        self, caller: Opener, *, subject: str | None, metadata: Mapping[str, str], ttl_seconds: int | None
    ) -> Opened:
        """Open a session, once the vendor has accepted this service's own credentials.

        Raises:
            Forbidden: Only a host's server decides for whom a session is, what it carries and how long it lives.
            UpstreamCredentialsRejected: It has not; no session is made.
            ServiceError: The vendor or Redis failed; no session is made.
        """
        new, token = await self._new(caller, subject, metadata, ttl_seconds)
        return Opened(await self._sessions.create(new), token)

    async def invite(
        self,
        caller: Opener,
        *,
        subject: str | None,
        metadata: Mapping[str, str],
        ttl_seconds: int | None,
        page: HostedPage,
    ) -> Invited:
        """Open a session whose time begins when the person opens the hosted page; nobody has its token before.

        Raises:
            Forbidden: For everybody but a host's server.
            InvalidRequest: The page would send people where it must not.
            UpstreamCredentialsRejected, ServiceError: As `open`.
        """
        if not isinstance(caller, KeyCaller):
            raise Forbidden
        self._return_urls.require(page)
        new, _ = await self._new(caller, subject, metadata, ttl_seconds)
        secret = secrets.token_urlsafe(32)
        hosted = HostedRecord(page.return_url, page.cancel_url, lifetime_ms=new.expires - new.created)
        invitation = Invitation(token_hash(secret), hosted)
        waiting = replace(new, expires=Millis(new.created + page.open_within * 1000), invitation=invitation)
        return Invited(await self._sessions.create(waiting), SecretStr(secret))

    async def _new(
        self, caller: Opener, subject: str | None, metadata: Mapping[str, str], ttl_seconds: int | None
    ) -> tuple[NewSession, SecretStr]:
        if not isinstance(caller, KeyCaller) and (subject is not None or metadata or ttl_seconds is not None):
            raise Forbidden
        owner, tenant, subject = _owner(caller, subject)
        upstream = await self._tokens.get()
        now = self._clock.now()
        session_id = new_session_id()
        token = new_session_token(session_id)
        ttl_ms = (ttl_seconds if ttl_seconds is not None else DEFAULT_TTL_SECONDS) * 1000
        new = NewSession(
            id=session_id,
            tenant=tenant,
            owner=owner,
            subject=subject,
            metadata=metadata,
            created=now,
            expires=Millis(now + ttl_ms),
            token_hash=token_hash(token),
            account_id=upstream.account_id,
        )
        return new, SecretStr(token)

    def warn_of_leak(self, presented: SecretStr) -> None:
        """Say once, loudly, that a page carries a real secret of the vendor's, whichever tenant's; never the value."""
        if not self._leak_told and token_hash(presented.get_secret_value()) in self._vendor_secrets:
            self._leak_told = True
            log.error("secret_in_page", hint="a page sends the real secret: delete it there, and have it replaced")

    async def look(self, session: SessionRecord) -> SessionRecord:
        """A session that was just read, after making good what a process that died has left in it."""
        return await self._settlement.recover(session)

    async def replace_token(self, session: SessionRecord) -> Opened:
        """Issue a new token; the old one dies with this.

        Raises:
            Forbidden: The session is the hosted page's, which alone lets browsers in.
            NotFound: It is gone.
        """
        if session.hosted is not None:
            raise Forbidden
        token = new_session_token(session.id)
        if not await self._sessions.replace_token(session.id, token_hash(token)):
            raise NotFound
        return Opened(session, SecretStr(token))

    async def close(self, session: SessionRecord) -> SessionRecord:
        """End a session at the person's wish, or leave it as it has ended.

        Raises:
            AlreadyInProgress: A link call may be under way.
        """
        return await self._settlement.close(session)


def _owner(caller: Opener, subject: str | None) -> tuple[str, str, str | None]:
    """Who a session belongs to: owner, tenant, subject."""
    match caller:
        case KeyCaller():
            return f"key:{caller.key.name}", caller.tenant, subject
        case UserCaller():
            return "user", caller.tenant, caller.subject
        case ClientCaller():
            return f"client:{caller.client.id}", caller.tenant, None
