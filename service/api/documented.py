"""What the OpenAPI document says of failures, and of headers that no handler takes as an argument."""

from typing import Any, Final

from service.api.envelope import HTTP_STATUS
from service.api.models import Failure

__all__ = ["OR_A_PAGE", "answer_header", "failures", "follow_ups", "request_header"]

OR_A_PAGE: Final[dict[str, Any]] = {"security": [{"bearer": []}, {}]}
"""For `openapi_extra`: a page that names its publishable client has no credential."""

_CODES: Final[dict[int, list[str]]] = {
    status: sorted({error.code for error, its in HTTP_STATUS.items() if its == status})
    for status in HTTP_STATUS.values()
}


def failures(*statuses: int, body: bool = False) -> dict[int | str, dict[str, Any]]:
    """Document failures by status; `body` adds those of every request that carries one."""
    listed = {*statuses, 400, 406, 422, 500, *((413, 415) if body else ())}
    return {status: _failure(status) for status in sorted(listed)}


def request_header(name: str, description: str) -> dict[str, Any]:
    """Document an optional request header, as `openapi_extra`."""
    header = {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "description": description}
    return {"parameters": [header]}


def answer_header(description: str, kind: str = "string") -> dict[str, Any]:
    """Document a header of an answer."""
    return {"schema": {"type": kind}, "description": description}


def follow_ups(*operations: str, **parameters: str) -> dict[str, Any]:
    """Document what can be called with what an answer holds: OpenAPI links, by operation id."""
    return {operation: {"operationId": operation, "parameters": parameters} for operation in operations}


_RETRY_AFTER: Final = {"Retry-After": answer_header("Seconds to wait before trying again.", "integer")}
_LIMITS: Final = {
    "RateLimit-Policy": answer_header('The limit that was reached: `"name";q=requests;w=seconds`.'),
    "RateLimit": answer_header('What is left of it: `"name";r=requests;t=seconds until there is more`.'),
}
_HEADERS: Final[dict[int, dict[str, Any]]] = {
    401: {"WWW-Authenticate": answer_header("`Bearer`")},
    409: {**_RETRY_AFTER, "Location": answer_header("`already_in_progress`: the validation that is.")},
    429: {**_RETRY_AFTER, **_LIMITS},
    502: _RETRY_AFTER,
    503: _RETRY_AFTER,
}


def _failure(status: int) -> dict[str, Any]:
    described = {"model": Failure, "description": " or ".join(f"`{code}`" for code in _CODES[status])}
    return described | ({"headers": _HEADERS[status]} if status in _HEADERS else {})
