"""Providers' pictures: written in the vendor's list itself, or fetched from the address that it gives.

Such an address is the vendor's word and may lead anywhere, into our own network too. So it is taken apart by the very
parser that connects, its name is looked up once, and the connection goes to the address that was looked at: no second
look-up, no redirect, no proxy that would look it up again. What arrives is served from our origin, so that it is
believed to be a picture only if it begins like one.
"""

import asyncio
import base64
import binascii
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, Literal
from urllib.parse import unquote_to_bytes

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import PyreqwestError, RequestTimeoutError
from pyreqwest.http import Url
from pyreqwest.response import Response

__all__ = ["MAX_PICTURE_BYTES", "NoPicture", "Picture", "PictureClient", "decoded", "is_public"]

MAX_PICTURE_BYTES: Final = 64 * 1024

_BEGINNINGS: Final[Mapping[str, re.Pattern[bytes]]] = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "image/svg+xml": re.compile(rb".", re.DOTALL),
}
"""How files begin, by media type. An SVG begins in too many ways, and is served so that it does no harm."""

_DATA_URL: Final = re.compile(r"data:(image/(?:png|jpeg|gif|webp|svg\+xml))((?:;[a-z0-9=_-]+)*),", re.IGNORECASE)
_LONGEST_ADDRESS: Final = 2048
_HTTPS_PORT: Final = 443
_OK: Final = 200
_LOOK_UPS: Final = 4
"""Threads: a look-up cannot be cancelled, and one that hangs must not keep others of this process waiting."""

_SPECIAL_V4: Final = ip_network("192.0.0.0/24")
_GLOBAL_V6: Final = ip_network("2000::/3")
_TUNNELS_V6: Final = ip_network("2002::/16")

Address = IPv4Address | IPv6Address
Reason = Literal["address", "name", "place", "slow", "connection", "status", "type", "size"]


class NoPicture(Exception):
    """There is no picture to be had at an address.

    Attributes:
        reason: Why, for the log.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Final = reason


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of bearable size."""

    media_type: str
    body: bytes = field(repr=False)


def decoded(address: str) -> Picture | None:
    """The picture in a `data:` URL (RFC 2397)."""
    found = _DATA_URL.match(address)
    # Percent-encoding makes three characters of a byte.
    if found is None or len(address) > 3 * MAX_PICTURE_BYTES + found.end():
        return None
    body = unquote_to_bytes(address[found.end() :])
    if found[2].lower().endswith(";base64"):
        try:
            body = base64.b64decode(body, validate=True)
        except binascii.Error:
            return None
    return Picture(found[1].lower(), body) if 0 < len(body) <= MAX_PICTURE_BYTES else None


def is_public(address: Address) -> bool:
    """Whether an address belongs to a host on the internet, and hides no other address in it (6to4, NAT64)."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and address not in _SPECIAL_V4
    return address.is_global and address in _GLOBAL_V6 and address not in _TUNNELS_V6


def _look_up(host: str, port: int) -> Sequence[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class PictureClient:
    """Fetches one picture per connection, from public addresses by HTTPS.

    Args:
        user_agent: What it calls itself.
        loopback: Take pictures from this machine as well, and those by any port and plain HTTP; for the sandbox.
        ca_pem: One more certificate authority to trust.
        seconds: Bound of the whole call, the name's look-up included.
        look_up: Addresses of a name; called in a thread.
    """

    def __init__(
        self,
        *,
        user_agent: str,
        loopback: bool,
        ca_pem: bytes | None = None,
        seconds: float = 3.0,
        look_up: Callable[[str, int], Sequence[str]] = _look_up,
    ) -> None:
        self._user_agent = user_agent
        self._loopback = loopback
        self._ca_pem = ca_pem
        self._seconds = seconds
        self._look_up = look_up
        self._threads = ThreadPoolExecutor(_LOOK_UPS, thread_name_prefix="pictures")

    async def fetch(self, address: str) -> Picture:
        """The picture at an address of the vendor's list.

        Raises:
            NoPicture: There is none, or not one that may be fetched.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._seconds
        url = self._parsed(address)
        try:
            async with asyncio.timeout_at(give_up):
                client = await loop.run_in_executor(self._threads, self._aimed, url)
            async with client:
                # Cancelling would not end the exchange: it has a deadline of its own.
                request = client.get(url).timeout(timedelta(seconds=max(give_up - loop.time(), 0.001)))
                request = request.header("accept", ", ".join(_BEGINNINGS)).header("accept-encoding", "identity")
                async with request.streamed_read_buffer_limit(0).build_streamed() as response:
                    return await _read(response)
        except (TimeoutError, RequestTimeoutError) as error:
            raise NoPicture("slow") from error
        except (PyreqwestError, ValueError) as error:
            # `ValueError`: a header that is no text, or a length that is no number.
            raise NoPicture("connection") from error

    def _parsed(self, address: str) -> Url:
        if len(address) > _LONGEST_ADDRESS:
            raise NoPicture("address")
        try:
            url = Url(address)
        except ValueError as error:
            raise NoPicture("address") from error
        web = url.scheme in {"https", "http"} and url.host_str and not url.username and url.password is None
        if not web or not (self._loopback or _is_standard(url)):
            raise NoPicture("address")
        return url

    def _aimed(self, url: Url) -> Client:
        """A client that reaches the URL's host at the one address that was found good; it blocks.

        Raises:
            NoPicture: There is no such address.
        """
        host, port = url.host_str or "", url.port_or_known_default or _HTTPS_PORT
        try:
            # A literal is connected to as it stands, without a look-up.
            named = self._look_up(host, port) if url.domain is not None else [host.strip("[]")]
            found = [ip_address(each) for each in named]
        except (OSError, ValueError) as error:
            raise NoPicture("name") from error
        if not found or not self._may_reach(url, found):
            raise NoPicture("place")
        builder = (
            ClientBuilder()
            .user_agent(self._user_agent)
            .follow_redirects(enable=False)
            .referer(enable=False)
            .default_cookie_store(enable=False)
            .gzip(enable=False)
            .brotli(enable=False)
            .zstd(enable=False)
            .deflate(enable=False)
            .no_proxy()
            .pool_max_idle_per_host(0)
            .resolve(host, str(found[0]), port)
        )
        if self._ca_pem is not None:
            builder = builder.add_root_certificate_pem(self._ca_pem)
        return builder.build()

    def _may_reach(self, url: Url, addresses: Sequence[Address]) -> bool:
        if self._loopback and all(each.is_loopback for each in addresses):
            return True
        return _is_standard(url) and all(is_public(each) for each in addresses)


def _is_standard(url: Url) -> bool:
    return url.scheme == "https" and url.port_or_known_default == _HTTPS_PORT


async def _read(response: Response) -> Picture:
    if response.status != _OK:
        raise NoPicture("status")
    media_type = (response.get_header("content-type") or "").partition(";")[0].strip().lower()
    if media_type not in _BEGINNINGS or (response.get_header("content-encoding") or "identity") != "identity":
        raise NoPicture("type")
    if int(response.get_header("content-length") or 0) > MAX_PICTURE_BYTES:
        raise NoPicture("size")
    body = bytearray()
    while (chunk := await response.body_reader.read_chunk()) is not None:
        body += chunk
        if len(body) > MAX_PICTURE_BYTES:
            raise NoPicture("size")
    if not _BEGINNINGS[media_type].match(body):
        raise NoPicture("type")
    return Picture(media_type, bytes(body))
