"""One good request for each endpoint of `/v1`."""

from dataclasses import dataclass
from typing import Any, Final

from tests.walk import APS

__all__ = ["ENDPOINTS", "Endpoint"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How to call it; `{session}` and `{validation}` stand for ids."""

    name: str
    method: str
    path: str
    body: Any = None
    by_key: bool = False


ENDPOINTS: Final = (
    Endpoint("create_session", "POST", "/v1/sessions", {"subject": "s"}, by_key=True),
    Endpoint("replace_session_token", "POST", "/v1/sessions/{session}/tokens", by_key=True),
    Endpoint("get_session", "GET", "/v1/sessions/{session}"),
    Endpoint("close_session", "DELETE", "/v1/sessions/{session}"),
    Endpoint("list_providers", "GET", "/v1/providers"),
    Endpoint(
        "create_validation",
        "POST",
        "/v1/sessions/{session}/validations",
        {"providerId": APS, "username": "user_quick", "password": "pass_good"},
    ),
    Endpoint("get_validation", "GET", "/v1/sessions/{session}/validations/{validation}"),
    Endpoint("cancel_validation", "DELETE", "/v1/sessions/{session}/validations/{validation}"),
    Endpoint("list_service_accounts", "GET", "/v1/sessions/{session}/service-accounts"),
    Endpoint("stream_events", "GET", "/v1/sessions/{session}/events"),
    Endpoint("create_link", "POST", "/v1/sessions/{session}/links", {"serviceAccountIds": ["a"]}),
)
