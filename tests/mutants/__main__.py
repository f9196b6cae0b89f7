"""`python -m tests.mutants [module ...]`: breaks the code in small ways, and demands that tests see it.

Mutants are mutmut's and some of ours. Those that the type checker refuses and those that are accepted as equivalent are
told and left out of the share: it is of mutants that could have come as far as a deployment. mutmut's own runner takes
tests only by what they reach, and the code that every request passes is reached by nearly all of them.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from tests.mutants import checks
from tests.mutants.equivalent import Equivalents
from tests.mutants.making import Mutant, copy_of_repository, mutate, refused_by_types
from tests.mutants.modules import MODULES, Module
from tests.mutants.running import Broken, Tester, Verdict, tester

__all__ = ["main"]

_LEAST: Final = 0.9
_WIDTH: Final = 140
_COLUMNS: Final = ("mutants", "refused by types", "equivalent", "killed", "of these by time", "survived", "share")


def main() -> None:
    """Run what was asked for; fail if too much survives."""
    names = [module.path for module in MODULES]
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument(
        "what", nargs="*", metavar="module", help=f"{', '.join(names)}, or checks; all if none is named"
    )
    asked = parser.parse_args().what or [*names, checks.NAME]
    if unknown := set(asked) - {*names, checks.NAME}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    modules = [module for module in MODULES if module.path in asked]
    try:
        good = _modules(console, modules) if modules else True
        good &= checks.run(console) if checks.NAME in asked else True
    except Broken as error:
        sys.exit(str(error))
    if not good:
        sys.exit("Too much survives")


def _modules(console: Console, modules: Sequence[Module]) -> bool:
    equivalents = Equivalents.load()
    table = Table("module", *_COLUMNS)
    good = True
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        place = Path(directory)
        copy_of_repository(place)
        mutants = {module.path: mutate(place, module) for module in modules}
        console.print(f"{sum(map(len, mutants.values()))} mutants; asking the type checker first")
        refused = refused_by_types(place, chain.from_iterable(mutants.values()))
        with tester(place, modules) as tests:
            for module in modules:
                own = mutants[module.path]
                tested = [mutant for mutant in own if mutant.name not in refused]
                wanted = [mutant for mutant in tested if not equivalents.hold(mutant)]
                try:
                    tests.check(module)
                except Broken as error:
                    console.print(str(error), style="red", markup=False)
                    good = False
                    continue
                fates = [_fate(console, tests, mutant) for mutant in wanted]
                survived, killed = fates.count("survived"), len(fates) - fates.count("survived")
                share = killed / len(fates) if fates else 1
                good &= share >= _LEAST
                figures = (len(own), len(own) - len(tested), len(tested) - len(wanted), killed, fates.count("timeout"))
                table.add_row(module.path, *map(str, (*figures, survived)), f"{share:.1%}")
    console.print(table)
    for stale in equivalents.stale(modules):
        console.print(f"not found any more: {stale}", style="red", markup=False)
        good = False
    return good


def _fate(console: Console, tests: Tester, mutant: Mutant) -> str:
    verdict = tests.test(mutant)
    _tell(console, mutant, verdict)
    return verdict.fate


def _tell(console: Console, mutant: Mutant, verdict: Verdict) -> None:
    console.print(f"{verdict.fate:9}{mutant.module.path} {mutant.function}", markup=False, highlight=False)
    console.print(f"  - {mutant.was}\n  + {mutant.becomes}", markup=False, highlight=False, soft_wrap=True)
    if verdict.test:
        console.print(f"  {verdict.test}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
