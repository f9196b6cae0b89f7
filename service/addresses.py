"""What settings take for an address; the exceptions of the standard library quote what they were given."""

import re
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

__all__ = ["LOOPBACK", "WEB_SCHEMES", "is_origin", "is_public_url", "is_url", "parts_of", "store_url_fault"]

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1"})
WEB_SCHEMES: Final = frozenset({"http", "https"})
_STORE_SCHEMES: Final = frozenset(
    {"redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel"}
)
_STORE_OPTIONS: Final = frozenset(
    {"client_name", "db", "health_check_interval", "protocol", "ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs"}
    | {"ssl_certfile", "ssl_check_hostname", "ssl_keyfile"}
)
"""What redis-py takes in a URL and this service can stand; with any other it would fail at the first command."""

_HOST: Final = re.compile(r"[a-z0-9.-]+")


def parts_of(url: str) -> SplitResult | None:
    """A URL in parts; None if it is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def is_url(url: str, schemes: frozenset[str]) -> bool:
    """Whether it is a URL of one of these schemes, with a host."""
    parts = parts_of(url)
    return parts is not None and bool(parts.hostname) and parts.scheme in schemes


def is_origin(text: str) -> bool:
    """RFC 6454, section 6.2, as browsers send it: no path, no user, lower case."""
    try:
        parts = urlsplit(text)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return False
    fits = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
    return (
        fits
        and _HOST.fullmatch(parts.hostname or "") is not None
        and text == f"{parts.scheme}://{parts.hostname}{port}"
    )


def is_public_url(url: str, *, sandbox: bool) -> bool:
    """Whether callers can be sent there: https, or http to this machine or in the sandbox; no user, query, fragment."""
    parts = parts_of(url)
    if parts is None or not is_url(url, WEB_SCHEMES) or parts.query or parts.fragment or parts.username is not None:
        return False
    return sandbox or parts.scheme == "https" or parts.hostname in LOOPBACK


def store_url_fault(url: str) -> str | None:
    """What is wrong with the URL of Redis, as the rest of a sentence that begins with its setting; None if nothing."""
    scheme, separator, rest = url.partition("://")
    if scheme not in _STORE_SCHEMES or not separator:
        return f"must begin with one of {', '.join(sorted(_STORE_SCHEMES))} and ://"
    hosts = [url]
    if scheme.endswith("+sentinel"):
        login, _, places = rest.partition("/")[0].rpartition("@")
        hosts = [f"redis://{login}@{each}" for each in places.split(",")]
        if not rest.partition("/")[2]:
            return "must name the master after the sentinels: redis+sentinel://host:port,host:port/master"
    parts = [parts_of(each) for each in hosts]
    if any(each is None for each in parts):
        return "is not a URL"
    if scheme == "unix":
        complete = all(each and each.path for each in parts)
    else:
        complete = all(each and each.hostname for each in parts)
    if not complete:
        return "names no server"
    unknown = {name for each in parts if each for name, _ in parse_qsl(each.query)} - _STORE_OPTIONS
    return f"may have no options but {', '.join(sorted(_STORE_OPTIONS))}" if unknown else None
