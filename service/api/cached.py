"""Answers that stay the same for a while: encoded and hashed beforehand, told apart by `ETag`."""

import gzip
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fastapi import Request
from starlette.responses import Response

__all__ = ["Cached", "is_known"]

_SMALLEST_PACKED: Final = 1024
"""Below this, packing saves no packet."""


@dataclass(frozen=True, slots=True)
class Cached:
    """One file as it is served: nothing is computed per request."""

    plain: bytes
    packed: bytes | None
    tag: str
    headers: dict[str, str]

    @classmethod
    def of(cls, body: bytes, media_type: str, headers: Mapping[str, str], *, pack: bool = True) -> "Cached":
        """A file with the headers that it is served with."""
        packed = gzip.compress(body, mtime=0) if pack and len(body) >= _SMALLEST_PACKED else None
        told = {**headers, "Content-Type": media_type}
        if packed is not None:
            told["Vary"] = "Accept-Encoding"
        return cls(body, packed, hashlib.sha256(body).hexdigest()[:32], told)

    def answer(self, request: Request) -> Response:
        """As the caller accepts it; 304 if it has it already."""
        packs = self.packed is not None and "gzip" in request.headers.get("accept-encoding", "").lower()
        # RFC 9110, section 8.8.3.3: the packed form is another representation.
        headers = self.headers | {"ETag": f'"{self.tag}{"-gzip" if packs else ""}"'}
        if is_known(request.headers.get("if-none-match"), (self.tag, f"{self.tag}-gzip")):
            return Response(status_code=304, headers=headers)
        if packs and self.packed is not None:
            return Response(self.packed, headers=headers | {"Content-Encoding": "gzip"})
        return Response(self.plain, headers=headers)


def is_known(condition: str | None, tags: Iterable[str]) -> bool:
    """Whether an `If-None-Match` names one of these tags: weak comparison (RFC 9110, section 13.1.2)."""
    if condition is None:
        return False
    listed = {each.strip().removeprefix("W/") for each in condition.split(",")}
    return not listed.isdisjoint({"*", *(f'"{tag}"' for tag in tags)})
