"""Whatever goes wrong, wherever: an OM envelope with the right fields, and headers that every answer has."""

import logging
import re
from types import ModuleType
from typing import Any

import pytest
from structlog.testing import capture_logs

from service import errors
from service.api import step_errors
from service.api.envelope import HTTP_STATUS
from service.api.models import Failure
from service.errors import ServiceError
from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY
from tests.api.calls import ENDPOINTS, Endpoint
from tests.api.conforming import SENTENCES, conforming, route_of
from tests.conftest import Replica
from tests.walk import Walk

REQUEST_ID = re.compile(r"[0-9a-f]{32}")


def samples() -> list[ServiceError]:
    """One of each class that can end a request."""
    special: dict[type[ServiceError], ServiceError] = {
        errors.InvalidRequest: errors.InvalidRequest([errors.FieldError("subject", "Bad")]),
        errors.AlreadyInProgress: errors.AlreadyInProgress(location="/v1/sessions/ses_0"),
        errors.UpstreamError: errors.UpstreamError(418),
        errors.OutcomeUnknown: errors.OutcomeUnknown(["att_b", "att_a"]),
        errors.RateLimited: errors.RateLimited(policy="p", limit=3, window=60, retry_after=7),
        errors.TooManyAttempts: errors.TooManyAttempts(policy="p", limit=3, window=60, retry_after=7),
    }
    return [special.get(each) or each() for each in HTTP_STATUS]


def test_every_endpoint_is_tried_here(shared: Replica) -> None:
    documented = {(each, path) for path, methods in shared.app.openapi()["paths"].items() for each in methods}
    tried = {
        (each.method.lower(), each.path.replace("{session}", "{session_id}").replace("{validation}", "{validation_id}"))
        for each in ENDPOINTS
    }
    assert tried == documented


def _coded(module: ModuleType) -> set[type[ServiceError]]:
    classes = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, ServiceError)]
    return {each for each in classes if each.__module__ == module.__name__ and hasattr(each, "code")}


def test_every_error_that_can_end_a_request_has_a_status() -> None:
    raised, told_of_steps = _coded(errors), _coded(step_errors)
    assert raised == set(HTTP_STATUS)
    same_to_callers = {errors.UpstreamBusy, errors.UpstreamShut, errors.UpstreamLate}
    codes = [each.code for each in (raised | told_of_steps) - same_to_callers]
    assert len(codes) == len(set(codes))


ONE_OF_EACH_METHOD = [each for each in ENDPOINTS if each.name in {"create_validation", "get_session", "close_session"}]


@pytest.mark.parametrize("endpoint", ONE_OF_EACH_METHOD, ids=lambda each: each.name)
async def test_every_error_is_an_envelope(shared: Replica, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint) -> None:
    for error in samples():

        async def fail(_credential: str | None, error: ServiceError = error) -> None:
            raise error

        monkeypatch.setattr(shared.app.state.steps.access, "identify", fail)
        path = endpoint.path.format(session="ses_" + "0" * 32, validation="val_0")
        answer = await shared.client.request(endpoint.method, path, json=endpoint.body)
        assert answer.status_code == HTTP_STATUS[type(error)]
        body = answer.json()
        Failure.model_validate(body)
        assert (body["status"], body["code"], body["retryable"]) == (error.fault.value, error.code, error.retryable)
        assert body["message"] == SENTENCES.get(body["status"], error.message)
        assert body["requestId"] == answer.headers["X-Request-Id"]
        assert body["displayMessage"] == error.display_message
        assert answer.headers["Content-Type"] == "application/json"
        invalid = isinstance(error, errors.InvalidRequest)
        assert body.get("errors") == ([{"field": "subject", "message": "Bad"}] if invalid else None)
        attempts = list(error.attempts) if isinstance(error, errors.OutcomeUnknown) else None
        assert body.get("attempts") == attempts
        assert answer.headers.get("WWW-Authenticate") == (
            "Bearer" if isinstance(error, errors.Unauthenticated) else None
        )
        assert answer.headers.get("Location") == (
            error.location if isinstance(error, errors.AlreadyInProgress) else None
        )
        assert answer.headers.get("Retry-After") == (str(error.retry_after) if error.retry_after else None)
        limited = answer.status_code == 429
        assert answer.headers.get("RateLimit") == ('"p";r=0;t=7' if limited else None)
        assert answer.headers.get("RateLimit-Policy") == ('"p";q=3;w=60' if limited else None)


async def test_the_log_has_the_code_that_the_caller_got(shared: Replica) -> None:
    with capture_logs() as lines:
        answer = await shared.client.post("/v1/sessions")
        await shared.client.post("/v1/sessions", headers={"Authorization": f"Bearer {SANDBOX_API_KEY}"})
    refused, opened = [line for line in lines if line["event"] == "request"]
    assert (refused["status"], refused["code"]) == (401, answer.json()["code"])
    assert "code" not in opened


