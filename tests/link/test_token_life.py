"""How long a token is trusted: min(exp - iat, one hour), whatever else it claims."""

import base64
import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import UpstreamMalformed
from service.upstream.wire import LONGEST_TOKEN_LIFE_SECONDS, parse_token


def jwt(claims: bytes) -> str:
    return f"e30.{base64.urlsafe_b64encode(claims).rstrip(b'=').decode()}.c2ln"


def life(token: str) -> float:
    return parse_token(orjson.dumps({"id": "acc", "token": token})).life_seconds


@given(st.integers(-(2**40), 2**40), st.integers(1, 10**9))
def test_life_is_what_it_claims_but_an_hour_at_most(issued: int, seconds: int) -> None:
    token = jwt(orjson.dumps({"iat": issued, "exp": issued + seconds}))
    assert life(token) == min(seconds, LONGEST_TOKEN_LIFE_SECONDS)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(ANY_JSON, ANY_JSON)
def test_odd_claims_never_break_it_and_never_lengthen_it(issued: Any, expires: Any) -> None:
    claims = orjson.dumps({"iat": issued, "exp": expires}, option=orjson.OPT_NON_STR_KEYS)
    found = life(jwt(claims))
    assert math.isfinite(found)
    assert 0 < found <= LONGEST_TOKEN_LIFE_SECONDS


@given(st.binary(max_size=64))
def test_claims_that_are_no_json_mean_an_hour(claims: bytes) -> None:
    assert 0 < life(jwt(claims)) <= LONGEST_TOKEN_LIFE_SECONDS


@pytest.mark.parametrize("claims", [b'{"iat":0,"exp":1e400}', b'{"iat":"nan","exp":"inf"}', b"[" * 4000, b"{}"])
def test_hostile_claims_mean_an_hour(claims: bytes) -> None:
    assert life(jwt(claims)) == LONGEST_TOKEN_LIFE_SECONDS


@pytest.mark.parametrize("token", ["a b", "a\r\nX: y", "", "é", "a" * 8193])
def test_what_may_not_stand_in_a_header_is_no_token(token: str) -> None:
    with pytest.raises(UpstreamMalformed):
        parse_token(orjson.dumps({"id": "acc", "token": token}))
