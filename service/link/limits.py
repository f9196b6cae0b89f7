"""What may be asked how often: the figures, and who they are counted by."""

import hashlib
import hmac
from typing import Final

from pydantic import SecretStr

from service.errors import TooManyAttempts
from service.stores.limits import Limit, LimitStore

__all__ = ["Doors", "Lockout"]

DOOR_BY_ADDRESS: Final = Limit("address", 60, 60)
"""Sessions opened by pages, and hosted pages opened, per address (an IPv6 /64 is one)."""

DOOR_BY_CLIENT: Final = Limit("client", 600, 60)
DOOR_BY_SUBJECT: Final = Limit("subject", 60, 60)
DOOR_BY_KEY: Final = Limit("key", 6000, 60)
ACCOUNT_WINDOW_SECONDS: Final = 900


class Doors:
    """Counts those who want in, before anything is done for them. Raises `RateLimited`, or `StoreUnavailable`."""

    def __init__(self, *, limits: LimitStore, tenant: str, refusals_per_minute: int) -> None:
        self._limits = limits
        self._tenant = tenant
        self._refusals = Limit("refused", refusals_per_minute, 60)

    async def by_page(self, client_id: str, address: str) -> None:
        """A page opens a session, or lists providers, with its publishable id."""
        await self._limits.spend(DOOR_BY_ADDRESS, address)
        await self._limits.spend(DOOR_BY_CLIENT, client_id)

    async def by_invitation(self, address: str) -> None:
        """Somebody opens a hosted page."""
        await self._limits.spend(DOOR_BY_ADDRESS, address)

    async def by_user(self, subject: str) -> None:
        """A user opens a session with a token of the host's."""
        await self._limits.spend(DOOR_BY_SUBJECT, _short(subject))

    async def by_key(self, name: str) -> None:
        """A host's server opens a session."""
        await self._limits.spend(DOOR_BY_KEY, f"{self._tenant}:{name}")

    async def refused(self, address: str) -> None:
        """Somebody presents a credential that is not good; guessing is slowed down by address."""
        await self._limits.spend(self._refusals, address)


class Lockout:
    """Keeps utilities from locking people's accounts: attempts per account, over all sessions and processes.

    The account is known by a keyed hash alone, so that Redis cannot tell who it is; a success forgets the attempts.
    """

    def __init__(self, *, limits: LimitStore, most: int, key: bytes, tenant: str) -> None:
        self._limits = limits
        self._limit = Limit("account", most, ACCOUNT_WINDOW_SECONDS)
        self._key = key
        self._tenant = tenant

    def account(self, provider_id: str, username: SecretStr) -> str:
        """What an account is counted by. Utilities take usernames in any case, and with blanks around."""
        name = username.get_secret_value().strip().casefold()
        message = f"{self._tenant}\0{provider_id}\0{name}".encode()
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()

    async def spend(self, account: str) -> int:
        """Count an attempt before it is made; how many are left after it.

        Raises:
            TooManyAttempts: None was left.
        """
        quota = await self._limits.count(self._limit, account)
        if quota.left < 0:
            most, window = self._limit.most, self._limit.window_seconds
            raise TooManyAttempts(policy="account", limit=most, window=window, retry_after=quota.reset_seconds)
        return quota.left

    async def give_back(self, account: str) -> None:
        """Nothing was sent for an attempt that was counted."""
        await self._limits.count(self._limit, account, how_many=-1)

    async def forget(self, account: str) -> None:
        """The password was right."""
        await self._limits.forget(self._limit, account)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
