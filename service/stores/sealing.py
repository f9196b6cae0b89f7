"""Values that Redis may keep but must not be able to read."""

import base64
import binascii
import secrets
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = ["KeyRing", "UnsealError"]

_NONCE_BYTES: Final = 12
"""NIST SP 800-38D, section 8.2.2: random nonces of 96 bits."""


class UnsealError(ValueError):
    """Not sealed by a key of this ring for this place, or changed since."""


class KeyRing:
    """AES-256-GCM under the first of several keys; the others still open what they sealed.

    The place a value belongs to (its key, its field) is bound into the seal: a value copied elsewhere does not open.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._first = next(iter(keys.values()))
        self._ciphers = {name: AESGCM(key) for name, key in keys.items()}
        self._active = next(iter(keys))

    def seal(self, plain: bytes, *, place: str) -> str:
        """Encrypt under the active key."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._ciphers[self._active].encrypt(nonce, plain, place.encode())
        return f"{self._active}.{base64.b64encode(sealed).decode()}"

    def unseal(self, text: str, *, place: str) -> bytes:
        """Decrypt what any key of the ring has sealed for this place.

        Raises:
            UnsealError: No such key, or the seal is broken.
        """
        name, _, encoded = text.partition(".")
        cipher = self._ciphers.get(name)
        if cipher is None:
            raise UnsealError("sealed by an unknown key")
        try:
            raw = base64.b64decode(encoded, validate=True)
            return cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], place.encode())
        except (InvalidTag, ValueError, binascii.Error) as error:
            raise UnsealError("the seal is broken") from error

    def derive(self, purpose: str) -> bytes:
        """A key of its own for something else than sealing, from the active key (HKDF, RFC 5869)."""
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=purpose.encode()).derive(self._first)
