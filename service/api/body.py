"""Request bodies before anything else sees them: bounded, declared as JSON, and JSON that has only one reading."""

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Final, NoReturn

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, MalformedRequest, ServiceError, UnsupportedMediaType

__all__ = ["BodyGuard", "check_json"]

_MAX_INTEGER_DIGITS: Final = 32
_MAX_LENGTH_DIGITS: Final = 18
"""A Content-Length of more digits is over any limit, whatever it says."""


class BodyGuard:
    """Reads every request body in full before `app` runs, and answers those that it refuses.

    Args:
        app: Receives the body as one message; what comes after it (a disconnect) still reaches it.
        on_error: Renders the answer to a refused request.
        max_bytes: The longest body, counted as it arrives, whatever length it announces.
        max_depth: How deep JSON may nest.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        on_error: Callable[[Scope, ServiceError], Response],
        max_bytes: int = 65_536,
        max_depth: int = 32,
    ) -> None:
        self._app = app
        self._on_error = on_error
        self._max_bytes = max_bytes
        self._max_depth = max_depth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on with its body read and checked."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if _has_no_body(scope):
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            body = await self._read(headers, receive)
            if body:
                _check_declaration(headers)
                check_json(body, max_depth=self._max_depth)
        except _Disconnected:
            return None
        except ServiceError as error:
            response = self._on_error(scope, error)
            if isinstance(error, BodyTooLarge):
                response.headers["Connection"] = "close"  # the rest of the body is never read
            return await response(scope, receive, send)
        return await self._app(scope, _replay(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        announced = headers.get("content-length", "")
        if announced.isdecimal() and (len(announced) > _MAX_LENGTH_DIGITS or int(announced) > self._max_bytes):
            raise BodyTooLarge
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Disconnected
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                raise BodyTooLarge
            more = message.get("more_body", False)
        return bytes(body)


def _has_no_body(scope: Scope) -> bool:
    """RFC 9112, section 6.3: a request that announces no body has none. Only a read is taken at its word."""
    headers = dict(scope["headers"])
    return scope["method"] == "GET" and b"content-length" not in headers and b"transfer-encoding" not in headers


class _Disconnected(Exception):
    """The client went away while sending: there is nobody left to answer."""


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def replayed() -> Message:
        nonlocal pending
        if pending is None:
            return await receive()
        message, pending = pending, None
        return message

    return replayed


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
