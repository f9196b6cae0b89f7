"""A copy of the repository that holds all mutants of some modules at once: which one runs is decided per process."""

import difflib
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import libcst as cst
from mutmut.mutation.data import LineSpan
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.mutation.mutators import mutation_operators, operator_if_exp

from tests.mutants.modules import Module

__all__ = ["ROOT", "Mutant", "copy_of_repository", "mutate", "refused_by_types"]

ROOT: Final = Path(__file__).parents[2]
_ORIGINAL: Final = "orig"
_MANGLED: Final = re.compile(rf"x(?:_|ǁ\w+ǁ)(?=\w+__mutmut_)|__mutmut_(?:{_ORIGINAL}|\d+)")
_COPIED: Final = ("service", "tests", "openapi", "deploy", "pyproject.toml", "README.md", "CHANGELOG.md", "Makefile")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One small change.

    Attributes:
        name: By which its process asks for it.
        lines: Where it stands in the mutated file.
        function: With its class.
        was: The lines that it changes, joined.
        becomes: What they become.
    """

    module: Module
    name: str
    lines: LineSpan
    function: str
    was: str
    becomes: str

    @property
    def mangled(self) -> str:
        """The function's name in the mutated file."""
        return self.name.rpartition("__mutmut_")[0]


def _never_and_always(node: cst.If | cst.IfExp) -> Iterator[cst.If | cst.IfExp]:
    # `bool()` instead of a literal, or the type checker would tell of code that is never reached.
    test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    never = cst.Call(cst.Name("bool"))
    always = cst.UnaryOperation(cst.Not(), never)
    yield node.with_changes(test=cst.BooleanOperation(test, cst.And(), never))
    yield node.with_changes(test=cst.BooleanOperation(test, cst.Or(), always))


def _left_out(node: cst.Expr) -> Iterator[cst.Pass]:
    if isinstance(node.value, cst.Call | cst.Await):
        yield cst.Pass()


# Checks that are passed by and calls that are left out: what matters most here. Of these the tool itself has only
# conditional expressions, with literals.
_OPERATORS: Final = cast("list[Any]", mutation_operators)
_OPERATORS.remove((cst.IfExp, operator_if_exp))
_OPERATORS.extend([(cst.If, _never_and_always), (cst.IfExp, _never_and_always), (cst.Expr, _left_out)])


def copy_of_repository(place: Path) -> None:
    """Copy what tests need."""
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)


def mutate(place: Path, module: Module) -> list[Mutant]:
    """Put all mutants of a module into its copy."""
    path = place / module.path
    mutated = mutate_file_contents(module.path, path.read_text(encoding="utf-8"))
    path.write_text(mutated.code, encoding="utf-8")
    lines = mutated.code.splitlines()
    spans = mutated.line_span_by_function_name
    package = module.path.removesuffix(".py").replace("/", ".")
    return [
        Mutant(module, f"{package}.{name}", spans[name], function, *_change(lines, spans[original], spans[name]))
        for name in mutated.mutant_names
        for mangled in [name.rpartition("__mutmut_")[0]]
        for original in [f"{mangled}__mutmut_{_ORIGINAL}"]
        for function in [mangled[2:].replace("ǁ", ".")]
        if not module.functions or function in module.functions
    ]


def _change(lines: Sequence[str], original: LineSpan, mutant: LineSpan) -> tuple[str, str]:
    before, after = (
        [_MANGLED.sub("", line).strip() for line in lines[span.start - 1 : span.end]] for span in (original, mutant)
    )
    diff = list(difflib.ndiff(before, after))
    return (
        " ".join(line[2:] for line in diff if line.startswith("- ")),
        " ".join(line[2:] for line in diff if line.startswith("+ ")),
    )


def refused_by_types(place: Path, mutants: Iterable[Mutant]) -> set[str]:
    """The names of those that the type checker refuses: they never get as far as a test."""
    report = subprocess.run(  # noqa: S603 -- our own command
        [
            sys.executable,
            "-m",
            "mypy",
            "--output",
            "json",
            "--cache-dir",
            str(ROOT / ".mypy_cache/mutants"),
            "--package",
            "service",
        ],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    errors: Mapping[str, set[int]] = defaultdict(set)
    for each in map(json.loads, report.stdout.splitlines()):
        if each["severity"] == "error":
            errors[each["file"]].add(each["line"])
    return set(_hit(mutants, errors))


def _hit(mutants: Iterable[Mutant], errors: Mapping[str, set[int]]) -> Iterator[str]:
    for mutant in mutants:
        lines = range(mutant.lines.start, mutant.lines.end + 1)
        if not errors[mutant.module.path].isdisjoint(lines):
            yield mutant.name
