"""Request bodies: bounded in size and time, declared as JSON, and JSON that has only one reading."""

import asyncio
import json
import math
import re
from collections.abc import Iterator
from typing import Final, NoReturn

import orjson
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from service.api.routing import NO_BODY
from service.errors import BodyTooLarge, MalformedRequest, UnsupportedMediaType

__all__ = ["announces_body", "json_of", "read_body"]

_MAX_BYTES: Final = 65_536
_MAX_DEPTH: Final = 32
_BODY_SECONDS: Final = 30.0
"""Who may call is decided by the head, so a body must not arrive much later."""

_MAX_INTEGER_DIGITS: Final = 32
_MAX_LENGTH_DIGITS: Final = 18
"""A Content-Length of more digits is over any limit, whatever it says."""


def announces_body(scope: Scope) -> bool:
    """Whether a request has a body (RFC 9112, section 6.3)."""
    headers = dict(scope["headers"])
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


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


# JSON


def parse_json(raw: bytes, *, max_depth: int) -> object:
    check_json(raw, max_depth=max_depth)
    return orjson.loads(raw)


def check_json(raw: bytes, *, max_depth: int) -> None:
    """Refuse what is no JSON, and what two parsers could read differently.

    Raises:
        MalformedRequest: With a constant message; neither it nor its context holds anything of `raw`.
    """
    # Raised out here, in no `except`: a parser's error holds the whole text, and with it somebody's password.
    if (flaw := _flaw(raw, max_depth)) is not None:
        raise MalformedRequest(flaw)


def _flaw(raw: bytes, max_depth: int) -> str | None:
    try:
        text = raw.decode()
        if text.startswith("\ufeff"):
            return "The request body must not start with a byte order mark"
        if _nests_deeper(text, max_depth):
            return "The request body is nested too deeply"
        value = _DECODER.decode(text)
        if "\\u" in text:  # the decoder refuses these characters when they stand there unescaped
            _refuse_bad_characters(value)
    except UnicodeDecodeError:
        return "The request body is not valid UTF-8"
    except _Refused as refused:
        return str(refused)
    except ValueError:
        return "The request body is not valid JSON"
    return None


class _Refused(Exception):
    """Valid or nearly valid JSON that is refused, with a message that is safe to answer."""


_STRING: Final = re.compile(r'"(?:[^"\\]|\\.?)*+"?', re.DOTALL)
"""A string, or all that follows the start of one that never ends: each character is looked at once."""


def _nests_deeper(text: str, max_depth: int) -> bool:
    if text.count("{") + text.count("[") <= max_depth:
        return False
    depth = 0
    for character in _STRING.sub("", text):
        if character in "{[":
            depth += 1
            if depth > max_depth:
                return True
        elif character in "}]":
            depth -= 1
    return False


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _Refused("The request body has an object with duplicate keys")
    return value


def _constant(_: str) -> NoReturn:
    raise _Refused("The request body has a number that is not finite")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _Refused("The request body has a number that is not finite")
    return value


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > _MAX_INTEGER_DIGITS:
        raise _Refused("The request body has an integer with too many digits")
    return int(text)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_integer
)


def _refuse_bad_characters(value: object) -> None:
    for text in _texts(value):
        if "\0" in text:
            raise _Refused("The request body has a string with a NUL character")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise _Refused("The request body has a string with a lone surrogate")


def _texts(value: object) -> Iterator[str]:
    """All strings in a JSON value, keys included."""
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _texts(item)
        case dict():
            for key, item in value.items():
                yield key
                yield from _texts(item)