async def test_a_success_is_an_envelope_too(shared: Replica) -> None:
    server = {"Authorization": f"Bearer {SANDBOX_API_KEY}"}
    opened = await shared.client.post("/v1/sessions", headers=server, json={})
    path = opened.headers["Location"]
    read, closed = await shared.client.get(path, headers=server), await shared.client.delete(path, headers=server)
    for answer, http, status, message in (
        (opened, 201, "OM200", "Session created"),
        (read, 200, "OM200", "Session found"),
        (closed, 200, "OM400", "Rejected: User closes the widget"),
    ):
        assert answer.status_code == http
        assert answer.headers["Content-Type"] == "application/json"
        body = answer.json()
        assert body["session"]["id"] == path.rpartition("/")[2]
        assert (body["status"], body["message"]) == (status, message)
        assert body["requestId"] == answer.headers["X-Request-Id"]


async def test_what_is_told_of_a_step_keeps_the_headers_of_a_request(shared: Replica) -> None:
    walk = await shared.walk().open()
    answer = await walk.validate("user_quick", "wrong")
    assert answer.json()["code"] == "incorrect_credentials"
    assert answer.headers["Location"] == f"{walk.path}/validations/{answer.json()['validation']['id']}"


async def test_bad_input_is_told_by_fields_that_are_known_and_without_values(shared: Replica) -> None:
    body = {"canary": 1, "metadata": {"canary": 5}, "ttlSeconds": 1, "hosted": {"returnUrl": 5, "canary": 1}}
    server = {"Authorization": f"Bearer {SANDBOX_API_KEY}"}
    answer = await shared.client.post("/v1/sessions", headers=server, json=body)
    told = [(each["field"], each["message"]) for each in answer.json()["errors"]]
    assert sorted(told) == [
        ("", "Unknown field"),
        ("hosted", "Unknown field"),
        ("hosted.returnUrl", "Input should be a valid string"),
        ("metadata", "Input should be a valid string"),
        ("ttlSeconds", "Input should be greater than or equal to 60"),
    ]
    assert "canary" not in answer.text
    walk = await shared.walk().open()
    answer = await walk.link(["a", "b c"])
    assert [each["field"] for each in answer.json()["errors"]] == ["serviceAccountIds.1"]


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: each.name)
async def test_a_bug_is_an_envelope_that_tells_nothing(
    shared: Replica, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, endpoint: Endpoint
) -> None:
    async def fail(_credential: str | None) -> None:
        raise RuntimeError("canary_of_a_bug")

    monkeypatch.setattr(shared.app.state.steps.access, "identify", fail)
    path = endpoint.path.format(session="ses_" + "0" * 32, validation="val_0")
    async with conforming(shared) as client:
        answer = await client.request(endpoint.method, path, json=endpoint.body)
    assert answer.status_code == 500
    assert (answer.json()["status"], answer.json()["code"]) == ("OM500", "internal_error")
    assert "canary_of_a_bug" not in answer.text
    logged = [str(record.msg) for record in caplog.records if record.levelno == logging.ERROR]
    assert any("RuntimeError" in each and answer.json()["requestId"] in each for each in logged)
    assert "canary_of_a_bug" not in caplog.text


async def test_a_bug_behind_the_policy_is_an_envelope_too(
    shared: Replica, vendor: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = await shared.walk().open()

    async def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError(walk.token)

    steps = shared.app.state.steps
    for step, method in ((steps.validations, "start"), (steps.accounts, "list"), (steps.attach, "link")):
        monkeypatch.setattr(step, method, fail)
    async with conforming(shared) as client:
        at = Walk(client, api_key=SANDBOX_API_KEY)
        at.id, at.token = walk.id, walk.token
        for answer in (await at.validate(), await at.accounts(), await at.link(["a"])):
            assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
            assert walk.token not in answer.text
    assert vendor.world.calls.all() == []


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("GET", "/v1/", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/providers/", 404, "not_found"),
        ("GET", "//v1/providers", 404, "not_found"),
        ("POST", "/v1/sessions/ses_0/validations/val_0/more", 404, "not_found"),
        ("GET", "/v1/sessions", 405, "method_not_allowed"),
        ("HEAD", "/v1/providers", 405, ""),
        ("OPTIONS", "/v1/providers", 405, "method_not_allowed"),
        ("PUT", "/v1/sessions/ses_0", 405, "method_not_allowed"),
        ("DELETE", "/v1/sessions/ses_0/links", 405, "method_not_allowed"),
        ("PROPFIND", "/v1/providers", 405, "method_not_allowed"),
        ("TRACE", "/livez", 405, "method_not_allowed"),
    ],
)
async def test_the_frameworks_own_errors_are_envelopes(
    shared: Replica, method: str, path: str, status: int, code: str
) -> None:
    answer = await shared.client.request(method, f"{shared.url}{path}")
    assert answer.status_code == status
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    if method != "HEAD":
        Failure.model_validate(answer.json())
        assert answer.json()["code"] == code
    if status == 405:
        allowed = set(answer.headers["Allow"].split(", "))
        methods = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
        assert allowed == {each for each in methods if route_of(shared.app, each, path)}


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "application/json;q=0", "text/*, image/png"])
async def test_who_accepts_no_json_gets_none_of_the_work_done(
    shared: Replica, vendor: SandboxServer, accept: str
) -> None:
    async with conforming(shared) as client:
        walk = Walk(client, api_key=SANDBOX_API_KEY)
        for path in ("/v1/sessions", "/v1/sessions/ses_0/links"):
            answer = await client.post(path, headers=walk.server_headers | {"Accept": accept}, json={})
            assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
    assert vendor.world.calls.all() == []


