"""Strict parsing gives what plain parsing gives, finds what was lost in it, and leaves the work to C."""

import gc
import json
import sys
from itertools import chain
from types import FrameType
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.strict_json import parse_json
from service.errors import MalformedRequest
from tests.api.costly_json import COSTLY
from tests.api.test_body import GOOD, MESSAGES, TEXTS, VALUES

MOST_LINES: Final = 1000
"""For 64 KiB of anything; the shortest lists, strings or numbers there are 30,000 of them."""


def refusal(raw: bytes, max_depth: int = 32) -> str | None:
    try:
        parse_json(raw, max_depth=max_depth)
    except MalformedRequest as refused:
        return str(refused)
    return None


# The value


def typed(value: object) -> object:
    """Told apart also where Python finds them equal: 1, 1.0 and True, or 0.0 and -0.0."""
    match value:
        case list():
            return [typed(each) for each in value]
        case dict():
            return {key: typed(each) for key, each in value.items()}
        case int() if not -(2**63) <= value < 2**64:
            return repr(float(value))
    return repr(value)


@pytest.mark.parametrize("raw", GOOD, ids=lambda value: repr(value)[:40])
def test_the_value_is_that_of_plain_parsing(raw: bytes) -> None:
    assert typed(parse_json(raw, max_depth=32)) == typed(json.loads(raw))


@given(value=VALUES, ensure_ascii=st.booleans(), separators=st.sampled_from([(",", ":"), (" , ", "\t:\n")]))
def test_the_value_of_whatever_json_can_say_is_that_of_plain_parsing(
    value: object, *, ensure_ascii: bool, separators: tuple[str, str]
) -> None:
    raw = json.dumps(value, ensure_ascii=ensure_ascii, separators=separators).encode()
    assert typed(parse_json(raw, max_depth=32)) == typed(json.loads(raw)) == typed(value)


@pytest.mark.parametrize("integer", [2**63 - 1, -(2**63), 2**64 - 1])
def test_integers_of_64_bits_are_exact(integer: int) -> None:
    assert parse_json(b'{"a": %d}' % integer, max_depth=32) == {"a": integer}


@pytest.mark.parametrize("integer", [2**64, -(2**63) - 1, 10**32 - 1, 1 - 10**32])
def test_longer_ones_are_the_nearest_float(integer: int) -> None:
    value = parse_json(b"%d" % integer, max_depth=32)
    assert isinstance(value, float)
    assert value == float(integer)


# Keys


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":1}',
        rb'{"a":1,"a":"\u003a"}',
        rb'{"a":"\u003A\u003a","a": "b"}',
        rb'{"a":":","a":"\\u003a"}',
        b'{":":":",":":":"}',
        b'{"":0,"":{"":{"":0}}}',
        b'{"a":{"b":1,"c":2},"a":{}}',
        b'[{"a":1},{"a":1},[{"b":[],"b":[]}]]',
        rb'{"\u0061":1,"a":1}',
        rb'{"\ud83d\ude00":1,"\ud83d\ude00":1}',
        b'{"a":1,' + b",".join(b'"%d": ":"' % each for each in range(500)) + b',"499":1}',
    ],
    ids=lambda value: repr(value)[:40],
)
def test_no_key_comes_twice_whatever_colons_stand_beside_it(raw: bytes) -> None:
    assert refusal(raw) == MESSAGES["keys"]


@pytest.mark.parametrize(
    "raw",
    [
        rb'{"a": ":", "\u003a": "\u003A"}',
        rb'{"a": "\\u003a", "b": "\\\\u003a", "c": "\\\u003a"}',
        rb'{"\\u003a": 1, ":": 2, "\\\\:": 3}',
        b'{"a": {"a": {"a": [{"a": 1}, {"a": 1}]}}}',
        b'{"a":1,' + b",".join(b'"%d": ":"' % each for each in range(500)) + b"}",
    ],
    ids=lambda value: repr(value)[:40],
)
def test_colons_in_strings_make_no_key_come_twice(raw: bytes) -> None:
    assert refusal(raw) is None


COLONS: Final = TEXTS | st.text(":\\u03aA", max_size=8)
MEMBERS: Final = st.lists(st.tuples(COLONS, COLONS | st.dictionaries(COLONS, COLONS, max_size=3)), max_size=6)


@given(members=MEMBERS, ensure_ascii=st.booleans(), escaped=st.booleans(), again=st.booleans())
def test_an_object_is_refused_if_and_only_if_a_key_comes_again(
    members: list[tuple[str, Any]], *, ensure_ascii: bool, escaped: bool, again: bool
) -> None:
    members = [*members, *members[:1]] if again else members

    def written(value: object) -> str:
        text = json.dumps(value, ensure_ascii=ensure_ascii)
        return text.replace(":", r"\u003a") if escaped and isinstance(value, str) else text

    raw = "{" + ", ".join(f"{written(key)} : {written(value)}" for key, value in members) + "}"
    twice = len({key for key, _ in members}) < len(members)
    assert refusal(raw.encode()) == (MESSAGES["keys"] if twice else None)


# Depth


