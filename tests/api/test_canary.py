"""Nothing that a caller sends comes back in an answer that refuses it: it could be a password."""

import json
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.settings import SANDBOX_API_KEY
from service.stores.limits import Limit
from tests.api.calls import ENDPOINTS, Endpoint
from tests.conftest import Replica
from tests.walk import APS, PGE, SCE, Walk

CANARY: Final = "canary_Hunter2"
"""No request id, because of its underscore: those are meant to come back."""

_FIELDS: Final = ["providerId", "username", "password", "subject", "metadata", "ttlSeconds", "serviceAccountIds"]
_MORE_FIELDS: Final = ["consent", "version", "acceptedAt", "resendUnknown", CANARY, ""]
_HEADERS: Final = ["Prefer", "Idempotency-Key", "If-None-Match", "Cache-Control", "Accept", "Content-Type"]
_MORE_HEADERS: Final = ["X-Request-Id", "Authorization", "Cookie", "X-Forwarded-For", "Forwarded"]

canaries = st.sampled_from(
    [CANARY, f"{CANARY}@example.org", f"2026-{CANARY}", f"\u202e{CANARY}", f"<{CANARY}>", CANARY * 40, f" {CANARY}\n"]
)
leaves = canaries | st.sampled_from([APS, PGE, SCE, "user_quick", "a", "", None, 7, 61, True, -0.5])
bodies = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_FIELDS + _MORE_FIELDS), inner, max_size=4)
    ),
    max_leaves=8,
)
requests = st.fixed_dictionaries(
    {
        "endpoint": st.sampled_from(ENDPOINTS),
        "body": bodies,
        "as_text": st.booleans(),
        "headers": st.dictionaries(
            st.sampled_from(_HEADERS + _MORE_HEADERS),
            st.sampled_from([CANARY, f'"{CANARY}"', f"wait={CANARY}"]),
            max_size=2,
        ),
        "query": st.dictionaries(st.sampled_from(["search", CANARY]), st.just(CANARY * 30), max_size=2),
        "id": st.sampled_from(["{}", CANARY, f"{{}}{CANARY}", f"%0d%0a{CANARY}"]),
    }
)


@pytest.fixture(scope="module")
async def walk(lasting: Replica) -> Walk:
    return await lasting.walk().open()


@pytest.mark.usefixtures("_unlimited")
@given(request=requests)
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_no_refusal_repeats_what_was_sent(lasting: Replica, walk: Walk, request: dict[str, Any]) -> None:
    answer = await _send(lasting, walk, request)
    assert answer.status_code != 500
    if answer.status_code >= 400:
        assert CANARY.lower() not in answer.text.lower()
        assert CANARY.lower() not in str(answer.headers).lower()


@pytest.fixture
def _unlimited(lasting: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting.app.state.steps.access, "_reads_limit", Limit("session", 10_000, 60))


async def _send(replica: Replica, walk: Walk, request: dict[str, Any]) -> httpx.Response:
    endpoint: Endpoint = request["endpoint"]
    path = endpoint.path.format(session=request["id"].format(walk.id), validation=request["id"].format("val_0"))
    credential = SANDBOX_API_KEY if endpoint.by_key else walk.token
    headers = {"Authorization": f"Bearer {credential}", "Content-Type": "application/json", **request["headers"]}
    content = json.dumps(request["body"])
    if request["as_text"]:
        content = content[1:] + CANARY
    async with replica.client.stream(
        endpoint.method, path, headers=headers, params=request["query"], content=content
    ) as answer:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            return answer  # refused it was not, and it has no end
        await answer.aread()
        return answer
