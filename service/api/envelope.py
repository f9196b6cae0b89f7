"""The vendor's OM envelope: the one place that knows which HTTP status and which OM status belong to what happened."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from starlette.responses import Response
from starlette.types import Scope

from service import errors
from service.errors import Fault, ServiceError
from service.link.outcome import CREDENTIALS_REJECTED, SERVER_ERROR
from service.stores.limits import Limit, Quota

__all__ = ["HTTP_STATUS", "answer", "encode", "failure", "fragment", "quota_headers", "request_id", "told"]

HTTP_STATUS: Final[Mapping[type[ServiceError], int]] = {
    errors.MalformedRequest: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.NotAcceptable: 406,
    errors.AlreadyInProgress: 409,
    errors.SessionClosed: 409,
    errors.ValidationRequired: 409,
    errors.SessionExpired: 410,
    errors.BodyTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.IdempotencyKeyReused: 422,
    errors.InvalidRequest: 422,
    errors.RateLimited: 429,
    errors.TooManyAttempts: 429,
    errors.InternalError: 500,
    errors.UpstreamCredentialsRejected: 502,
    errors.UpstreamError: 502,
    errors.UpstreamMalformed: 502,
    errors.Overloaded: 503,
    errors.ShuttingDown: 503,
    errors.StoreUnavailable: 503,
    errors.UpstreamBusy: 503,
    errors.UpstreamShut: 503,
    errors.UpstreamUnavailable: 503,
    errors.OutcomeUnknown: 504,
    errors.UpstreamLate: 504,
    errors.UpstreamTimeout: 504,
}

_MEDIA_TYPE: Final = "application/json"
_VENDOR_SENTENCE: Final = {Fault.CREDENTIALS: CREDENTIALS_REJECTED, Fault.SERVER: SERVER_ERROR}


def fragment(encoded: bytes) -> orjson.Fragment:
    """JSON that is encoded already, to be put into an envelope as it is."""
    return orjson.Fragment(encoded)


def encode(body: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """JSON as all answers have it."""
    return orjson.dumps(body)


def request_id(scope: Scope) -> str:
    """The id that names this request in its answer and in the log."""
    found: str = scope["state"]["request_id"]
    return found


def answer(
    scope: Scope,
    payload: Mapping[str, Any],
    *,
    message: str,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A success: the payload stands beside the envelope's own fields."""
    body = {"status": "OM200", "message": message, "requestId": request_id(scope), **payload}
    return Response(encode(body), status, headers, _MEDIA_TYPE)


def told(
    scope: Scope,
    error: ServiceError,
    payload: Mapping[str, Any],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A request that worked, and tells of a step that did not."""
    body = {**_fields(scope, error), **payload}
    return Response(encode(body), status, headers, _MEDIA_TYPE)


def failure(scope: Scope, error: ServiceError) -> Response:
    """A request that did not work; its code gets into the log, too."""
    scope["state"]["code"] = error.code
    body = _fields(scope, error)
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    match error:
        case errors.InvalidRequest():
            body["errors"] = [{"field": each.field, "message": each.message} for each in error.errors]
        case errors.OutcomeUnknown():
            body["attempts"] = error.attempts
        case errors.MethodNotAllowed():
            headers["Allow"] = ", ".join(error.allowed)
        case errors.Unauthenticated():
            headers["WWW-Authenticate"] = "Bearer"
        case errors.AlreadyInProgress(location=str(location)):
            headers["Location"] = location
        case errors.RateLimited() | errors.TooManyAttempts():
            headers |= quota_headers(Quota(Limit(error.policy, error.limit, error.window), 0, error.retry_after or 0))
        case _:
            pass
    return Response(encode(body), HTTP_STATUS[type(error)], headers, _MEDIA_TYPE)


def quota_headers(quota: Quota) -> dict[str, str]:
    """draft-ietf-httpapi-ratelimit-headers."""
    limit = quota.limit
    return {
        "RateLimit-Policy": f'"{limit.policy}";q={limit.most};w={limit.window_seconds}',
        "RateLimit": f'"{limit.policy}";r={max(0, quota.left)};t={quota.reset_seconds}',
    }


def _fields(scope: Scope, error: ServiceError) -> dict[str, Any]:
    return {
        "status": error.fault.value,
        "message": _VENDOR_SENTENCE.get(error.fault, error.message),
        "requestId": request_id(scope),
        "code": error.code,
        "retryable": error.retryable,
        "displayMessage": error.display_message,
    }
