"""The upstream token that all processes of a tenant share: sealed, versioned, expiring."""

from dataclasses import dataclass

from pydantic import SecretStr

from service.clock import Millis
from service.stores.connection import Store
from service.stores.keys import Keys
from service.stores.records import read_id
from service.stores.sealing import KeyRing, UnsealError

__all__ = ["TokenStore", "UpstreamToken"]


@dataclass(frozen=True, slots=True)
class UpstreamToken:
    """A bearer token for the vendor's API.

    Attributes:
        version: Names this very token, so that a newer one is never dropped in its place.
        account_id: The integrator's account id, part of the link call's path.
        refresh_at: From then on it is replaced in the background.
        expires_at: From then on it is not used.
    """

    version: str
    account_id: str
    value: SecretStr
    refresh_at: Millis
    expires_at: Millis


class TokenStore:
    """Where the shared token is kept. Every method raises `StoreUnavailable` when Redis fails."""

    def __init__(self, *, store: Store, keys: Keys, key_ring: KeyRing) -> None:
        self._store = store
        self._key = keys.token
        self._channel = keys.channel
        self._key_ring = key_ring

    async def read(self) -> UpstreamToken | None:
        """The shared token; None if there is none, or none that this process can open."""
        fields = await self._store.hash(self._key)
        try:
            return UpstreamToken(
                version=fields["version"],
                account_id=read_id(fields["account"]),
                value=SecretStr(self._key_ring.unseal(fields["sealed"], place=self._key).decode()),
                refresh_at=Millis(int(fields["refresh"])),
                expires_at=Millis(int(fields["expires"])),
            )
        except (KeyError, UnsealError, ValueError):
            return None

    async def write(self, token: UpstreamToken, *, now: Millis) -> None:
        """Share a token until it expires."""
        args: list[str | int] = [
            max(1, token.expires_at - now),
            token.version,
            token.account_id,
            self._key_ring.seal(token.value.get_secret_value().encode(), place=self._key),
            token.refresh_at,
            token.expires_at,
        ]
        await self._store.run("token_put", keys=[self._key], args=args)

    async def drop(self, token: UpstreamToken) -> None:
        """Forget this very token, and no newer one."""
        await self._store.run("token_drop", keys=[self._key], args=[token.version])
