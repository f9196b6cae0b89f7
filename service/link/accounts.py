"""Step 3: the service accounts behind the utility accounts that a session has signed in to."""

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

import orjson

from service.clock import LONGEST_WAIT_SECONDS, Clock
from service.errors import ServiceError, StoreUnavailable, ValidationRequired
from service.link.flow import Event, State, move, state_of
from service.link.limits import Doors
from service.link.token import TokenSource
from service.stores.keys import Keys
from service.stores.records import SessionRecord, ValidationRecord
from service.stores.sealing import KeyRing, UnsealError
from service.stores.sessions import SessionStore
from service.telemetry import log
from service.upstream.client import UpstreamClient
from service.upstream.wire import ServiceAccount, UtilityAccount

__all__ = ["Accounts", "FoundAccounts"]

MOST_UTILITY_ACCOUNTS: Final = 50
"""Utility accounts of one session that are read from the vendor."""

_View: TypeAlias = Mapping[str, Any]
"""Of a utility account: its name and its service accounts, as they are kept and told."""

_NOTHING: Final[_View] = {"name": None, "serviceAccounts": ()}
_READS_AT_ONCE: Final = 10
_DIGESTS_REMEMBERED: Final = 512


@dataclass(frozen=True, slots=True)
class FoundAccounts:
    """What a person may choose from, merged over all validations that succeeded."""

    utility_accounts: Sequence[Mapping[str, Any]]
    service_accounts: Sequence[Mapping[str, Any]]


class Accounts:
    """Reads service accounts once, right after the validation, and keeps them sealed for the session."""

    def __init__(
        self,
        *,
        client: UpstreamClient,
        tokens: TokenSource,
        sessions: SessionStore,
        doors: Doors,
        keys: Keys,
        key_ring: KeyRing,
        clock: Clock,
    ) -> None:
        self._client = client
        self._tokens = tokens
        self._sessions = sessions
        self._doors = doors
        self._keys = keys
        self._key_ring = key_ring
        self._clock = clock
        self._reading: dict[tuple[str, ...], asyncio.Future[dict[str, _View]]] = {}
        # Most reads find what is kept already, and a seal takes as long to open as all else that comes after the read.
        self._digest_of = lru_cache(maxsize=_DIGESTS_REMEMBERED)(self._opened_digest)

    async def list(self, session: SessionRecord, *, read_again: bool) -> FoundAccounts:
        """All service accounts of all validations that succeeded; once linked, only those that are known already.

        Raises:
            SessionClosed, SessionExpired: The person has left.
            ValidationRequired: None has succeeded yet.
            RateLimited: They would have to be read (again) too often.
            ServiceError: The vendor failed while they were read (again).
        """
        state = state_of(session, self._clock.now())
        if state in {State.CLOSED, State.EXPIRED}:
            move(state, Event.VALIDATE)
        succeeded = [each for each in session.validations if each.state == "succeeded"]
        if not succeeded:
            raise ValidationRequired
        wanted = _account_ids(succeeded)
        ended = state is State.LINKED
        known = self._unseal(session, wanted) if ended or not read_again else {}
        missing = [each for each in wanted if each not in known]
        if missing and not ended:
            known |= await self._read_shared(session, missing)
        return _merge(succeeded, known)

    def learned(self, session: SessionRecord) -> set[str]:
        """Ids of all service accounts that this session was told of: these it may link, and no others."""
        succeeded = [each for each in session.validations if each.state == "succeeded"]
        found = _merge(succeeded, self._unseal(session, _account_ids(succeeded)))
        return {each["id"] for each in found.service_accounts}

    async def read_sealed(self, session_id: str, account_ids: Iterable[str], give_up: float) -> dict[str, str]:
        """Read utility accounts for keeping; those that the vendor fails on, until `give_up`, are left for later."""
        sealed: dict[str, str] = {}
        wanted = list(account_ids)[:MOST_UTILITY_ACCOUNTS]
        for account_id, read in zip(wanted, await self._read_all(wanted, give_up), strict=True):
            if isinstance(read, ServiceError):
                log.warning("accounts_not_read", error=read.code)
            else:
                sealed[account_id] = self._seal(session_id, account_id, orjson.dumps(read))
        return sealed

    async def _read_shared(self, session: SessionRecord, account_ids: Sequence[str]) -> dict[str, _View]:
        """One read at a time per session, however many ask: the first one reads for all who come meanwhile.

        It ends when the first of them has waited as long as a caller may, and what it has by then is kept.
        """
        flight = (session.id, *account_ids)
        running = self._reading.get(flight)
        if running is not None:
            return await asyncio.shield(running)
        # Not in a task of its own, which costs more than all else here: a request goes on when its caller leaves.
        running = self._reading[flight] = asyncio.get_running_loop().create_future()
        try:
            read = await self._read_and_keep(session, account_ids, self._clock.monotonic() + LONGEST_WAIT_SECONDS)
        except Exception as error:
            running.set_exception(error)
            running.exception()  # nobody may be waiting for it
            raise
        else:
            running.set_result(read)
            return read
        finally:
            del self._reading[flight]
            running.cancel()  # who waits is cancelled with it; what is done stays

    async def _read_and_keep(
        self, session: SessionRecord, account_ids: Sequence[str], give_up: float
    ) -> dict[str, _View]:
        wanted = account_ids[:MOST_UTILITY_ACCOUNTS]
        if len(wanted) > 1:
            await self._doors.by_reading(session.id, len(wanted))
        read: dict[str, _View] = {}
        failed: ServiceError | None = None
        for account_id, each in zip(wanted, await self._read_all(wanted, give_up), strict=True):
            if isinstance(each, ServiceError):
                failed = each
            else:
                read[account_id] = each
        changed: dict[str, str] = {}
        for account_id, view in read.items():
            kept, plain = session.sealed_accounts.get(account_id, ""), orjson.dumps(view)
            if _digest(plain) != self._digest_of(kept, self._place(session.id, account_id)):
                changed[account_id] = self._seal(session.id, account_id, plain)
        if changed:
            with suppress(StoreUnavailable):
                await self._sessions.put_accounts(session, changed)
        if failed is not None:
            raise failed  # what was read is kept, so that the next try has less to do
        return read

    async def _read_all(self, account_ids: Sequence[str], give_up: float) -> Sequence[_View | ServiceError]:
        """Read a few at a time: one after the other, slow answers would add up."""
        if len(account_ids) == 1:
            return [await self._read_one(account_ids[0], give_up)]
        turns = asyncio.Semaphore(_READS_AT_ONCE)

        async def read(account_id: str) -> _View | ServiceError:
            async with turns:
                return await self._read_one(account_id, give_up)

        return await asyncio.gather(*(read(each) for each in account_ids))

    async def _read_one(self, account_id: str, give_up: float) -> _View | ServiceError:
        try:
            found = await self._tokens.authorized(
                lambda token, give_up: self._client.read_utility_account(token, account_id, give_up),
                of=f"account {account_id}",
                give_up=give_up,
            )
        except ServiceError as error:
            return error
        return _view(found)

    def _place(self, session_id: str, account_id: str) -> str:
        return f"{self._keys.session(session_id)}:acct:{account_id}"

    def _seal(self, session_id: str, account_id: str, plain: bytes) -> str:
        return self._key_ring.seal(plain, place=self._place(session_id, account_id))

    def _opened_digest(self, sealed: str, place: str) -> bytes | None:
        """Of what is sealed; None if it does not open."""
        try:
            return _digest(self._key_ring.unseal(sealed, place=place))
        except UnsealError:
            return None

    def _unseal(self, session: SessionRecord, account_ids: Iterable[str]) -> dict[str, _View]:
        known: dict[str, _View] = {}
        for account_id in account_ids:
            sealed = session.sealed_accounts.get(account_id)
            if sealed is not None:
                with suppress(UnsealError):
                    plain = self._key_ring.unseal(sealed, place=self._place(session.id, account_id))
                    known[account_id] = orjson.loads(plain)
        return known


