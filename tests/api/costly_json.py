"""JSON of 64 KiB that costs a parser, or what looks for flaws in it, as much as it can."""

from collections.abc import Mapping
from typing import Final

__all__ = ["COSTLY"]

_BYTES: Final = 65_536
_MEMBER: Final = b'{"a": 1, "b": '
"""With blanks, which writing the value does not repeat, and with two members, of which one could be lost."""


def _many(unit: bytes, begin: bytes = b"[", end: bytes = b"]", between: bytes = b",") -> bytes:
    times = (_BYTES - len(begin) - len(end)) // (len(unit) + len(between))
    return begin + between.join([unit] * times) + end


def _string(unit: bytes) -> bytes:
    return _many(unit, _MEMBER + b'"', b'"}', b"")


COSTLY: Final[Mapping[str, bytes]] = {
    "empty strings": _many(b'""'),
    "short strings": _many(b'"a"', b"[ "),
    "short strings, 31 levels down": _many(b'"a"', b"[ " * 31, b"]" * 31),
    "short strings with a bracket": _many(b'"["', b"[ "),
    "pairs of short strings": _many(b'["a","b"]', b"[" * 31, b"]" * 31),
    "lists of a bracket": _many(b'["["]'),
    "empty lists": _many(b"[]"),
    "lists, 31 levels": _many(b"[" * 31 + b"]" * 31),
    "lists, 5 levels": _many(b"[" * 5 + b"]" * 5),
    "empty objects": _many(b"{}"),
    "objects of one member": _many(b'{"": 0}'),
    "objects, 31 levels": _many(b'{"":' * 31 + b"0" + b"}" * 31),
    "one object, many keys": b"{" + b", ".join(b'"%04d":0' % each for each in range(6500)) + b"}",
    "digits": _many(b"1", b"[ "),
    "integers of 20 digits": _many(b"9" * 20),
    "integers of 32 digits": _many(b"9" * 32),
    "integers of 33 digits": _many(b"9" * 33),
    "short floats": _many(b"1.5"),
    "floats of 17 digits": _many(b"0.12345678901234567"),
    "floats of 300 digits": _many(b"0." + b"1234567890" * 30),
    "large floats": _many(b"1e300"),
    "a long string": _string(b"a"),
    "a long string of digits": _string(b"1"),
    "a long string of brackets": _string(b"[{"),
    "a long string of backslashes": _string(rb"\\"),
    "a long string of quotes": _string(rb"\""),
    "a long string of escapes": _string(rb"\u0041"),
    "a long string of escaped pairs": _string(rb"\ud83d\ude00"),
    "a long string of colons": _string(b":"),
    "a long string of escaped colons": _string(rb"\u003a"),
    "a long string beyond ASCII": _string("\u00e9".encode()),
    "blanks": b"[" + b" " * (_BYTES - 2) + b"]",
    "lists that never end": b"[" * _BYTES,
    "short strings, then no JSON": _many(b'"a"', end=b"!"),
    "lists, 31 levels, then no JSON": _many(b"[" * 31 + b"]" * 31, end=b"!"),
    "short strings, then a lone surrogate": _many(b'"a"', end=rb',"\ud800"]'),
    "objects, then a duplicate key": _many(b'{"": 0}', end=b',{"a":1,"a":1}]'),
    "lists, 31 levels, then 33": _many(b"[" * 31 + b"]" * 31, end=b"," + b"[" * 32 + b"]" * 32 + b"]"),
    "short strings, then a NUL": _many(b'"a"', end=rb',"\u0000"]'),
}
