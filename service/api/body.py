"""Request bodies: bounded in size and time, declared as JSON, and JSON that has only one reading."""

import asyncio
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from service.api.routing import NO_BODY, head_of
from service.api.strict_json import parse_json
from service.errors import BodyTooLarge, MalformedRequest, UnsupportedMediaType

__all__ = ["announces_body", "json_of", "read_body"]

_MAX_BYTES: Final = 65_536
_MAX_DEPTH: Final = 32
_BODY_SECONDS: Final = 25.0
"""Who may call is decided by the head, so a body must not arrive much later. A process that stops waits longer."""

_MAX_LENGTH_DIGITS: Final = 18
"""A Content-Length of more digits is over any limit, whatever it says."""


def announces_body(scope: Scope) -> bool:
    """Whether a request has a body (RFC 9112, section 6.3)."""
    head = head_of(scope)
    return head.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in head


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int = _MAX_BYTES) -> bytes:
    """Read a request's body in full.

    Args:
        scope: The request.
        receive: Its body, part by part.
        max_bytes: The longest body, counted as it arrives, whatever length it announces.

    Raises:
        BodyTooLarge: Before the rest is read.
        MalformedRequest: It did not arrive in time.
        ClientDisconnect: The client left while it was sending.
    """
    announced = Headers(scope=scope).get("content-length", "")
    if announced.isdecimal() and (len(announced) > _MAX_LENGTH_DIGITS or int(announced) > max_bytes):
        raise BodyTooLarge
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await _read(receive, max_bytes)
    except TimeoutError:
        raise MalformedRequest("The request body did not arrive in time") from None


def json_of(scope: Scope, body: bytes) -> object:
    """The JSON value that a body holds; `NO_BODY` if it is empty.

    Raises:
        MalformedRequest: It is no JSON with a single reading.
        UnsupportedMediaType: It is not declared as JSON.
    """
    if not body:
        return NO_BODY
    _check_declaration(Headers(scope=scope))
    return parse_json(body, max_depth=_MAX_DEPTH)


async def _read(receive: Receive, max_bytes: int) -> bytes:
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise BodyTooLarge
        more = message.get("more_body", False)
    return bytes(body)


def _check_declaration(headers: Headers) -> None:
    content_type, *parameters = ",".join(headers.getlist("content-type")).lower().split(";")
    if content_type.strip() != "application/json":
        raise UnsupportedMediaType
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip().strip('"') != "utf-8":
            raise UnsupportedMediaType("The request body must be UTF-8")
    if any(encoding.strip().lower() != "identity" for encoding in headers.getlist("content-encoding")):
        raise UnsupportedMediaType("The request body must not be compressed")