def _digest(plain: bytes) -> bytes:
    return hashlib.blake2b(plain, digest_size=16).digest()


def _account_ids(validations: Iterable[ValidationRecord]) -> Sequence[str]:
    return list(dict.fromkeys(account for each in validations for account in each.accounts))


def _view(found: UtilityAccount) -> _View:
    return {"name": found.name, "serviceAccounts": [_service_view(each) for each in found.service_accounts]}


def _service_view(account: ServiceAccount) -> dict[str, Any]:
    address = account.get("address")
    view: dict[str, Any] = {
        "id": account["id"],
        "address": {
            "street": address.get("street"),
            "city": address.get("city"),
            "state": address.get("state"),
            "postalCode": address.get("postalCode"),
        }
        if address is not None
        else None,
    }
    meter_number, legal_names = account.get("meterNumber"), account.get("legalNames")
    if meter_number is not None:
        view["meterNumber"] = meter_number
    if legal_names is not None:
        view["legalNames"] = legal_names
    return view


def _merge(validations: Iterable[ValidationRecord], known: Mapping[str, _View]) -> FoundAccounts:
    utility: dict[str, Mapping[str, Any]] = {}
    service: dict[str, Mapping[str, Any]] = {}
    for validation in validations:
        for account_id in validation.accounts:
            stored = known.get(account_id, _NOTHING)
            utility[account_id] = {
                "id": account_id,
                "name": stored["name"],
                "providerId": validation.provider_id,
                "validationId": validation.id,
            }
            for account in stored["serviceAccounts"]:
                service.setdefault(account["id"], account | {"utilityAccountId": account_id})
        for account_id, service_id in validation.services:
            # The job named it, the vendor's list did not.
            service.setdefault(service_id, {"id": service_id, "utilityAccountId": account_id, "address": None})
    return FoundAccounts(list(utility.values()), list(service.values()))
