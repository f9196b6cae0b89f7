"""Bearer tokens: JWTs to look at, remembered by their text."""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable

__all__ = ["Tokens"]


class Tokens:
    """The tokens in force.

    A token claims one life (`exp`, 24 hours as documented) and may be granted a shorter one (an hour, as documented
    too), because that is what a client has to cope with.
    """

    def __init__(self, *, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clock = clock
        self._wall = wall
        self._key = secrets.token_bytes(32)
        self._ends: dict[str, float] = {}

    def issue(self, account_id: str, *, claimed_seconds: float, granted_seconds: float) -> str:
        """A new token; the shorter of both lives counts."""
        issued_at = self._wall()
        claims = {
            "accountId": account_id,
            "iat": int(issued_at),
            "exp": int(issued_at + claimed_seconds),
            "jti": secrets.token_hex(8),
        }
        token = self._sign(claims)
        self._ends[token] = self._clock() + min(claimed_seconds, granted_seconds)
        return token

    def valid(self, token: str) -> bool:
        """Whether the token is in force now."""
        ends = self._ends.get(token)
        return ends is not None and self._clock() < ends

    def revoke(self, token: str) -> None:
        """End one token."""
        self._ends.pop(token, None)

    def revoke_all(self) -> None:
        """End all tokens."""
        self._ends.clear()

    def _sign(self, claims: dict[str, object]) -> str:
        signed = f"{_segment({'alg': 'HS256', 'typ': 'JWT'})}.{_segment(claims)}"
        digest = hmac.new(self._key, signed.encode(), hashlib.sha256).digest()
        return f"{signed}.{_encode(digest)}"


def _segment(content: dict[str, object]) -> str:
    return _encode(json.dumps(content, separators=(",", ":")).encode())


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
