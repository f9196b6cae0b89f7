"""What an API key may be restricted to."""

from enum import StrEnum
from typing import Final

__all__ = ["ALL_SCOPES", "Scope"]


class Scope(StrEnum):
    """One thing that a host's server may do."""

    SESSIONS_WRITE = "sessions:write"
    """Open and close sessions."""

    SESSIONS_TOKENS = "sessions:tokens"
    """Replace the tokens of sessions, and so act in them."""

    SESSIONS_READ = "sessions:read"
    PROVIDERS_READ = "providers:read"


ALL_SCOPES: Final = frozenset(Scope)
