"""Reading calls strictly: what the vendor might forgive fails here, so that a wrong client shows."""

import json
import re
from dataclasses import dataclass
from typing import Final, NoReturn

from starlette.datastructures import Headers

from service.sandbox.answers import Refusal

__all__ = ["Request", "bearer", "json_array", "json_object", "no_body", "no_query", "single_header"]

JSON_CONTENT_TYPE: Final = re.compile(r"application/json(\s*;\s*charset=\"?utf-8\"?)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Request:
    """A call with its body, as it came; `origin` is the address that the caller used for us."""

    headers: Headers
    query: bytes
    body: bytes
    origin: str


def single_header(request: Request, name: str) -> str | None:
    """The value of a header that may come once.

    Raises:
        Refusal: It came twice.
    """
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise Refusal(400, f"header {name} came {len(values)} times")
    return values[0] if values else None


def bearer(request: Request) -> str:
    """The token of the call.

    Raises:
        Refusal: There is none, or not in the one accepted form.
    """
    scheme, _, token = (single_header(request, "authorization") or "").partition(" ")
    if scheme != "Bearer" or not token or token != token.strip():
        raise Refusal(401, "a header 'Authorization: Bearer <token>' is required")
    return token


def no_body(request: Request) -> None:
    """Raise a Refusal when the call carries something that it should not."""
    if request.body:
        raise Refusal(400, "this call takes no body")


def no_query(request: Request) -> None:
    """Raise a Refusal when the address carries something that it should not."""
    if request.query:
        raise Refusal(400, "this call takes no query")


def json_object(request: Request, *names: str) -> dict[str, str]:
    """A body with exactly these names, each a string that is not empty.

    Raises:
        Refusal: Anything else.
    """
    content = _json(request)
    if not isinstance(content, dict) or set(content) != set(names):
        raise Refusal(400, f"the body must be an object of exactly: {', '.join(names)}")
    for name, value in content.items():
        if not isinstance(value, str) or not value:
            raise Refusal(400, f"{name} must be a string and not empty")
    return content


def json_array(request: Request) -> list[str]:
    """A bare array of one or more different strings.

    Raises:
        Refusal: Anything else.
    """
    content = _json(request)
    if not isinstance(content, list) or not content or not all(isinstance(item, str) and item for item in content):
        raise Refusal(400, "the body must be a bare array of one or more strings")
    if len(set(content)) != len(content):
        raise Refusal(400, "the strings of the array must differ")
    return content


def _json(request: Request) -> object:
    content_type = single_header(request, "content-type") or ""
    if JSON_CONTENT_TYPE.fullmatch(content_type.strip()) is None:
        raise Refusal(400, "the content type must be application/json")
    try:
        content = json.loads(
            request.body.decode("utf-8"), object_pairs_hook=_unique_names, parse_constant=_refuse_constant
        )
        json.dumps(content, ensure_ascii=False).encode()  # lone surrogates do not encode
    except (ValueError, RecursionError) as exc:
        raise Refusal(400, "the body is not valid JSON") from exc
    return content


def _unique_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name came twice")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
