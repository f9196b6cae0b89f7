"""Traces: which request led to which calls of the vendor, told to an OpenTelemetry collector; off unless asked for."""

import asyncio
import threading
from contextlib import suppress
from time import time_ns
from typing import Final, Self

from opentelemetry.context import Context, attach
from opentelemetry.trace import Span, SpanKind, StatusCode, format_span_id, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service import __version__
from service.telemetry import about, log

__all__ = ["Tracing", "finish"]

_NAME: Final = "omniconnect-bff"
_FLUSH_SECONDS: Final = 3.0
"""What is left at the end has so long to be sent: a collector that hangs keeps no process from ending."""

_CALLERS: Final = TraceContextTextMapPropagator()
_FAILED: Final = 500


class Tracing:
    """Spans with chosen attributes only: nothing that came from outside but ids, and of exceptions the class alone.

    The provider is no global one, or libraries would add spans of their own, with paths and texts in them. What the
    exporter needs (`OTEL_EXPORTER_OTLP_*`, `OTEL_BSP_*`, `OTEL_RESOURCE_ATTRIBUTES`) it reads from the environment. It
    sends from a thread with a bounded queue, which forgets what is oldest.
    """

    def __init__(self, share: float) -> None:
        # Most deployments never need it.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import TraceIdRatioBased  # noqa: PLC0415

        given = OTELResourceDetector().detect().attributes
        self._provider = TracerProvider(
            # Not by the caller's flag: strangers would decide what is kept.
            sampler=TraceIdRatioBased(share),
            resource=Resource.create({"service.name": _NAME, "service.version": __version__, **(given or {})}),
            shutdown_on_exit=False,
        )
        self._tracer = self._provider.get_tracer(_NAME, __version__)
        self._exporter = OTLPSpanExporter()

    async def __aenter__(self) -> Self:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        return self

    async def __aexit__(self, *_: object) -> None:
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def flush() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # too late: the loop is closed
                loop.call_soon_threadsafe(sent.set)

        # An executor's thread would be waited for at the end of the process, however long it takes.
        threading.Thread(target=flush, name="traces", daemon=True).start()
        try:
            await asyncio.wait_for(sent.wait(), _FLUSH_SECONDS)
        except TimeoutError:
            log.warning("traces_lost")

    def reaches_collector(self) -> bool:
        """Whether the collector answers well to being sent nothing; blocks for as long as an export may take."""
        from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415

        return self._exporter.export([]) is SpanExportResult.SUCCESS

    def begin(self, request_id: str, traceparent: str | None) -> Span:
        """The span of a request, under which comes all that its task does; its ids stand in the lines of the log.

        Of a caller's trace (W3C Trace Context) its ids are taken. `tracestate` and `baggage` hold whatever a stranger
        likes.
        """
        parent = _CALLERS.extract({"traceparent": traceparent}) if traceparent else Context()
        attributes = {"omniconnect.request_id": request_id}
        span = self._tracer.start_span("HTTP", context=parent, kind=SpanKind.SERVER, attributes=attributes)
        attach(set_span_in_context(span))  # each request has a context of its own
        ids = span.get_span_context()
        about(trace_id=format_trace_id(ids.trace_id), span_id=format_span_id(ids.span_id))
        return span

    def called(self, operation: str, outcome: str, seconds: float) -> None:
        """A call to the vendor, which has just ended. The vendor itself is told nothing: what we trace is our own."""
        ended = time_ns()
        span = self._tracer.start_span(
            operation,
            kind=SpanKind.CLIENT,
            attributes={"omniconnect.outcome": outcome},
            start_time=ended - int(seconds * 1_000_000_000),
        )
        if not outcome.startswith("2"):
            _fail(span, outcome)
        span.end(ended)


def finish(span: Span, *, route: str | None, method: str, status: int, error: Exception | None) -> None:
    """A request was answered. Without a `route`, which is a template, nothing that the caller chose is told."""
    if route is None:
        span.set_attribute("http.request.method", "_OTHER")
    else:
        span.update_name(f"{method} {route}")
        span.set_attributes({"http.request.method": method, "http.route": route})
    span.set_attribute("http.response.status_code", status)
    if status >= _FAILED:
        _fail(span, type(error).__qualname__ if error else str(status))
    span.end()


def _fail(span: Span, error_type: str) -> None:
    span.set_status(StatusCode.ERROR)
    span.set_attribute("error.type", error_type)
