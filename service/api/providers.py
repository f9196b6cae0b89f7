"""`/v1/providers`: which utilities there are."""

import hashlib
from typing import Annotated, Final

from fastapi import Query, Request
from starlette.responses import Response

from service.api.cached import is_known
from service.api.caller import AnyCaller, steps
from service.api.documented import OR_A_PAGE, answer_header, failures, request_header
from service.api.envelope import answer, fragment
from service.api.models import ProviderListed
from service.api.routing import RouteKind, make_router

__all__ = ["router"]

_TAG: Final = {"ETag": answer_header("Of this list, for `If-None-Match`.")}

router: Final = make_router("/v1/providers", "providers", RouteKind.API)


@router.get(
    "",
    response_model=ProviderListed,
    responses={
        200: {"headers": _TAG},
        304: {"description": "Not modified", "headers": _TAG},
        **failures(401, 403, 422, 429, 502, 503, 504),
    },
    openapi_extra={**OR_A_PAGE, **request_header("If-None-Match", "`ETag` of the list that is known already.")},
)
async def list_providers(
    request: Request, caller: AnyCaller, search: Annotated[str, Query(max_length=256)] = ""
) -> Response:
    """Step 2a: utilities by name, those that begin with the search text first. Scope of keys: `providers:read`."""
    providers = await steps(request, caller).providers.get()
    tag = hashlib.sha256(f"{providers.version}\n{search}".encode()).hexdigest()[:32]
    headers = {"ETag": f'"{tag}"', "Cache-Control": "private, max-age=300", "Vary": "Authorization"}
    if is_known(request.headers.get("if-none-match"), {tag}):
        return Response(status_code=304, headers=headers)
    found = fragment(b"[" + b",".join(providers.search(search)) + b"]")
    return answer(request.scope, {"providers": found}, message="Providers found", headers=headers)
