"""Passwords are counted by account, so no spelling that looks the same may be another account."""

import sys
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr
from pydantic_core import SchemaValidator, core_schema

from service.link.limits import Lockout
from service.link.usernames import fold_username
from service.stores.connection import Store
from service.stores.keys import Keys
from service.stores.limits import LimitStore
from tests.walk import APS

EVERY_CHARACTER: Final = "".join(map(chr, range(sys.maxunicode + 1)))
BLANK: Final = "\u2800\ufffc\U00013441\U00013442\U0001d159"
"""What fonts draw as nothing, although neither its category nor a property says so."""


@cache
def visible() -> str:
    """Letters, numbers, punctuation and symbols, by category alone."""
    return "".join(each for each in EVERY_CHARACTER if unicodedata.category(each)[0] in "LNPS")


@cache
def default_ignorable() -> str:
    """As the regular expressions of pydantic-core know it, which are written in Rust and have tables of their own."""
    schema = core_schema.str_schema(pattern=r"^\p{Default_Ignorable_Code_Point}$")
    ignorable = SchemaValidator(schema).isinstance_python
    return "".join(each for each in EVERY_CHARACTER if unicodedata.category(each) != "Cs" and ignorable(each))


UNSEEN: Final = (
    st.deferred(lambda: st.sampled_from(default_ignorable()))
    | st.sampled_from(BLANK)
    | st.characters(categories=["Cc", "Cf", "Cs", "Co", "Cn", "Mn", "Mc", "Me", "Zs", "Zl", "Zp"])
)
NAMES: Final = st.text(st.characters() | st.characters(codec="ascii", categories=["L", "N", "P", "S"]), max_size=12)
VISIBLE_ASCII: Final = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12)
SMALL_IOTA_BELOW: Final = "\u0345"
"""A mark beside a small letter, a letter of its own beside a capital."""


@pytest.fixture(scope="module")
def key_of() -> Callable[[str], str]:
    """The key that an attempt with a name is counted by; none is counted here, and no store is needed."""
    limits = LimitStore(store=Store(SecretStr("redis://127.0.0.1:1"), command_seconds=1), keys=Keys("test", "default"))
    lockout = Lockout(limits=limits, by_account=5, by_address=30, key=b"k" * 32, tenant="default")
    return lambda name: lockout.counted_by(APS, SecretStr(name), address=None)


@given(name=NAMES, unseen=st.lists(st.tuples(st.integers(0, 12), UNSEEN), max_size=6))
@example(name="victim7", unseen=[(7, "\u3164")])
@example(name="victim7", unseen=[(3, "\u115f")])
@example(name="victim7", unseen=[(7, "\uffa0")])
@example(name="victim7", unseen=[(0, "\u2800")])
@example(name="victim7", unseen=[(7, SMALL_IOTA_BELOW)])
@example(name="\uac00", unseen=[(1, "\u1160"), (0, "\u115f")])
def test_what_nobody_sees_changes_no_key(
    key_of: Callable[[str], str], name: str, unseen: list[tuple[int, str]]
) -> None:
    spelled = name
    for place, character in unseen:
        spelled = spelled[:place] + character + spelled[place:]
    assert key_of(spelled) == key_of(name)


@given(name=NAMES.filter(lambda name: SMALL_IOTA_BELOW not in unicodedata.normalize("NFKD", name)))
@example(name="v\u0131ctim")
@example(name="stra\u00dfe")
def test_case_changes_no_key(key_of: Callable[[str], str], name: str) -> None:
    spellings = (name.upper(), name.lower(), name.title(), name.swapcase(), name.casefold())
    assert {key_of(each) for each in spellings} == {key_of(name)}


@given(
    name=NAMES, form=st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]), before=st.text(" \t\n"), after=st.text(" \t\n")
)
def test_neither_blanks_around_nor_the_form_change_a_key(
    key_of: Callable[[str], str], name: str, form: str, before: str, after: str
) -> None:
    spelled = unicodedata.normalize(form, name)  # type: ignore[arg-type]
    assert key_of(before + spelled + after) == key_of(name)


@given(name=VISIBLE_ASCII, other=VISIBLE_ASCII)
@example(name="victim7", other="victim1")
def test_names_that_look_different_have_different_keys(key_of: Callable[[str], str], name: str, other: str) -> None:
    assert (key_of(name) == key_of(other)) == (name.lower() == other.lower())


def test_names_without_anything_to_see_are_one_account(key_of: Callable[[str], str]) -> None:
    assert len({key_of(each) for each in ["", " ", "\u3164", "\u2800\u200b", "\ud800", "\u0301"]}) == 1


def test_to_fold_twice_changes_nothing_in_any_character() -> None:
    folded = fold_username(EVERY_CHARACTER)
    assert fold_username(folded) == folded
    # Each is folded by itself, whatever stands beside it: so the same holds for all names.
    assert folded == "".join(map(fold_username, visible()))
    assert {unicodedata.category(each)[0] for each in folded} == set("LNPS")


@given(name=NAMES)
def test_to_fold_twice_changes_nothing_in_any_name(name: str) -> None:
    folded = fold_username(name)
    assert fold_username(folded) == folded
    folded.encode()  # without halves of surrogate pairs


def test_whatever_unicode_asks_to_show_as_nothing_is_dropped() -> None:
    assert len(default_ignorable()) > 4000
    assert fold_username(default_ignorable()) == ""


def test_nothing_else_is_dropped_but_known_blanks_and_what_is_neither_letter_number_nor_sign() -> None:
    known = {*default_ignorable(), *BLANK}
    dropped = {each for each in visible() if not fold_username(each)} - known
    accents = {each for each in dropped if all(map(is_blank_or_mark, unicodedata.normalize("NFKD", each)))}
    assert dropped == accents


def is_blank_or_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "MZ"
