"""Asks a worker about one mutant after the other."""

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import IO, Final, Literal

from tests.mutants.making import Mutant
from tests.mutants.modules import Module
from tests.mutants.worker import HITS, STATS

__all__ = ["Broken", "Tester", "Verdict", "tester"]

_LONGEST_SECONDS: Final = 300.0
_MORE_SECONDS: Final = 20.0
"""Besides thrice what all tests of the module take without a mutant; what needs longer will not end."""

_MOST_FIRST: Final = 8


class Broken(Exception):
    """The tests say nothing."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant; the test that killed it, if it was one."""

    fate: Literal["killed", "timeout", "survived"]
    test: str = ""


class Tester:
    """Tests mutants, each with the tests that reach it: what killed its neighbours first, then the quickest."""

    def __init__(self, place: Path, questions: IO[str], answers: IO[str]) -> None:
        self._hits = place / HITS
        self._questions = questions
        self._answers = answers
        self._killers: dict[str, list[str]] = defaultdict(list)
        self._reaching: dict[str, list[str]] = {}
        self._seconds = _LONGEST_SECONDS

    def check(self, module: Module) -> None:
        """Let the tests pass once on what is not mutated, and note which functions each of them reaches.

        Raises:
            Broken: They do not pass.
        """
        self._hits.unlink(missing_ok=True)
        self._seconds = _LONGEST_SECONDS
        began = time.monotonic()
        verdict = self._ask(STATS, module.tests, ())
        self._seconds = _MORE_SECONDS + 3 * (time.monotonic() - began)
        if verdict.fate != "survived":
            raise Broken(
                f"{module.path}: without a mutant its tests do not pass either: {verdict.test or verdict.fate}"
            )
        reaching = defaultdict(list)
        for hit in sorted(map(json.loads, self._hits.open(encoding="utf-8")), key=itemgetter("seconds")):
            for function in hit["functions"]:
                reaching[function].append(hit["test"])
        self._reaching = dict(reaching)

    def test(self, mutant: Mutant) -> Verdict:
        """Whether a mutant survives."""
        near, far = self._killers[mutant.mangled], self._killers[mutant.module.path]
        # What is shared by several tests was made in the first one.
        tests = self._reaching.get(mutant.mangled) if not mutant.mangled.endswith("__") else None
        first = list(dict.fromkeys([*reversed(near), *reversed(far)]))[:_MOST_FIRST]
        verdict = self._ask(mutant.name, tests or mutant.module.tests, first)
        for killers in (near, far) if verdict.test else ():
            if verdict.test in killers:
                killers.remove(verdict.test)
            killers.append(verdict.test)
        return verdict

    def _ask(self, name: str, tests: Sequence[str], first: Sequence[str]) -> Verdict:
        question = {"name": name, "tests": tests, "first": first, "seconds": self._seconds}
        self._questions.write(json.dumps(question) + "\n")
        self._questions.flush()
        answer = self._answers.readline()
        if not answer:
            raise Broken("the worker has ended")
        return Verdict(**json.loads(answer))


@contextmanager
def tester(place: Path, modules: Sequence[Module]) -> Iterator[Tester]:
    """A worker in a copy of the repository."""
    tests = sorted({test for module in modules for test in module.tests})
    with subprocess.Popen(  # noqa: S603 -- our own command
        [sys.executable, "-m", "tests.mutants.worker", *tests],
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            yield Tester(place, worker.stdin, worker.stdout)
        finally:
            worker.stdin.close()
