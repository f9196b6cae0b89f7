"""Generated requests, good and bad, alone and in sequence: all are answered as the OpenAPI document says."""

import asyncio
import copy
import gc
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest
import schemathesis
from schemathesis import AuthContext, Case, HookContext
from schemathesis.config import SchemathesisConfig
from schemathesis.core.transport import Response
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder

from service.stores.limits import Limit
from tests.conftest import Replica
from tests.fuzzing import FUZZ, tell
from tests.walk import APS, PASSWORD, PGE

STEPS: Final = {"create_session", "create_validation", "get_session", "get_validation"}
BY_KEY: Final = {"create_session", "replace_session_token"}
STAYS_READABLE: Final = ["get_session", "get_validation", "stream_events"]
RETURN_URL: Final = "http://localhost:4200/linked"
USES_OF_ONE_SESSION: Final = 8

CONFIG: Final[dict[str, Any]] = {
    "seed": 20261123,
    "request-timeout": 40,
    "continue-on-failure": True,
    "max-stream-events": 1,
    "checks": {"enabled": True},
    # A character NUL is refused wherever it stands, which no schema says.
    "generation": {
        "mode": "all",
        "deterministic": True,
        "database": "none",
        "no-shrink": True,
        "allow-x00": False,
        "with-security-parameters": False,
    },
    "operations": [
        # What has ended stays readable for a day with its outcome: its DELETE frees nothing.
        {"include-operation-id": STAYS_READABLE, "checks": {"use_after_free": {"enabled": False}}},
    ],
}

ALONE: Final = {
    "coverage": {"enabled": True},
    "fuzzing": {"generation": {"max-examples": 4 * FUZZ}},
    "stateful": {"enabled": False},
}
IN_SEQUENCE: Final = {
    "coverage": {"enabled": False},
    "fuzzing": {"enabled": False},
    "stateful": {"generation": {"max-examples": 24 * FUZZ}},
}


class Guide:
    """Gives every request a session that exists and its credential, unless a request before it has made one."""

    def __init__(self, client: httpx.Client, key: dict[str, str], *, alone: bool) -> None:
        self._alone = alone
        self._client = client
        self._key = key
        self._tokens: dict[str, str] = {}
        self._session, self._validation, self._uses = "", "", 0
        self._accounts: list[str] = []
        self._keys: set[tuple[str, str | None]] = set()
        self._ended = {""}

    def lead(self, case: Any) -> None:
        """Set the path and the credential of a request."""
        path = case.path_parameters or {}
        if "session_id" in path and (self._alone or path["session_id"] not in self._tokens):
            self._renew()
            known = {"session_id": self._session, "validation_id": self._validation}
            case.path_parameters = {name: known[name] for name in path}
        if case.meta is not None and case.meta.generation.mode.is_positive:
            self._complete(case)
        operation = case.operation.definition.raw["operationId"]
        session = (case.path_parameters or {}).get("session_id", self._session)
        by_key = operation in BY_KEY or session not in self._tokens
        case.headers["Authorization"] = self._key["Authorization"] if by_key else f"Bearer {self._tokens[session]}"

    def _complete(self, case: Any) -> None:
        """Put in what the schema cannot know: the deployment's addresses, a real provider, and real accounts."""
        match case.body:
            case {"hosted": {"returnUrl": _} as hosted}:
                case.body = {**case.body, "hosted": {**hosted, "returnUrl": RETURN_URL, "cancelUrl": None}}
            case {"providerId": _}:
                signs_in = bool(case.body.get("username")) and bool(case.body.get("password"))
                given = case.body if signs_in else {}
                case.body = {**given, "providerId": APS if signs_in else PGE}
            case {"serviceAccountIds": [*_]}:
                case.body = {**case.body, "serviceAccountIds": self._accounts}
                # A key names one request; another session may use it for another one.
                used = (case.path_parameters["session_id"], case.headers.get("idempotency-key"))
                if used in self._keys:
                    del case.headers["idempotency-key"]
                elif used[1] is not None:
                    self._keys.add(used)

    def learn(self, answer: Response) -> None:
        """Keep the token of a new session, and that of one that got a new one; leave one that has ended."""
        if answer.status_code == 409 and self._session in str(answer.request.url):
            self._ended.add(self._session)
        if answer.status_code == 201 and "token" in (session := answer.json().get("session", {})):
            self._tokens[session["id"]] = session["token"]

    def _renew(self) -> None:
        self._uses += 1
        if self._session not in self._ended and self._uses % USES_OF_ONE_SESSION:
            return
        session = self._client.post("/v1/sessions", headers=self._key).json()["session"]
        self._session, self._tokens[session["id"]] = session["id"], session["token"]
        path, headers = f"/v1/sessions/{session['id']}", {"Authorization": f"Bearer {session['token']}"}
        person = {"providerId": APS, "username": "user_quick", "password": PASSWORD}
        answer = self._client.post(f"{path}/validations", headers={**headers, "Prefer": "wait=20"}, json=person)
        self._validation = answer.json()["validation"]["id"]
        found = self._client.get(f"{path}/service-accounts", headers=headers).json()
        self._accounts = [each["id"] for each in found["serviceAccounts"]]


