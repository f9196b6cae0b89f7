"""Lines of the log, field by field, and what is counted."""

import asyncio
import json
import logging
import re
import threading
from contextvars import copy_context
from types import FunctionType
from typing import Any, Self

import pytest
import structlog
from prometheus_client import REGISTRY

from service.telemetry import about, answered, called, configure_logs, dropped


class Log:
    """The log as a deployment has it, while it is entered."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.lines: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._before = structlog.get_config()["logger_factory"]
        configure_logs("INFO")
        return self

    def __exit__(self, *_: object) -> None:
        self.lines = [json.loads(line) for line in self._capsys.readouterr().err.splitlines()]
        configure_logs("DEBUG")
        structlog.configure(logger_factory=self._before)


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Log:
    return Log(capsys)


def _fail(depth: int) -> None:
    if depth:
        _fail(depth - 1)
    raise ValueError("p4ssw0rd")


def test_a_line_of_ours(log: Log) -> None:
    with log:
        structlog.get_logger().info("linked", accounts=2)
        structlog.get_logger().debug("below the level")
    [line] = log.lines
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("timestamp"))
    assert line == {"event": "linked", "level": "info", "accounts": 2}


def test_what_a_request_is_known_by_stands_in_each_of_its_lines(log: Log) -> None:
    def tell() -> None:
        about(request_id="req_1")
        structlog.get_logger().warning("slow")
        logging.getLogger("redis").warning("slow")

    with log:
        copy_context().run(tell)
    assert [line["request_id"] for line in log.lines] == ["req_1", "req_1"]


def test_of_a_librarys_line_the_template_alone_is_kept(log: Log) -> None:
    logging.getLogger().setLevel(logging.DEBUG)
    with log:
        logging.getLogger("httpx").info("below the level")
        logging.getLogger("redis").error("Lost %s\nfuture: %s", "a", "p4ssw0rd")
        logging.getLogger("asyncio").warning("x" * 201)
    first, second = log.lines
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", first.pop("timestamp"))
    assert first == {"event": "Lost %s", "level": "error", "logger": "redis"}
    assert second["event"] == "x" * 200


def test_a_librarys_exception_is_named_and_not_quoted(log: Log) -> None:
    with log:
        try:
            _fail(0)
        except ValueError:
            logging.getLogger("redis").exception("It broke")
    [line] = log.lines
    assert line["exception"] == ["builtins.ValueError"]
    assert "p4ssw0rd" not in str(line)


@pytest.mark.parametrize("how", ["handled", "given", "as a tuple"])
def test_an_exception_is_told_by_its_name_and_places(log: Log, how: str) -> None:
    with log:
        try:
            _fail(1)
        except ValueError as error:
            info = {"handled": True, "given": error, "as a tuple": (type(error), error, error.__traceback__)}[how]
            structlog.get_logger().error("broke", exc_info=info)
    [line] = log.lines
    assert line["exception"] == ["builtins.ValueError"]
    assert [re.sub(r":\d+:", ":", frame) for frame in line["frames"]] == [
        "test_telemetry.py:test_an_exception_is_told_by_its_name_and_places",
        "test_telemetry.py:_fail",
        "test_telemetry.py:_fail",
    ]
    assert "exc_info" not in line


def test_without_an_exception_none_is_told(log: Log) -> None:
    with log:
        structlog.get_logger().error("fine", exc_info=True)
        structlog.get_logger().error("fine", exc_info=False)
        structlog.get_logger().error("fine", exc_info="text")
    assert [set(line) for line in log.lines] == [{"event", "level", "timestamp"}] * 3


def _fail_because(*, named: bool) -> None:
    try:
        _fail(0)
    except ValueError as error:
        if named:
            raise KeyError from error
        raise json.JSONDecodeError("p4ssw0rd", "", 0)  # noqa: B904 -- nobody names the cause


def test_what_caused_an_exception_is_told_too(log: Log) -> None:
    with log:
        for named in (True, False):
            with pytest.raises((KeyError, ValueError)) as raised:
                _fail_because(named=named)
            structlog.get_logger().error("broke", exc_info=raised.value)
    caused, in_context = log.lines
    assert caused["exception"] == ["builtins.KeyError", "builtins.ValueError"]
    assert in_context["exception"] == ["json.decoder.JSONDecodeError", "builtins.ValueError"]


def test_code_without_a_file_has_a_place_too(log: Log) -> None:
    given = FunctionType(compile("1 / 0", "<given>", "eval"), {})
    with log, pytest.raises(ZeroDivisionError) as raised:
        given()
    with log:
        structlog.get_logger().error("broke", exc_info=raised.value)
    [line] = log.lines
    assert line["frames"][-1] == "<given>:1:<module>"


def test_no_exception_makes_a_line_endless(log: Log) -> None:
    with log:
        chain = ValueError()
        for _ in range(9):
            further = ValueError()
            further.__cause__ = chain
            chain = further
        structlog.get_logger().error("broke", exc_info=chain)
        with pytest.raises(ValueError) as raised:  # noqa: PT011 -- its own
            _fail(60)
        structlog.get_logger().error("broke", exc_info=raised.value)
    long, deep = log.lines
    assert len(long["exception"]) == 8
    assert len(deep["frames"]) == 40
    assert deep["frames"][-1].endswith(":_fail")


def test_values_that_json_does_not_know_do_not_lose_a_line(log: Log) -> None:
    def tell() -> None:
        about(value={1})  # type: ignore[arg-type]
        structlog.get_logger().info("odd")
        logging.getLogger("redis").warning("odd")

    with log:
        copy_context().run(tell)
    assert [(line["event"], line["value"]) for line in log.lines] == [("odd", "{1}")] * 2


class _Terminal:
    """A standard error that shows what was written once it is told to."""

    def __init__(self) -> None:
        self.buffer = self
        self.shown: list[list[str]] = []
        self._written: list[bytes] = []

    def write(self, lines: bytes) -> None:
        self._written.append(lines)

    def flush(self) -> None:
        written, self._written = self._written, []
        self.shown += [[json.loads(line)["event"] for line in lines.splitlines()] for lines in written]


async def test_lines_are_written_once_in_a_turn_of_the_event_loop_and_at_once_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, terminal = structlog.get_config()["logger_factory"], _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    configure_logs("INFO")
    try:
        structlog.get_logger().info("first")
        structlog.get_logger().info("second")
        assert terminal.shown == []
        await asyncio.sleep(0)
        structlog.get_logger().info("third")
        thread = threading.Thread(target=structlog.get_logger().info, args=("another thread's",))
        thread.start()
        thread.join()
        await asyncio.sleep(0)
        assert terminal.shown == [["first", "second"], ["third", "another thread's"]]
    finally:
        monkeypatch.undo()
        configure_logs("DEBUG")
        structlog.configure(logger_factory=before)


def test_a_line_says_when(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([1_795_478_399_999_999_999, 1_795_478_400_000_000_000, 1_795_478_400_001_002_003])
    monkeypatch.setattr("service.telemetry.time.time_ns", lambda: next(moments))
    with log:
        for _ in range(3):
            structlog.get_logger().info("now")
    assert [line["timestamp"] for line in log.lines] == [
        "2026-11-23T23:59:59.999999Z",
        "2026-11-24T00:00:00.000000Z",
        "2026-11-24T00:00:00.001002Z",
    ]


def _sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_requests_and_calls_are_counted_under_their_names() -> None:
    answered("/v1/tested", "GET", 204, 0.2)
    called("tested", "refused", 0.02)
    dropped("tested")
    dropped("tested", 3)
    route, operation = {"route": "/v1/tested"}, {"operation": "tested"}
    assert _sample("omniconnect_requests_total", **route, method="GET", status="204") == 1
    assert _sample("omniconnect_request_seconds_bucket", **route, le="0.1") == 0
    assert _sample("omniconnect_request_seconds_bucket", **route, le="0.25") == 1
    assert _sample("omniconnect_upstream_calls_total", **operation, outcome="refused") == 1
    assert _sample("omniconnect_upstream_seconds_bucket", **operation, le="0.01") == 0
    assert _sample("omniconnect_upstream_seconds_bucket", **operation, le="0.025") == 1
    assert _sample("omniconnect_upstream_dropped_total", what="tested") == 4
