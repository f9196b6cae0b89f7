"""A reading of bytes as requests by RFC 9112 alone: strict where a message ends, generous elsewhere."""

import re
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Reading", "read"]

_REQUEST_LINE: Final = re.compile(rb"[A-Za-z-]+ +[!-~\x80-\xff]+ +HTTP/(1\.[01])")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t ]*([\t -~\x80-\xff]*?)[\t ]*")
_NAME: Final = re.compile(rb"[A-Za-z0-9-]{1,64}")
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]+)(?:[\t ]*;[\t -~\x80-\xff]*)?")
_LONGEST_NUMBER: Final = 18


class _MalformedError(Exception):
    """The bytes from here on are no request."""


class _IncompleteError(Exception):
    """More bytes must come before this can be read."""


@dataclass
class Reading:
    """What the bytes say.

    Attributes:
        names: The `X-Request-Id` of each request, None where it has no usable one. A malformed one counts, too: it gets
            an answer of 400.
        incomplete: The bytes end within a request, which therefore need not be answered.
    """

    names: list[str | None] = field(default_factory=list)
    incomplete: bool = False


def read(data: bytes) -> Reading:
    """Read until the last request, the first malformed one, or one after which the connection ends."""
    reading = Reading()
    rest = data
    try:
        while rest := rest.lstrip(b"\r\n"):
            fields, version, rest = _head(rest)
            reading.names.append(_name(fields))
            rest = _after_body(fields, version, rest)
            if version == b"1.0" or any(b"close" in value.lower() for value in _values(fields, b"connection")):
                break
    except _IncompleteError:
        reading.incomplete = True
        reading.names.append(None)
    except _MalformedError:
        reading.names.append(None)
    return reading


def _head(data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes, bytes]:
    text, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        raise _IncompleteError
    request_line, *lines = text.split(b"\r\n")
    found = _REQUEST_LINE.fullmatch(request_line)
    parsed = [_FIELD.fullmatch(line) for line in lines]
    if found is None or None in parsed:
        raise _MalformedError
    fields = [(each[1].lower(), each[2]) for each in parsed if each]
    if len(_values(fields, b"host")) != 1 and found[1] == b"1.1":
        raise _MalformedError
    return fields, found[1], rest


def _after_body(fields: list[tuple[bytes, bytes]], version: bytes, rest: bytes) -> bytes:
    lengths, codings = _values(fields, b"content-length"), _values(fields, b"transfer-encoding")
    if codings:
        if lengths or [coding.lower() for coding in codings] != [b"chunked"] or version == b"1.0":
            raise _MalformedError
        return _after_chunks(rest)
    if not lengths:
        return rest
    if len(lengths) > 1 or not re.fullmatch(rb"[0-9]{1,%d}" % _LONGEST_NUMBER, lengths[0]):
        raise _MalformedError
    return _skip(rest, int(lengths[0]))


def _after_chunks(rest: bytes) -> bytes:
    while True:
        line, rest = _line(rest)
        size = _SIZE.fullmatch(line)
        if size is None or len(size[1].lstrip(b"0")) > _LONGEST_NUMBER:
            raise _MalformedError
        if int(size[1], 16) == 0:
            break
        rest = _skip(rest, int(size[1], 16))
        if rest[:2] != b"\r\n"[: len(rest)]:
            raise _MalformedError
        rest = _skip(rest, 2)
    while True:
        line, rest = _line(rest)
        if not line:
            return rest
        if not _FIELD.fullmatch(line):
            raise _MalformedError


def _line(rest: bytes) -> tuple[bytes, bytes]:
    line, end, after = rest.partition(b"\r\n")
    if not end:
        raise _IncompleteError
    return line, after


def _skip(rest: bytes, count: int) -> bytes:
    if len(rest) < count:
        raise _IncompleteError
    return rest[count:]


def _values(fields: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for each, value in fields if each == name]


def _name(fields: list[tuple[bytes, bytes]]) -> str | None:
    found = _values(fields, b"x-request-id")
    return found[0].decode() if len(found) == 1 and _NAME.fullmatch(found[0]) else None
