"""The hosted page: a session that begins when a person opens an address, in whichever browser that is."""

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pydantic import SecretStr

from service.clock import Clock, Millis
from service.errors import AlreadyInProgress, NotFound, ServiceError, SessionClosed, SessionExpired, StoreUnavailable
from service.link.access import SESSION_ID, new_session_token, token_hash
from service.link.flow import State, state_of
from service.link.limits import Doors
from service.link.outcome import outcome_of
from service.link.settle import Settlement
from service.stores.records import HostedRecord, SessionRecord
from service.stores.sessions import Entry, SessionStore

__all__ = ["Entered", "Guest", "HostedPages"]

_LONGEST_SECRET: Final = 128


@dataclass(frozen=True, slots=True)
class Guest:
    """Who opens a hosted page.

    Attributes:
        browser: What this browser was given when it opened the page first.
        address: Where the request comes from.
    """

    browser: SecretStr | None
    address: str


@dataclass(frozen=True, slots=True)
class Entered:
    """What a browser that may enter is given.

    Attributes:
        token: Of the session, for the page's script; None before it begins, and when it is over.
        browser: What makes this browser known the next time; None if it is known already, or does not begin.
        outcome: How it has ended, for the browser that was in it.
    """

    hosted: HostedRecord
    token: SecretStr | None = None
    browser: SecretStr | None = None
    outcome: Mapping[str, Any] | None = None


class HostedPages:
    """Lets browsers into sessions by their hosted pages: whose a session is, only the session itself knows.

    Attributes:
        settlements: By tenant.
        retention_ms: How long a page tells of a session that has ended.
    """

    def __init__(
        self, *, sessions: SessionStore, settlements: Mapping[str, Settlement], doors: Doors, clock: Clock
    ) -> None:
        self._sessions = sessions
        self._settlements = settlements
        self._doors = doors
        self._clock = clock
        self.retention_ms = sessions.retention_ms

    async def enter(self, session_id: str, secret: SecretStr | None, guest: Guest, *, begin: bool) -> Entered:
        """Begin the session of a hosted page, go on with it, or start it anew in another browser.

        Args:
            session_id: As the page's address names it.
            secret: As the page's address carries it; a browser that comes back has it no more.
            guest: Who asks.
            begin: The person wants to; else a browser that is not known only learns that it may. What opens links
                by itself, as mail scanners do, begins nothing.

        Raises:
            NotFound: No such page, or a wrong secret.
            SessionClosed, SessionExpired: It has ended, or is another browser's and past the point of starting anew.
            AlreadyInProgress: Another browser's accounts are being linked just now.
            RateLimited: Too many from this address.
        """
        await self._doors.by_invitation(guest.address)
        token = SecretStr(new_session_token(session_id))
        browser = SecretStr(secrets.token_urlsafe(32))
        hashes = _Hashes(_hash(secret), _hash(guest.browser), _hash(browser), _hash(token))
        entry, session = await self._enter(session_id, hashes, begin=begin)
        if entry == "linking" and session is not None:
            # Perhaps only the remains of a process that died.
            await self._settlements[session.tenant].recover(session)
            entry, session = await self._enter(session_id, hashes, begin=begin)
        if entry == "refused" or session is None or session.hosted is None:
            with suppress(StoreUnavailable):
                await self._doors.refused(guest.address)
            raise NotFound
        match entry:
            case "opened" | "restarted":
                return Entered(session.hosted, token, browser)
            case "resumed":
                return Entered(session.hosted, token)
            case "invited":
                return Entered(session.hosted)
            case "over":
                return Entered(session.hosted, outcome=outcome_of(session, self._clock.now()))
            case "linking" | "ended":
                raise _refusal(session, self._clock.now())

    async def _enter(self, session_id: str, hashes: "_Hashes", *, begin: bool) -> tuple[Entry, SessionRecord | None]:
        if not SESSION_ID.fullmatch(session_id):
            return "refused", None
        entry = await self._sessions.enter(
            session_id,
            tenants=self._settlements,
            secret_hash=hashes.secret,
            known_browser=hashes.known_browser,
            new_browser=hashes.new_browser,
            token_hash=hashes.token,
            begin=begin,
            now=self._clock.now(),
        )
        return entry, await self._sessions.read(session_id) if entry != "refused" else None


class _Hashes(NamedTuple):
    secret: str
    known_browser: str
    new_browser: str
    token: str


def _refusal(session: SessionRecord, now: Millis) -> ServiceError:
    match state_of(session, now):
        case State.LINKING:
            return AlreadyInProgress("Another browser's accounts are being linked")
        case State.EXPIRED:
            return SessionExpired()
        case _:
            return SessionClosed()


def _hash(credential: SecretStr | None) -> str:
    """As stored; '' for what is absent or absurdly long, which nothing stored equals."""
    value = credential.get_secret_value() if credential else ""
    return token_hash(value) if 0 < len(value) <= _LONGEST_SECRET and value.isascii() else ""
