from pathlib import Path

import httpx

from service.sandbox.server import SandboxServer
from tests.cli.conftest import until
from tests.cli.test_doctor import examined
from tests.cli.test_doctor import settings as doctor_settings
from tests.cli.test_serve import Start, sandbox_settings
from tests.collector import Collector
from tests.plain import NO_TLS


def test_each_worker_sends_its_own_spans_at_the_latest_when_it_ends_and_no_framework_adds_any(
    start: Start, upstream: SandboxServer, short_tmp: Path
) -> None:
    with Collector() as collector:
        more = {**collector.environment(), "FASTAPI_OTEL_AUTO_CONFIGURE": "true"}
        settings = sandbox_settings(upstream, short_tmp, OMNICONNECT_WORKERS="2", OMNICONNECT_TRACE_SHARE="1", **more)
        running = start("serve", **settings)

        def both_have_sent() -> bool:
            # On a connection of its own, so that either may get it.
            httpx.get(f"{client.base_url}/v1/providers", trust_env=False, verify=NO_TLS)
            return len({each.resource["service.instance.id"] for each in collector.spans}) == 2

        with running.serving() as client:
            until(both_have_sent)
            last = client.get("/v1/providers").json()["requestId"]
        assert running.end() == 0
        spans = collector.spans
    assert any(each.attributes.get("omniconnect.request_id") == last for each in spans)
    assert collector.paths == {"/v1/traces"}
    assert {each.name for each in spans} == {"GET /v1/providers", "companies", "token"}


def test_doctor_tells_a_collector_that_is_not_there(upstream: SandboxServer) -> None:
    with Collector() as collector:
        gone = {**collector.environment(), "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    code, rows = examined(**doctor_settings(upstream.url, OMNICONNECT_TRACE_SHARE="0.1", **gone))
    assert (code, rows["traces"]) == (0, ("warn", "the collector does not take them"))
