"""JSON that has only one reading: what two parsers could read differently is refused.

orjson reads the text and writes its value once more; both run in C. A member that the second text lacks was lost to a
duplicate key, and a value that nests too deeply cannot be written. No loop in Python visits values or characters. What
takes longer than twice `json.loads` takes 0.6 ms at most; row 8 of `make bench` has the figures.
"""

import json
import math
import re
from typing import Final

import orjson

from service.errors import MalformedRequest

__all__ = ["parse_json"]

_MAX_INTEGER_DIGITS: Final = 32
_MAX_LEVELS_WRITTEN: Final = 254
"""How deep a value may nest for orjson to write it, by its documentation."""

_ALL_ZERO: Final = bytes.maketrans(b"123456789", b"000000000")
_TOO_MANY_DIGITS: Final = b"0" * (_MAX_INTEGER_DIGITS + 1)


def parse_json(raw: bytes, *, max_depth: int) -> object:
    """Read JSON, and refuse the flaws that `json.loads` passes over.

    These are duplicate keys, NUL and lone surrogates in strings, numbers that are not finite, integers of more than 32
    digits, and a byte order mark.

    Args:
        raw: The text, in UTF-8.
        max_depth: How deep it may nest, 254 levels at most.

    Returns:
        What `json.loads` returns, except that an integer of more than 64 bits is the nearest float.

    Raises:
        MalformedRequest: With a constant message; neither it nor its context holds anything of `raw`. A text with
            several flaws is refused for one of them.
    """
    # Raised here, outside of any `except`: a parser's error holds the whole text, and with it somebody's password.
    flaw, value = _read(raw, max_depth)
    if flaw is not None:
        raise MalformedRequest(flaw)
    return value


def _read(raw: bytes, max_depth: int) -> tuple[str | None, object]:
    """What is wrong with the text, or else its value."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return _flaw_at(error.pos, raw, max_depth), None
    written = _written(raw, value, max_depth)
    if written is None:
        return "The request body is nested too deeply", None
    # What follows an escaped backslash is no escape.
    escapes = raw.replace(rb"\\", b"") if b"u003" in raw or b"u0000" in raw else b""
    if written != raw:
        # Each member has one colon. All others stand in strings, where orjson writes them as they are.
        colons = _count(raw, b":") + escapes.count(rb"\u003a") + escapes.count(rb"\u003A")
        if colons != _count(written, b":"):
            return "The request body has an object with duplicate keys", None
    if rb"\u0000" in escapes:
        return "The request body has a string with a NUL character", None
    if b"+" in written and _has_too_many_digits(raw):  # orjson makes floats of such integers, and writes them as 1e+32
        return "The request body has an integer with too many digits", None
    return None, value


def _written(raw: bytes, value: object, max_depth: int) -> bytes | None:
    """The value as orjson writes it; None if it nests deeper than `max_depth`."""
    half = max_depth // 2 + 1  # fewer lists and fewer objects than this cannot nest deeper
    if not _has_many(raw, b"[", half) and not _has_many(raw, b"{", half):
        return orjson.dumps(value)
    # orjson counts levels at no cost: within so many lists, it has `max_depth` levels left for the value.
    around = _MAX_LEVELS_WRITTEN - max_depth
    for _ in range(around):
        value = [value]
    try:
        written = orjson.dumps(value)
    except orjson.JSONEncodeError:
        return None
    return written[around : len(written) - around]


def _has_too_many_digits(raw: bytes) -> bool:
    if _TOO_MANY_DIGITS not in raw.translate(_ALL_ZERO):
        return False
    # They may also stand in a string or in a fraction.
    integers: list[str] = []
    json.JSONDecoder(parse_int=integers.append, parse_float=str).decode(raw.decode())
    return _TOO_MANY_DIGITS in " ".join(integers).encode().translate(_ALL_ZERO)


# To find a character takes a twentieth of the time of counting it, and long texts have few of those that are sought.

_FEW: Final = 32
_SHORT: Final = 2048
"""A text of fewer bytes is counted before a loop in Python has begun."""


def _count(text: bytes, mark: bytes) -> int:
    few = _FEW if len(text) < _SHORT else _count_few(text, mark, _FEW)
    return few if few < _FEW else text.count(mark)


def _has_many(text: bytes, mark: bytes, many: int) -> bool:
    return (text.count(mark) if len(text) < _SHORT else _count_few(text, mark, many)) >= many


def _count_few(text: bytes, mark: bytes, most: int) -> int:
    position = -1
    for found in range(most):
        position = text.find(mark, position + 1)
        if position < 0:
            return found
    return most


# Why orjson refuses a text

_NUMBER: Final = re.compile(r"-?(?P<integer>[0-9]+)(?P<fraction>\.[0-9]+)?(?P<exponent>[eE][+-]?[0-9]+)?")
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_NEITHER_BRACKET_NOR_QUOTE: Final = bytes(set(range(256)) - set(b'[]{}"'))


def _flaw_at(position: int, raw: bytes, max_depth: int) -> str:
    """The message for a text that orjson could read up to this character."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return "The request body is not valid UTF-8"
    if text.startswith("\ufeff"):
        return "The request body must not start with a byte order mark"
    if raw.count(b"[") + raw.count(b"{") > max_depth and _levels_open(text[:position].encode()) > max_depth:
        return "The request body is nested too deeply"
    return _flaw_of_what_begins_at(position, text)


def _flaw_of_what_begins_at(position: int, text: str) -> str:
    if _SURROGATE.match(text, position):
        return "The request body has a string with a lone surrogate"
    if text.startswith(("NaN", "Infinity"), position):
        return "The request body has a number that is not finite"
    number = _NUMBER.match(text, position)
    if number and not number["fraction"] and not number["exponent"] and len(number["integer"]) > _MAX_INTEGER_DIGITS:
        return "The request body has an integer with too many digits"
    if number and math.isinf(float(number[0])):
        return "The request body has a number that is not finite"
    return "The request body is not valid JSON"


def _levels_open(read: bytes) -> int:
    """How many lists and objects are open at the end of a text."""
    # Without escapes each quote begins or ends a string. Two quotes side by side are an empty string, or the border of
    # two strings that can as well be one: without both, the brackets outside of strings are the same.
    structure = read.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NEITHER_BRACKET_NOR_QUOTE)
    outside = b"".join(structure.replace(b'""', b"").split(b'"')[::2])
    return sum(map(outside.count, (b"[", b"{"))) - sum(map(outside.count, (b"]", b"}")))
