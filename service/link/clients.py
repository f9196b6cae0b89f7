"""Publishable clients: ids that may stand in a page, good only from the origins that they are registered with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from service.errors import Unauthenticated

__all__ = ["Clients", "PublishableClient"]


@dataclass(frozen=True, slots=True)
class PublishableClient:
    """One page, or app, that opens sessions by itself.

    Attributes:
        origins: Where its page may be (RFC 6454); an origin is compared whole.
    """

    id: str
    name: str
    tenant: str
    origins: frozenset[str]
    enabled: bool = True


class Clients:
    """The registered clients."""

    def __init__(self, clients: Iterable[PublishableClient]) -> None:
        self._clients: Mapping[str, PublishableClient] = {each.id: each for each in clients}

    @property
    def origins(self) -> frozenset[str]:
        """All origins from which a browser may call: CORS knows no client id when it asks beforehand."""
        return frozenset(origin for each in self._clients.values() if each.enabled for origin in each.origins)

    def admit(self, client_id: str | None, origin: str | None) -> PublishableClient:
        """The client of this id, if the page that calls is one of its own.

        Raises:
            Unauthenticated: Unknown, disabled, or called from elsewhere: the three look the same.
        """
        client = self._clients.get(client_id or "")
        if client is None or not client.enabled or origin not in client.origins:
            raise Unauthenticated
        return client
