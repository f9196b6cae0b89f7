"""What may be asked how often: the figures, and who they are counted by."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from typing import Final

from pydantic import SecretStr

from service.errors import TooManyAttempts
from service.link.clients import PublishableClient
from service.link.usernames import fold_username
from service.stores.limits import Limit, LimitStore

__all__ = ["Doors", "Lockout"]

DOOR_BY_ADDRESS: Final = Limit("address", 60, 60)
"""Sessions opened by pages, per address (an IPv6 /64 is one)."""

DOOR_BY_CLIENT: Final = Limit("client", 600, 60)
DOOR_BY_SUBJECT: Final = Limit("subject", 60, 60)
DOOR_BY_KEY: Final = Limit("key", 6000, 60)
DOOR_OF_PAGES: Final = Limit("hosted", 60, 60)
"""Hosted pages opened, per address."""

SIGN_INS_BY_ADDRESS: Final = Limit("address-validations", 60, 60)
SIGN_INS_BY_CLIENT: Final = Limit("client-validations", 300, 60)
"""Validations begun in the sessions that a page opened by itself: each costs the vendor a job and its polls."""

READINGS_BY_SESSION: Final = Limit("vendor-reads", 300, 60)
"""Utility accounts of a session with several that are read from the vendor; one costs no more than its request."""

ATTEMPTS_WINDOW_SECONDS: Final = 900


class Doors:
    """Counts what is asked for, before anything is done for it. Raises `RateLimited`, or `StoreUnavailable`.

    Each tenant has its share of everything that is counted once the tenant is known. The names of the first one's
    counters do not tell it: they are older than the others'.
    """

    def __init__(self, *, limits: LimitStore, first_tenant: str, refusals_per_minute: int) -> None:
        self._limits = limits
        self._first = first_tenant
        self._refusals = Limit("refused", refusals_per_minute, 60)

    async def by_page(self, client: PublishableClient, address: str) -> None:
        """A page opens a session, or lists providers, with its publishable id."""
        await self._limits.spend(DOOR_BY_ADDRESS, self._within(client.tenant, address))
        await self._limits.spend(DOOR_BY_CLIENT, client.id)

    async def by_invitation(self, address: str) -> None:
        """Somebody opens a hosted page."""
        await self._limits.spend(DOOR_OF_PAGES, address)

    async def by_user(self, tenant: str, subject: str) -> None:
        """A user opens a session with a token of the host's."""
        await self._limits.spend(DOOR_BY_SUBJECT, self._within(tenant, _short(subject)))

    async def by_key(self, tenant: str, name: str) -> None:
        """A host's server opens a session."""
        await self._limits.spend(DOOR_BY_KEY, f"{tenant}:{name}")

    async def by_sign_in(self, tenant: str, client_id: str, address: str) -> None:
        """Somebody signs in at a utility, in a session that a page opened by itself."""
        await self._limits.spend(SIGN_INS_BY_ADDRESS, self._within(tenant, address))
        await self._limits.spend(SIGN_INS_BY_CLIENT, client_id)

    async def by_reading(self, session_id: str, accounts: int) -> None:
        """One request of a session has several utility accounts read from the vendor."""
        await self._limits.spend(READINGS_BY_SESSION, session_id, how_many=accounts)

    async def refused(self, address: str) -> None:
        """Somebody presents a credential that is not good; guessing is slowed down by address."""
        await self._limits.spend(self._refusals, address)

    def _within(self, tenant: str, who: str) -> str:
        return who if tenant == self._first else f"{tenant}:{who}"


class Lockout:
    """Keeps utilities from locking people's accounts, and stolen passwords from being tried one after the other.

    Attempts are counted per account, and where nobody vouches for who tries, per address, over all sessions and
    processes. Both are known by keyed hashes alone, so that Redis cannot tell who it is. A right password clears its
    account's attempts up to its own, and does not count for its address.

    Each attempt has the name of its validation. Repeating a call for the same attempt changes nothing, so a caller that
    got no answer may try again.
    """

    def __init__(self, *, limits: LimitStore, by_account: int, by_address: int, key: bytes, tenant: str) -> None:
        self._limits = limits
        self._by_account = Limit("account", by_account, ATTEMPTS_WINDOW_SECONDS, restarts=True)
        self._by_address = Limit("address-attempts", by_address, ATTEMPTS_WINDOW_SECONDS)
        self._key = key
        self._tenant = tenant

    def counted_by(self, provider_id: str, username: SecretStr, *, address: str | None) -> str:
        """What an attempt is counted by. Utilities take usernames in any case, and with blanks around.

        What else they, or the browser that types for the vendor, pass over must not make a new account either:
        characters that nobody sees, accents, and other forms of a letter. All names without a visible character are
        one account.

        Args:
            provider_id: The utility.
            username: As it was typed.
            address: Where it comes from; None if a host's server or identity provider vouches for the person.
        """
        account = self._hash(provider_id, fold_username(username.get_secret_value()))
        return account if address is None else f"{account} {self._hash('address', address)}"

    def _hash(self, *parts: str) -> str:
        return hmac.new(self._key, "\0".join([self._tenant, *parts]).encode(), hashlib.sha256).hexdigest()

    async def spend(self, counted_by: str, attempt: str) -> int:
        """Count an attempt before it is made; how many its account has left after it.

        Raises:
            TooManyAttempts: None was left; then nothing is counted.
            StoreUnavailable: It may be counted; to give it back is safe in any case.
        """
        account, *addresses = self._counters(counted_by)
        for each in addresses:
            await self._spend(each, attempt)
        try:
            return await self._spend(account, attempt)
        except TooManyAttempts:
            await self._give_back(addresses, attempt)
            raise

    async def give_back(self, counted_by: str, attempt: str) -> None:
        """Nothing was sent for an attempt that was counted."""
        await self._give_back(self._counters(counted_by), attempt)

    async def forget(self, counted_by: str, attempt: str) -> None:
        """The password was right."""
        account, *addresses = self._counters(counted_by)
        await self._limits.forget_attempts(*account, attempt)
        await self._give_back(addresses, attempt)

    def _counters(self, counted_by: str) -> Sequence[tuple[Limit, str]]:
        """That of the account, and of the address if it counts by one."""
        account, *addresses = counted_by.split()
        return [(self._by_account, account), *((self._by_address, each) for each in addresses)]

    async def _spend(self, counter: tuple[Limit, str], attempt: str) -> int:
        quota = await self._limits.count_attempt(*counter, attempt)
        if quota.left >= 0:
            return quota.left
        limit = quota.limit
        raise TooManyAttempts(
            policy=limit.policy, limit=limit.most, window=limit.window_seconds, retry_after=quota.reset_seconds
        )

    async def _give_back(self, counters: Iterable[tuple[Limit, str]], attempt: str) -> None:
        for each in counters:
            await self._limits.give_back_attempt(*each, attempt)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
