"""What settings take for an address; the exceptions of the standard library quote what they were given."""

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

__all__ = ["LOOPBACK", "WEB_SCHEMES", "is_origin", "is_url", "parts_of"]

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1"})
WEB_SCHEMES: Final = frozenset({"http", "https"})
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
