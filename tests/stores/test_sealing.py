"""What is sealed opens at its place, by a key of the ring, unchanged; else not at all."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.stores.sealing import KeyRing, UnsealError

OLD, NEW = b"o" * 32, b"n" * 32
RING = KeyRing({"new": NEW, "old": OLD})


@given(st.binary(max_size=256), st.text(max_size=32))
def test_it_opens_where_it_was_sealed_and_nowhere_else(plain: bytes, place: str) -> None:
    sealed = RING.seal(plain, place=place)
    assert RING.unseal(sealed, place=place) == plain
    with pytest.raises(UnsealError):
        RING.unseal(sealed, place=f"{place}x")


def test_the_first_key_seals_and_the_others_still_open() -> None:
    by_old = KeyRing({"old": OLD}).seal(b"plain", place="p")
    assert RING.unseal(by_old, place="p") == b"plain"
    assert RING.seal(b"plain", place="p").startswith("new.")
    with pytest.raises(UnsealError):
        KeyRing({"new": NEW}).unseal(by_old, place="p")
    with pytest.raises(UnsealError):
        KeyRing({"old": NEW}).unseal(by_old, place="p")


def test_the_same_text_never_looks_the_same() -> None:
    assert len({RING.seal(b"plain", place="p") for _ in range(100)}) == 100


@given(st.text(max_size=64), st.sampled_from(["", "new.", "old.", "nobody."]))
def test_junk_does_not_open_and_does_not_break(junk: str, name: str) -> None:
    with pytest.raises(UnsealError):
        RING.unseal(name + junk, place="p")


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_changed_byte_breaks_the_seal(position: int, flip: int) -> None:
    name, _, body = RING.seal(b"plain text of some length", place="p").partition(".")
    changed = bytearray(base64.b64decode(body))
    changed[position % len(changed)] ^= flip
    with pytest.raises(UnsealError):
        RING.unseal(f"{name}.{base64.b64encode(changed).decode()}", place="p")


def test_what_stands_between_the_letters_of_a_seal_breaks_it() -> None:
    sealed = RING.seal(b"plain", place="p")
    for junk in ("!", " ", "\n", "-", "."):
        with pytest.raises(UnsealError):
            RING.unseal(f"{sealed[:10]}{junk}{sealed[10:]}", place="p")


def test_each_purpose_has_a_key_of_its_own_as_long_as_any() -> None:
    keys = [RING.derive("one"), RING.derive("other"), KeyRing({"a": OLD}).derive("one")]
    assert len(set(keys)) == 3
    assert {len(key) for key in keys} == {32}
    assert RING.derive("one") == KeyRing({"again": NEW}).derive("one")