def run(phases: dict[str, Any], document: dict[str, Any], guide: Guide, url: str) -> tuple[Counter[str], list[str]]:
    """How many requests of each phase and operation were answered well or badly, and what was wrong with answers."""
    config = SchemathesisConfig.from_dict({**CONFIG, "phases": phases})
    config.projects.default.update(base_url=url)
    schema: Any = schemathesis.openapi.from_dict(document, config=config)

    @schema.auth(refresh_interval=None)
    class _Credential:
        def get(self, _case: Case[Any], _context: AuthContext) -> Guide:
            return guide

        def set(self, case: Case[Any], found: Guide, _context: AuthContext) -> None:
            found.lead(case)

    @schema.hook  # type: ignore[untyped-decorator]
    def after_call(_context: HookContext, _case: Case[Any], response: Response) -> None:
        guide.learn(response)

    cases: Counter[str] = Counter()
    findings: list[str] = []
    for event in from_schema(schema).execute():
        match event:
            case events.ScenarioFinished():
                cases.update(_answered(event.recorder))
                findings += _failures(event.recorder)
            case events.NonFatalError():
                findings.append(f"{event.label}: {event.value!r}")
            case events.FatalError():
                raise event.exception
    return cases, findings


def _answered(recorder: ScenarioRecorder) -> Iterator[str]:
    """What each request was: the operation, if it worked."""
    for case_id, seen in recorder.interactions.items():
        worked = seen.response is not None and seen.response.status_code < 300
        yield recorder.cases[case_id].value.operation.definition.raw["operationId"] if worked else "refused"


def _failures(recorder: ScenarioRecorder) -> Iterator[str]:
    for case_id, checks in recorder.checks.items():
        for check in checks:
            if check.failure_info is not None:
                seen = recorder.interactions[case_id]
                sent = f"{seen.request.method} {seen.request.uri} {seen.request.headers} {seen.request.body!r}"
                answer = seen.response.content if seen.response else None
                yield f"{check.name}: {check.failure_info.failure}\n{sent}\n{answer!r}"


@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning", "ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("phases", [ALONE, IN_SEQUENCE], ids=["alone", "in sequence"])
async def test_generated_requests_are_answered_as_documented(
    shared: Replica, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], phases: dict[str, Any]
) -> None:
    monkeypatch.setattr(shared.app.state.steps.access, "_reads_limit", Limit("session", 1_000_000, 60))
    document = copy.deepcopy(shared.app.openapi())
    # Taken for a value like any other, and so often that its account would soon be closed to further tries.
    del document["components"]["schemas"]["CreateValidation"]["examples"]
    alone = phases is ALONE
    if not alone:
        # Taken for the id of something that another call must make first, so that no sequence would begin here.
        del document["components"]["schemas"]["CreateSession"]["properties"]["clientId"]
    with httpx.Client(base_url=shared.url, timeout=40, trust_env=False) as client:
        guide = Guide(client, shared.walk().server_headers, alone=alone)
        cases, findings = await asyncio.to_thread(run, phases, document, guide, shared.url)
    gc.collect()  # the engine leaves its connections to it
    tell(capsys, f"schemathesis: {cases.total()} cases, {len(findings)} findings, {dict(cases)}")
    assert not findings, "\n\n".join(findings[:20])
    operations = {each["operationId"] for path in document["paths"].values() for each in path.values()}
    assert (operations if alone else STEPS) <= set(cases), cases
