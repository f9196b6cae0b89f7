"""HTTP without TLS, which is all that tests speak."""

import ssl
from typing import Final

__all__ = ["NO_TLS"]

NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For `verify` of httpx's clients, which load all roots of trust otherwise: 30 ms each, and each test has one."""