@pytest.mark.parametrize("around", ["[%s]", '{"":%s}', '["[",%s,"]"]', '[{"]}":0},%s]', '[%s,"\\\\","\\""]'])
@pytest.mark.parametrize("max_depth", [1, 2, 31, 32, 254])
@pytest.mark.parametrize("inmost", ["[]", "{}", '[[],"[[[["]'])
def test_a_text_may_nest_so_deep_and_no_deeper(around: str, max_depth: int, inmost: str) -> None:
    text = inmost
    depth = levels(text)
    while depth <= max_depth:
        assert refusal(text.encode(), max_depth) is None
        text = around.replace("%s", text)
        depth = levels(text)
    assert refusal(text.encode(), max_depth) == MESSAGES["depth"]
    assert refusal(b" " * 5000 + text.encode(), max_depth) == MESSAGES["depth"]


def levels(text: str) -> int:
    level, depth = [json.loads(text)], 0
    while level := [each for each in level if isinstance(each, list | dict)]:
        level = [*chain.from_iterable(each.values() if isinstance(each, dict) else each for each in level)]
        depth += 1
    return depth


@pytest.mark.parametrize("begin", [b"[", b'{"a":', b'["]",', b'{"}":["\\"",', rb'["\\",'])
@pytest.mark.parametrize("times", [33, 300, 5000])
def test_what_opens_too_often_is_nested_too_deeply_also_if_it_never_closes(begin: bytes, times: int) -> None:
    assert refusal(begin * times) == MESSAGES["depth"]


@pytest.mark.parametrize(
    "raw", [b'["' + b"[" * 40, b"[]" * 40, b"[" + b'{"a":[1]},' * 40, b"[1}" + b"[" * 40, b'{"a":"' + b'\\"{' * 40]
)
def test_what_is_no_json_is_called_so_if_it_does_not_nest(raw: bytes) -> None:
    assert refusal(raw) == MESSAGES["json"]


# Numbers


@pytest.mark.parametrize(
    "raw",
    [
        b'[1e40, "%s"]' % (b"1" * 33),
        b"[1e40, 0.%s]" % (b"1" * 33),
        b"[1e40, 1e-%s5]" % (b"0" * 33),
        b"%s.0" % (b"1" * 33),
        b"%se0" % (b"1" * 33),
        b'{"%s": 1e40}' % (b"1" * 33),
        b"[%s, -%s]" % (b"9" * 32, b"9" * 32),
    ],
)
def test_only_integers_are_bound_to_32_digits(raw: bytes) -> None:
    assert refusal(raw) is None


@pytest.mark.parametrize("digits", [33, 64, 308, 309, 5000])
@pytest.mark.parametrize("sign", [b"", b"-"])
@pytest.mark.parametrize("around", [b"%s", b"[1, %s ]", b'{"a": "+", "b": [[%s]]}'])
def test_an_integer_has_32_digits_at_most(digits: int, sign: bytes, around: bytes) -> None:
    assert refusal(around % (sign + b"1" * digits)) == MESSAGES["digits"]


@pytest.mark.parametrize("number", [b"1" * 400 + b"e5", b"1" * 400 + b".5", b"1e400", b"-1E+400", b"0.1e5000"])
def test_a_number_of_any_form_is_finite(number: bytes) -> None:
    assert refusal(b'{"a": [%s]}' % number) == MESSAGES["finite"]


# The work


def lines_run(raw: bytes) -> tuple[int, int]:
    """How many lines of Python one text takes, and how deep calls nest."""
    lines = deepest = depth = 0

    def trace(_frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines, depth, deepest
        lines += event == "line"
        depth += (event == "call") - (event == "return")
        deepest = max(deepest, depth)
        return trace

    before = sys.gettrace()
    gc.disable()  # what it finalizes is no work of this text
    sys.settrace(trace)
    try:
        refusal(raw)
    finally:
        sys.settrace(before)
        gc.enable()
    return lines, deepest


@pytest.mark.parametrize("kind", COSTLY)
def test_python_does_no_more_for_a_long_text_than_for_a_short_one(kind: str) -> None:
    assert 60_000 < len(COSTLY[kind]) <= 65_536
    lines, depth = lines_run(COSTLY[kind])
    assert lines < MOST_LINES
    assert depth < 12


REFUSED: Final = {
    "integers of 33 digits": "digits",
    "lists that never end": "depth",
    "short strings, then no JSON": "json",
    "lists, 31 levels, then no JSON": "json",
    "short strings, then a lone surrogate": "surrogate",
    "objects, then a duplicate key": "keys",
    "lists, 31 levels, then 33": "depth",
    "short strings, then a NUL": "nul",
}


@pytest.mark.parametrize("kind", COSTLY)
def test_long_texts_are_read_or_refused_as_short_ones_are(kind: str) -> None:
    assert refusal(COSTLY[kind]) == (MESSAGES[REFUSED[kind]] if kind in REFUSED else None)
    if kind not in REFUSED:
        assert typed(parse_json(COSTLY[kind], max_depth=32)) == typed(json.loads(COSTLY[kind]))
