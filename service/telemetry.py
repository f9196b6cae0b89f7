"""Logs and metrics: chosen fields only, never a value that came from outside unchecked."""

import asyncio
import logging
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import cache, lru_cache
from typing import Any, BinaryIO, Final, cast

import orjson
import structlog
from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "RUNNING_JOBS",
    "STORE_FAILURES",
    "TASKS",
    "UPSTREAM_SHUT",
    "about",
    "answered",
    "called",
    "configure_logs",
    "dropped",
    "log",
]

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

REQUESTS: Final = Counter("omniconnect_requests", "Requests answered", ["route", "method", "status"])
REQUEST_SECONDS: Final = Histogram("omniconnect_request_seconds", "Time to answer", ["route"], buckets=_SECONDS)
UPSTREAM_CALLS: Final = Counter("omniconnect_upstream_calls", "Calls to the vendor", ["operation", "outcome"])
UPSTREAM_SECONDS: Final = Histogram(
    "omniconnect_upstream_seconds", "Time the vendor took", ["operation"], buckets=_SECONDS
)
UPSTREAM_DROPPED: Final = Counter("omniconnect_upstream_dropped", "Parts of vendor answers that were dropped", ["what"])
UPSTREAM_SHUT: Final = Gauge(
    "omniconnect_upstream_shut",
    "Circuit breakers that opened and have not closed again",
    ["operation"],
    multiprocess_mode="livesum",
)
STORE_FAILURES: Final = Counter("omniconnect_store_failures", "Redis commands that failed", ["reason"])
RUNNING_JOBS: Final = Gauge(
    "omniconnect_running_jobs", "Validations that are being polled", multiprocess_mode="livesum"
)
TASKS: Final = Gauge(
    "omniconnect_tasks", "Tasks of the event loop, counted every other second", multiprocess_mode="livesum"
)

_LONGEST_TEMPLATE: Final = 200

# A metric's children are looked up under a lock each time, which costs more than counting: each is kept once found.
_requests: Final = cache(REQUESTS.labels)
_request_seconds: Final = cache(REQUEST_SECONDS.labels)
_upstream_calls: Final = cache(UPSTREAM_CALLS.labels)
_upstream_seconds: Final = cache(UPSTREAM_SECONDS.labels)
_upstream_dropped: Final = cache(UPSTREAM_DROPPED.labels)


def answered(route: str, method: str, status: int, seconds: float) -> None:
    """Count a request that was answered; all values are from short lists of our own."""
    _requests(route, method, str(status)).inc()
    _request_seconds(route).observe(seconds)


def called(operation: str, outcome: str, seconds: float) -> None:
    """Count a call to the vendor."""
    _upstream_calls(operation, outcome).inc()
    _upstream_seconds(operation).observe(seconds)


def dropped(what: str, count: int = 1) -> None:
    """Count parts of a vendor's answer that were left out."""
    _upstream_dropped(what).inc(count)


log: Final[structlog.typing.FilteringBoundLogger] = structlog.get_logger()


def configure_logs(level: str) -> None:
    """Write one JSON object per line to standard error, for this service and for the libraries below it.

    Libraries are kept at WARNING whatever the level: httpx and pyreqwest log URLs and headers below that.
    """
    shared: list[structlog.typing.Processor] = [
        _add_what_it_is_about,
        structlog.processors.add_log_level,
        _stamp,
        _name_exception,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(orjson.dumps)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # Past `logging`, whose records would take as long as all the rest of a line.
        logger_factory=structlog.BytesLoggerFactory(cast("BinaryIO", _Lines(sys.stderr.buffer))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_only_template, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(_as_json),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


_ABOUT: Final[ContextVar[Mapping[str, str]]] = ContextVar("about")


def about(**fields: str) -> None:
    """Name these in all lines of this context from now on; each request has a context of its own.

    In place of structlog's own: that has a variable for each field, and looks through all that there are at each line.
    """
    _ABOUT.set({**_ABOUT.get({}), **fields})


def _add_what_it_is_about(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:  # noqa: ANN401 -- structlog's signature
    for name, value in _ABOUT.get({}).items():
        event.setdefault(name, value)
    return event


class _Lines:
    """A file that is written to once in a turn of the event loop, as a call into the system costs as much as a line.

    A full disk or a log collector that is gone costs lines, and never a step of the flow.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._waiting: deque[bytes] = deque()
        self._due: asyncio.AbstractEventLoop | None = None

    def write(self, line: bytes) -> None:
        self._waiting.append(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write_out()
        else:
            if self._due is not loop:
                self._due = loop
                loop.call_soon(self._write_out)

    def flush(self) -> None:
        """Not now: at the end of the turn."""

    def _write_out(self) -> None:
        self._due = None
        lines: list[bytes] = []
        with suppress(IndexError):  # another thread may write them, too
            while True:
                lines.append(self._waiting.popleft())
        if lines:
            with suppress(OSError, ValueError):
                self._file.write(b"".join(lines))
                self._file.flush()


def _stamp(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:  # noqa: ANN401 -- structlog's signature
    """Add the time in ISO 8601; structlog's own writes out year and day anew for each line."""
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    event["timestamp"] = f"{_second(seconds)}.{rest // 1000:06}Z"
    return event


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _as_json(event: Any, **options: Any) -> str:  # noqa: ANN401 -- structlog's signature
    return orjson.dumps(event, default=options.get("default")).decode()


def _only_template(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:  # noqa: ANN401 -- structlog's signature
    """Of a library's message, keep its first line without the values put into it, which may be anybody's."""
    record: logging.LogRecord = event["_record"]
    event["event"] = str(record.msg).partition("\n")[0][:_LONGEST_TEMPLATE]
    event["logger"] = record.name
    return event


def _name_exception(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:  # noqa: ANN401 -- structlog's signature
    """Keep where an exception came from, drop its text: texts quote what came from outside."""
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    elif isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    if not isinstance(info, tuple) or info[1] is None:
        return event
    chain: list[str] = []
    frames: list[str] = []
    error: BaseException | None = info[1]
    while error is not None and len(chain) < 8:  # noqa: PLR2004 -- a bound, no meaning of its own
        chain.append(f"{type(error).__module__}.{type(error).__qualname__}")
        trace = error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            frames.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}:{code.co_name}")
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    event["exception"] = chain
    event["frames"] = frames[-40:]
    return event
