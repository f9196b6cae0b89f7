"""`/logos`: the providers' pictures, from here, so that a page needs no image of another party."""

from typing import Annotated, Final

from fastapi import Query, Request
from starlette.responses import Response

from service.api.cached import Cached
from service.api.caller import steps_named
from service.api.routing import RouteKind, make_router

__all__ = ["router"]

_HEADERS: Final = {"Cache-Control": "public, max-age=86400", "Cross-Origin-Resource-Policy": "cross-origin"}
_SVG: Final = "image/svg+xml"
_SVG_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""An SVG opened by itself is a document, and must stay one without scripts."""

router: Final = make_router("", "logos", RouteKind.PAGE)


@router.api_route("/logos/{provider_id}", methods=["GET", "HEAD"], include_in_schema=False)
async def provider_logo(
    request: Request, provider_id: str, tenant: Annotated[str | None, Query(max_length=64)] = None
) -> Response:
    """A provider's picture; 404 where there is none to be had, then frontends show initials."""
    picture = await steps_named(request, tenant).logos.find(provider_id)
    policy = {"Content-Security-Policy": _SVG_POLICY} if picture.media_type == _SVG else {}
    return Cached.of(picture.body, picture.media_type, {**_HEADERS, **policy}, pack=False).answer(request)
