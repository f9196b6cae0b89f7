"""Generated requests, good and bad: no answer may be a server error, or other than the OpenAPI document says."""

import asyncio
from typing import Any, Final

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.stores.limits import Limit
from tests.conftest import Replica

CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    allow_header_conformance,
    ignored_auth,
]
EXAMPLES: Final = 8
BY_KEY: Final = {"create_session", "replace_session_token"}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
async def test_generated_requests_are_answered_as_documented(
    shared: Replica, monkeypatch: pytest.MonkeyPatch, mode: GenerationMode
) -> None:
    monkeypatch.setattr(shared.app.state.steps.access, "_reads_limit", Limit("session", 10_000, 60))
    load_all_checks()
    schema: Any = schemathesis.openapi.from_dict(shared.app.openapi())
    for found in schema.get_all_operations():
        operation = found.ok()
        walk = await shared.walk().open()
        validation = (await walk.validate("user_quick")).json()["validation"]
        if operation.definition.raw["operationId"] == "stream_events":
            await walk.close()  # the stream of an open session does not end
        ids = {"session_id": walk.id, "validation_id": validation["id"]}
        known = {each.name: ids[each.name] for each in operation.path_parameters}
        headers = walk.server_headers if operation.definition.raw["operationId"] in BY_KEY else walk.headers
        strategy = operation.as_strategy(mode, path_parameters=known or None)
        await asyncio.to_thread(_try, strategy, shared.url, headers)


def _try(strategy: Any, url: str, headers: dict[str, str]) -> None:
    @given(case=strategy)
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Case[Any]) -> None:
        case.call_and_validate(base_url=url, headers=headers, checks=CHECKS)

    check()
