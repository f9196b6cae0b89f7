"""`/openapi.json`, and `/docs`: Swagger UI, served from here alone."""

from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from service.api.cached import Cached
from service.api.envelope import encode
from service.api.routing import RouteKind, make_router
from service.errors import NotFound

__all__ = ["assets", "contract", "contract_router", "router"]

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger UI styles its elements inline."""

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>omniconnect-bff API</title>
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
<link rel="icon" href="/docs/assets/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""

_START: Final = """SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null,
});
"""

contract_router: Final = make_router("", "contract", RouteKind.PAGE)
router: Final = make_router("", "documentation", RouteKind.PAGE)


@contract_router.api_route("/openapi.json", methods=["GET", "HEAD"], include_in_schema=False)
async def openapi_json(request: Request) -> Response:
    """The contract, with this deployment's address."""
    found: Cached = request.app.state.contract()
    return found.answer(request)


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """The page."""
    return Response(_PAGE, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": _POLICY})


@router.get("/docs/start.js", include_in_schema=False)
async def start() -> Response:
    """Starts the page's script; a file of its own, so that the page needs no inline script."""
    return Response(_START, media_type="text/javascript; charset=utf-8")


@router.api_route("/docs/assets/{name}", methods=["GET", "HEAD"], include_in_schema=False)
async def docs_asset(request: Request, name: str) -> Response:
    """Swagger UI's files, from the package that carries them."""
    try:
        found: Response = await request.app.state.docs_assets.get_response(name, request.scope)
    except HTTPException:
        raise NotFound from None
    return found


def contract(document: Mapping[str, Any]) -> Cached:
    """The OpenAPI document as it is served."""
    return Cached.of(encode(document), "application/json", {})


def assets() -> StaticFiles:
    """The directory that they are served from."""
    return StaticFiles(directory=str(resources.files("fastapi_swagger") / "resources"))
