"""What a collector of OpenTelemetry spans is told, and that nobody waits for it."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from pydantic import SecretStr

from service import __version__, tracing
from service.cli.doctor import examine
from service.sandbox.server import SandboxServer
from tests.collector import Collector, Span, collecting, exporters_ended
from tests.conftest import Replica, make_settings, running_replica
from tests.processes import eventually

TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
KEPT: Final = "0" * 31 + "1"
DROPPED: Final = "f" * 32
SPAN: Final = "b7ad6b7169203331"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting(monkeypatch) as running:
        yield running


@pytest.fixture
async def replica(valkey: str, upstream: SandboxServer, prefix: str) -> AsyncIterator[Replica]:
    async with traced(valkey, upstream, prefix) as started:
        yield started


@asynccontextmanager
async def traced(valkey: str, upstream: SandboxServer, prefix: str, share: float = 1.0) -> AsyncIterator[Replica]:
    async with running_replica(make_settings(valkey, upstream.url, prefix, trace_share=share)) as started:
        yield started


async def ask(replica: Replica, **headers: str) -> str:
    """A request that needs nothing else; its id."""
    answer = await replica.client.get("/openapi.json", headers=headers)
    assert answer.status_code == 200
    return answer.headers["X-Request-Id"]


async def arrived(collector: Collector, request_id: str) -> Span:
    """The span of a request."""

    def look() -> Span | None:
        return next((each for each in collector.spans if each.attributes.get(REQUEST_ID) == request_id), None)

    return await eventually(look)


REQUEST_ID: Final = "omniconnect.request_id"


async def test_a_request_and_the_calls_that_it_leads_to_are_one_trace(
    collector: Collector, replica: Replica, upstream: SandboxServer
) -> None:
    walk = await replica.walk().open()
    validated = await walk.validate("user_quick")
    ids = await walk.account_ids()
    linked = await walk.link(ids)
    span = await arrived(collector, linked.json()["requestId"])
    began = await arrived(collector, validated.json()["requestId"])
    spans = collector.spans

    assert (span.name, span.kind, span.parent_id, span.failed) == (
        "POST /v1/sessions/{session_id}/links",
        "SERVER",
        "",
        False,
    )
    assert span.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/sessions/{session_id}/links",
        "http.response.status_code": 201,
        REQUEST_ID: linked.json()["requestId"],
    }
    [call] = [each for each in spans if each.name == "link"]
    assert (call.kind, call.trace_id, call.parent_id) == ("CLIENT", span.trace_id, span.span_id)
    assert call.attributes == {"omniconnect.outcome": "201"}
    assert span.sent.start_time_unix_nano < call.sent.start_time_unix_nano < call.sent.end_time_unix_nano
    assert call.sent.end_time_unix_nano < span.sent.end_time_unix_nano
    of_validation = {each.name for each in spans if each.parent_id == began.span_id}
    assert {"create_job", "read_job", "read_account"} <= of_validation
    assert {each.name for each in spans if each.kind == "CLIENT"} <= {"token", "companies", "link", *of_validation}
    assert len([each for each in spans if each.kind == "CLIENT"]) == len(upstream.world.calls.all())
    assert {(each.resource["service.name"], each.resource["service.version"]) for each in spans} == {
        ("omniconnect-bff", __version__)
    }
    assert not any(each.sent.events or each.sent.links or each.sent.trace_state for each in spans)


async def test_the_vendor_is_told_nothing_of_traces(
    collector: Collector, replica: Replica, upstream: SandboxServer
) -> None:
    theirs = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=b", "baggage": "a=b"}
    replica.client.headers.update(theirs)
    await replica.walk().ready("user_quick")
    await eventually(lambda: [each for each in collector.spans if each.kind == "CLIENT"])
    sent = [call.headers for call in upstream.world.calls.all()]
    assert len(sent) >= 3
    assert not any(name in headers for headers in sent for name in theirs)
    assert TRACE not in str(sent)


async def test_failures_are_told_by_their_kind_and_not_quoted(
    collector: Collector, replica: Replica, upstream: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> None:
        raise RuntimeError("p4ssw0rd")

    upstream.world.faults.add("companies", "status", value=503, times=None)
    answer = await replica.client.get("/v1/providers", headers=replica.walk().server_headers)
    assert answer.status_code in {502, 503}
    refused = await arrived(collector, answer.json()["requestId"])
    assert refused.failed
    assert refused.attributes["error.type"] == str(answer.status_code)
    calls = [each for each in collector.spans if each.name == "companies"]
    assert calls
    assert all(each.failed for each in calls)
    assert {(each.attributes["omniconnect.outcome"], each.attributes["error.type"]) for each in calls} == {
        ("503", "503")
    }

    monkeypatch.setattr(replica.app.state.steps.sessions._tokens, "get", broken)
    answer = await replica.client.post("/v1/sessions", headers=replica.walk().server_headers)
    span = await arrived(collector, answer.json()["requestId"])
    assert span.attributes["error.type"] == "RuntimeError"
    assert "p4ssw0rd" not in str(collector.bodies)

    answer = await replica.client.request("DELETE", "/p4ssw0rd?p4ssw0rd")
    span = await arrived(collector, answer.headers["X-Request-Id"])
    assert (span.name, span.attributes["http.request.method"], span.failed) == ("HTTP", "_OTHER", False)
    assert "http.route" not in span.attributes


async def test_a_callers_trace_goes_on(collector: Collector, replica: Replica) -> None:
    span = await arrived(collector, await ask(replica, traceparent=f"00-{TRACE}-{SPAN}-01"))
    assert (span.trace_id, span.parent_id) == (TRACE, SPAN)


NO_TRACES: Final = [
    "",
    "00",
    f"00-{TRACE}-{SPAN}",
    f"00-{TRACE.upper()}-{SPAN}-01",
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"ff-{TRACE}-{SPAN}-01",
    f"00-{TRACE}-{SPAN}-01-more",
    f"00-{TRACE}-{SPAN}-zz",
    f"00-{TRACE}0-{SPAN}-01",
    "-" * 4000,
    f"00-{TRACE}-{SPAN}-01" * 100,
    "\xff\x80\u00e9",
    f"0\xb2-{TRACE}-{SPAN}-01",
]


async def test_what_is_no_trace_is_ignored(collector: Collector, replica: Replica) -> None:
    for header in NO_TRACES:
        answer = await replica.client.get("/openapi.json", headers=[(b"traceparent", header.encode("latin-1"))])
        assert answer.status_code == 200
        span = await arrived(collector, answer.headers["X-Request-Id"])
        assert span.parent_id == ""
        assert span.trace_id != TRACE


async def test_what_is_kept_is_decided_here_and_not_by_the_callers_flag(
    collector: Collector, valkey: str, upstream: SandboxServer, prefix: str
) -> None:
    kept = []
    async with traced(valkey, upstream, prefix, share=0.5) as replica:
        for flags in ("00", "01", "ff"):
            await ask(replica, traceparent=f"00-{DROPPED}-{SPAN}-{flags}")
            kept.append(await ask(replica, traceparent=f"00-{KEPT}-{SPAN}-{flags}"))
    assert [each.attributes[REQUEST_ID] for each in collector.spans] == kept


async def test_no_word_of_a_caller_gets_into_a_span(collector: Collector, replica: Replica) -> None:
    span = await arrived(
        collector,
        await ask(
            replica,
            traceparent=f"00-{TRACE}-{SPAN}-01",
            tracestate="canary=canary",
            baggage="canary=canary",
            **{"User-Agent": "canary", "X-B3-TraceId": "canary", "X-Request-Id": "_canary_"},
        ),
    )
    assert span.trace_id == TRACE
    assert b"canary" not in b"".join(collector.bodies)


async def test_lines_of_the_log_name_the_span(
    collector: Collector, replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    span = await arrived(collector, await ask(replica))
    [line] = [each for each in lines(caplog) if each.get("request_id") == span.attributes[REQUEST_ID]]
    assert (line["trace_id"], line["span_id"]) == (span.trace_id, span.span_id)


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(each.message) for each in caplog.records if each.name == "omniconnect"]


async def test_probes_leave_no_spans(collector: Collector, replica: Replica) -> None:
    for probe in ("/livez", "/readyz", "/metrics"):
        await replica.client.get(probe)
    request_id = await ask(replica)
    await arrived(collector, request_id)
    assert [each.attributes[REQUEST_ID] for each in collector.spans] == [request_id]


async def test_what_is_left_is_sent_at_the_end(
    valkey: str, upstream: SandboxServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting(monkeypatch, OTEL_BSP_SCHEDULE_DELAY="3600000") as collector:
        async with traced(valkey, upstream, prefix) as replica:
            request_id = await ask(replica)
            assert collector.bodies == []
        assert [each.attributes[REQUEST_ID] for each in collector.spans] == [request_id]


async def test_a_collector_that_hangs_is_waited_for_by_nobody_and_what_is_too_much_is_forgotten(
    valkey: str,
    upstream: SandboxServer,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tracing, "_FLUSH_SECONDS", 0.1)
    bounds = {
        "OTEL_BSP_MAX_QUEUE_SIZE": "4",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "3600",
    }
    with collecting(monkeypatch, **bounds) as collector:
        collector.answering.clear()
        async with asyncio.timeout(20):  # less than OpenTelemetry's own patience at the end
            async with traced(valkey, upstream, prefix) as replica:
                await ask(replica)
                await eventually(lambda: collector.bodies)
                asked = [await ask(replica) for _ in range(20)]
        assert [line["event"] for line in lines(caplog)].count("traces_lost") == 1
        collector.answering.set()
        await arrived(collector, asked[-1])
    assert [each.attributes[REQUEST_ID] for each in collector.spans[1:]] == asked[-4:]


async def test_without_a_collector_requests_are_answered_as_ever(
    valkey: str, upstream: SandboxServer, prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with collecting(monkeypatch, OTEL_EXPORTER_OTLP_TIMEOUT="0.2") as collector:
        pass
    async with traced(valkey, upstream, prefix) as replica:
        walk = replica.walk()
        assert (await walk.link(await walk.ready("user_quick"))).status_code == 201
        await eventually(lambda: [each for each in caplog.records if each.name.startswith("opentelemetry.exporter")])
    exporters_ended()
    assert collector.bodies == []


async def test_doctor_asks_the_collector(
    collector: Collector, valkey: str, upstream: SandboxServer, prefix: str
) -> None:
    for share, told in ((0.1, ["ok"]), (0, [])):
        settings = make_settings(valkey, upstream.url, prefix, trace_share=share)
        assert [each.result async for each in examine(settings) if each.check == "traces"] == told
    assert collector.bodies == [b""]


async def test_only_what_is_asked_for_is_traced(
    valkey: str, upstream: SandboxServer, prefix: str, caplog: pytest.LogCaptureFixture, collector: Collector
) -> None:
    async with traced(valkey, upstream, prefix, share=0) as replica:
        assert replica.app.state.health.started
        request_id = await ask(replica, traceparent=f"00-{TRACE}-{SPAN}-01")
    assert collector.bodies == []
    [line] = [each for each in lines(caplog) if each.get("request_id") == request_id]
    assert not {"trace_id", "span_id"} & set(line)


def test_who_does_not_trace_does_not_pay(valkey: str, upstream: SandboxServer, prefix: str) -> None:
    settings = make_settings(valkey, upstream.url, prefix)
    environ = {
        f"OMNICONNECT_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in settings.model_dump(
            include={"sandbox", "client_id", "secret", "upstream_url", "redis_url"}
        ).items()
    }
    keys = ",".join(f"{name}:{key.get_secret_value()}" for name, key in settings.encryption_keys.items())
    code = """
import os, sys
from service.app import from_environment
costly = {"opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http", "google.protobuf", "requests"}
for share in "01":
    os.environ["OMNICONNECT_TRACE_SHARE"] = share
    from_environment()
    print(len(costly & set(sys.modules)))
"""
    ended = subprocess.run(  # noqa: S603 -- our own code
        [sys.executable, "-c", code],
        env={**os.environ, **environ, "OMNICONNECT_ENCRYPTION_KEYS": keys},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.split() == ["0", "4"]
