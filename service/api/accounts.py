"""`/v1/sessions/{id}/service-accounts`: what can be linked."""

from typing import Final

from fastapi import Request
from starlette.responses import Response

from service.api.caller import OwnSession, steps
from service.api.documented import failures, follow_ups, request_header
from service.api.envelope import answer
from service.api.models import ServiceAccountsFound
from service.api.routing import RouteKind, make_router

__all__ = ["router"]

router: Final = make_router("/v1/sessions/{session_id}/service-accounts", "service accounts", RouteKind.API)


@router.get(
    "",
    response_model=ServiceAccountsFound,
    response_model_exclude_unset=True,
    responses={
        200: {"links": follow_ups("create_link", session_id="$request.path.session_id")},
        **failures(401, 403, 404, 409, 410, 429, 502, 503, 504),
    },
    openapi_extra=request_header("Cache-Control", "`no-cache`: read from the vendor again."),
)
async def list_service_accounts(request: Request, session: OwnSession) -> Response:
    """Step 3: the service accounts behind all validations that succeeded; `Cache-Control: no-cache` reads again."""
    read_again = "no-cache" in request.headers.get("cache-control", "").lower()
    found = await steps(request, session).accounts.list(session, read_again=read_again)
    payload = {"utilityAccounts": found.utility_accounts, "serviceAccounts": found.service_accounts}
    return answer(request.scope, payload, message="Service accounts found")
