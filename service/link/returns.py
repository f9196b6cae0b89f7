"""Where the hosted page may send people: nowhere but to addresses that the deployment names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from service.errors import FieldError, InvalidRequest

__all__ = ["HostedPage", "ReturnUrls", "is_plain"]

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!$&-;=?-Z_a-z~%]*")
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1"})


@dataclass(frozen=True, slots=True)
class HostedPage:
    """What a host wants of the hosted page.

    Attributes:
        return_url: Where the person goes afterwards.
        cancel_url: Where the person goes after closing instead; by default the same.
        open_within: Seconds in which the page must be opened first.
    """

    return_url: str
    cancel_url: str | None
    open_within: int


def is_plain(url: str) -> bool:
    """Whether browsers and `urlsplit` read it alike (RFC 3986): no blank, quote, backslash or control character.

    Nor a fragment, nor brackets.
    """
    return _URL.fullmatch(url) is not None


class ReturnUrls:
    """The addresses that people may be sent to: exactly those, but for the query (RFC 9700, section 4.1.3)."""

    def __init__(self, allowed: Iterable[str], *, loopback: bool) -> None:
        self._allowed = frozenset(_place(url) for url in allowed)
        self._loopback = loopback

    def require(self, page: HostedPage) -> None:
        """Check where a page would send people.

        Raises:
            InvalidRequest: Elsewhere.
        """
        wanted = {"hosted.returnUrl": page.return_url, "hosted.cancelUrl": page.cancel_url}
        wrong = [name for name, url in wanted.items() if url is not None and not self._admits(url)]
        if wrong:
            raise InvalidRequest(
                [FieldError(name, "Not among the addresses that the settings allow") for name in wrong]
            )

    def _admits(self, url: str) -> bool:
        if not is_plain(url):
            return False
        return _place(url) in self._allowed or (self._loopback and _is_loopback(url))


def _place(url: str) -> tuple[str, str, str]:
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return scheme, parts.netloc.lower(), parts.path or ("/" if scheme in {"https", "http"} else "")


def _is_loopback(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in _LOOPBACK and parts.username is None
