"""Runs tests of mutants, each in a process that is forked from one in which all tests are collected already.

Reads one JSON object per line: `name`, `tests`, `first` (of these, what to begin with) and `seconds`. Answers with
`fate` and `test`, the one that failed. The name `stats` is no mutant: with it each test writes a line to `HITS`, with
`test`, `seconds` and the `functions` that it reached. Started in the copy that holds the mutants, with all tests as
arguments.
"""

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, Final

import pytest
from mutmut.mutation.trampoline import get_mutant_under_test, set_mutant_under_test
from mutmut.state import state

__all__ = ["HITS", "STATS", "main"]

STATS: Final = "stats"
HITS: Final = "hits.jsonl"

_OPTIONS: Final = (
    "--override-ini=addopts=",
    "--quiet",
    "--tb=no",
    "--timeout=30",
    "-pno:cacheprovider",
    # Both collect garbage at the end, several times: half of what a mutant costs.
    "-pno:unraisableexception",
    "-pno:threadexception",
)
_LOOK_AGAIN_SECONDS: Final = 0.01


class _Forks:
    """In place of pytest's own loop over the tests."""

    def __init__(self, questions: Iterable[str], answers: IO[str]) -> None:
        self._questions = questions
        self._answers = answers
        self._failed = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self._failed:
            self._failed = report.nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        gc.freeze()
        for line in self._questions:
            self._answers.write(json.dumps(self._answer(session, **json.loads(line))) + "\n")
        return True

    def _answer(
        self, session: pytest.Session, name: str, tests: Sequence[str], first: Sequence[str], seconds: float
    ) -> dict[str, Any]:
        rank = {test: number for number, test in enumerate(first)}
        chosen = [item for test in tests for item in session.items if _belongs(item.nodeid, test)]
        chosen.sort(key=lambda item: rank.get(item.nodeid, len(rank)))
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setpgid(0, 0)
                set_mutant_under_test(name)
                self._run(session, chosen)
                os.write(writing, self._failed.encode()[:1024])
            finally:
                os._exit(1 if self._failed or sys.exc_info()[0] else 0)
        os.close(writing)
        try:
            return {"fate": _ended(child, time.monotonic() + seconds), "test": os.read(reading, 1024).decode()}
        finally:
            os.close(reading)

    def _run(self, session: pytest.Session, items: Sequence[pytest.Item]) -> None:
        for item, following in zip(items, [*items[1:], None], strict=True):
            began = time.monotonic()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._failed:
                break
            if get_mutant_under_test() == STATS:
                _note(item.nodeid, time.monotonic() - began)
        session._setupstate.teardown_exact(None)


def _note(test: str, seconds: float) -> None:
    reached = state()._stats
    with Path(HITS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"test": test, "seconds": seconds, "functions": sorted(reached)}) + "\n")
    reached.clear()


def _belongs(item: str, test: str) -> bool:
    return item == test or item.startswith((f"{test}::", f"{test}["))


def _ended(child: int, give_up: float) -> str:
    while time.monotonic() < give_up:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return "killed" if status else "survived"
        time.sleep(_LOOK_AGAIN_SECONDS)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def main() -> None:
    """Answer until there is nothing more to read."""
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    pytest.main([*_OPTIONS, *sys.argv[1:]], plugins=[_Forks(questions, answers)])


if __name__ == "__main__":
    main()
