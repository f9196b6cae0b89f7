"""An OpenTelemetry collector on a real socket, which keeps what it is sent."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent
from typing_extensions import override

__all__ = ["Collector", "Span", "collecting", "exporters_ended"]

_AT_ONCE_MS: Final = "10"


@dataclass(frozen=True, slots=True)
class Span:
    """A span as it was sent."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    failed: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]
    sent: Sent


class Collector(ThreadingHTTPServer):
    """Answers well to everything, unless `answering` is cleared: then not at all."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        self.answering = threading.Event()
        self.answering.set()
        self.bodies: list[bytes] = []
        self.paths: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.paths.add(self.path)
                collector.bodies.append(body)
                collector.answering.wait()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            @override
            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @override
    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    @override
    def __exit__(self, *_: object) -> None:
        self.answering.set()
        self.shutdown()
        self.server_close()

    def environment(self, delay_ms: str = _AT_ONCE_MS) -> dict[str, str]:
        """What sends spans here."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": delay_ms,
            "NO_PROXY": "*",
        }

    @property
    def spans(self) -> list[Span]:
        """All that have come, in order."""
        found = []
        for body in list(self.bodies):
            for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = _plain(each.resource.attributes)
                found += [_span(sent, resource) for scope in each.scope_spans for sent in scope.spans]
        return found


def _span(sent: Sent, resource: dict[str, Any]) -> Span:
    return Span(
        name=sent.name,
        kind=Sent.SpanKind.Name(sent.kind).removeprefix("SPAN_KIND_"),
        trace_id=sent.trace_id.hex(),
        span_id=sent.span_id.hex(),
        parent_id=sent.parent_span_id.hex(),
        failed=sent.status.code == sent.status.STATUS_CODE_ERROR,
        attributes=_plain(sent.attributes),
        resource=resource,
        sent=sent,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    def value(each: KeyValue) -> Any:
        return getattr(each.value, each.value.WhichOneof("value") or "string_value")

    return {each.key: value(each) for each in attributes}


@contextmanager
def collecting(monkeypatch: Any, **more: str) -> Iterator[Collector]:
    """A collector that this process's exporters find."""
    with Collector() as collector:
        for name, value in {**collector.environment(), **more}.items():
            monkeypatch.setenv(name, value)
        yield collector
        collector.answering.set()
        exporters_ended()


def exporters_ended() -> None:
    """Wait for what still sends, or it would write into the log of the next test."""
    for thread in threading.enumerate():
        if thread.name.startswith("OtelBatch"):
            thread.join()