@pytest.mark.parametrize("accept", ["*/*", "application/*", "text/html, */*;q=0.1", "Application/JSON; charset=utf-8"])
async def test_who_accepts_json_among_others_gets_it(shared: Replica, accept: str) -> None:
    headers = shared.walk().server_headers | {"Accept": accept}
    assert (await shared.client.get("/v1/providers", headers=headers)).status_code == 200


HOSTILE = {
    "NaN": (b'{"a": NaN}', "application/json", 400),
    "infinity": (b'{"a": -Infinity}', "application/json", 400),
    "overflow": (b'{"a": 1e999}', "application/json", 400),
    "lone surrogate": (b'{"subject": "\\ud800"}', "application/json", 400),
    "NUL": (b'{"subject": "\\u0000"}', "application/json", 400),
    "duplicate keys": (b'{"subject": "a", "subject": "b"}', "application/json", 400),
    "escaped duplicate keys": (b'{"subject": "a", "\\u0073ubject": "b"}', "application/json", 400),
    "depth": (b"[" * 33 + b"]" * 33, "application/json", 400),
    "endless depth": (b"[" * 60_000, "application/json", 400),
    "long number": (b'{"ttlSeconds": ' + b"9" * 5000 + b"}", "application/json", 400),
    "no UTF-8": (b'{"subject": "\xff"}', "application/json", 400),
    "UTF-16": ('{"subject": "a"}'.encode("utf-16"), "application/json", 400),
    "no JSON": (b"subject=a", "application/json", 400),
    "half": (b'{"subject": "a"', "application/json", 400),
    "form": (b"subject=a", "application/x-www-form-urlencoded", 415),
    "text": (b'{"subject": "a"}', "text/plain", 415),
    "undeclared": (b'{"subject": "a"}', "", 415),
    "other charset": (b'{"subject": "a"}', "application/json; charset=latin-1", 415),
    "too long": (b'{"subject": "' + b"a" * 70_000 + b'"}', "application/json", 413),
}


@pytest.mark.parametrize(("content", "declared", "status"), HOSTILE.values(), ids=HOSTILE)
async def test_bodies_that_cannot_be_trusted_go_nowhere(
    shared: Replica, vendor: SandboxServer, content: bytes, declared: str, status: int
) -> None:
    walk = await shared.walk().open()
    vendor.world.calls.clear()
    async with conforming(shared) as client:
        for endpoint in ENDPOINTS:
            if endpoint.body is None:
                continue
            headers = walk.server_headers if endpoint.by_key else walk.headers
            path = endpoint.path.format(session=walk.id, validation="val_0")
            answer = await client.post(path, headers=headers | {"Content-Type": declared}, content=content)
            assert answer.status_code == status
            assert answer.json()["status"] == "OM400"
    assert vendor.world.calls.all() == []


@pytest.mark.parametrize("asked", ["a", "A-0", "x" * 64, "6ba7b810-9dad-11d1-80b4-00c04fd430c8"])
async def test_a_request_id_of_the_right_form_is_taken(shared: Replica, asked: str) -> None:
    answer = await shared.client.get("/v1/nothing", headers={"X-Request-Id": asked})
    assert answer.headers["X-Request-Id"] == answer.json()["requestId"] == asked


@pytest.mark.parametrize("asked", ["", "a_b", "a b", "x" * 65, "a\tb", "é", '"', "a;b", "${jndi:ldap}"])
async def test_a_request_id_of_another_form_is_replaced(shared: Replica, asked: str) -> None:
    answer = await shared.client.get("/v1/nothing", headers=[(b"X-Request-Id", asked.encode())])
    assert REQUEST_ID.fullmatch(answer.headers["X-Request-Id"])
    assert answer.json()["requestId"] == answer.headers["X-Request-Id"]
