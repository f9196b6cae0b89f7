"""`/logos`: the providers' pictures, from here, so that a page needs no image of another party."""

import base64
import binascii
import re
from typing import Final
from urllib.parse import unquote_to_bytes

from fastapi import Request
from starlette.responses import Response

from service.api.cached import Cached
from service.api.caller import steps
from service.api.routing import make_router
from service.errors import NotFound

__all__ = ["router"]

_LARGEST_BYTES: Final = 64 * 1024
_DATA_URL: Final = re.compile(r"data:(image/(?:png|jpeg|gif|webp|svg\+xml))((?:;[a-z0-9=_-]+)*),", re.IGNORECASE)
_HEADERS: Final = {"Cache-Control": "public, max-age=86400", "Cross-Origin-Resource-Policy": "cross-origin"}
_SVG: Final = "image/svg+xml"
_SVG_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""An SVG opened by itself is a document, and must stay one without scripts."""

router: Final = make_router("", "logos")


@router.get("/logos/{provider_id}", include_in_schema=False)
async def provider_logo(request: Request, provider_id: str) -> Response:
    """A provider's picture; 404 where the list holds none itself, then frontends show initials."""
    company = await steps(request).providers.find(provider_id)
    picture = _picture(company.logo or "")
    if picture is None:
        raise NotFound
    media_type, body = picture
    policy = {"Content-Security-Policy": _SVG_POLICY} if media_type == _SVG else {}
    logo = Cached.of(body, media_type, {**_HEADERS, **policy}, pack=False)
    return logo.answer(request)


def _picture(address: str) -> tuple[str, bytes] | None:
    """Type and bytes of a `data:` URL (RFC 2397) that holds a picture of bearable size."""
    found = _DATA_URL.match(address)
    # Percent-encoding makes three characters of a byte.
    if found is None or len(address) > 3 * _LARGEST_BYTES + found.end():
        return None
    body = unquote_to_bytes(address[found.end() :])
    if found[2].lower().endswith(";base64"):
        try:
            body = base64.b64decode(body, validate=True)
        except binascii.Error:
            return None
    return (found[1].lower(), body) if 0 < len(body) <= _LARGEST_BYTES else None
