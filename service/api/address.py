"""Where a request comes from: the server's word, corrected by trusted proxies alone (`ProxyHeadersMiddleware`)."""

from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address

from starlette.types import Scope

__all__ = ["client_address"]


def client_address(scope: Scope) -> str:
    """The address to count by; of IPv6 the first 64 bits, since one subscriber has all of the rest."""
    return _counted_as((scope.get("client") or ("", 0))[0])


@lru_cache(maxsize=4096)
def _counted_as(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return "unknown"
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped) if mapped else str(IPv6Network((address, 64), strict=False))
    return str(address)
