"""Mutants that nobody can tell from the original, each with the reason."""

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from tests.mutants.making import Mutant
from tests.mutants.modules import Module

__all__ = ["Equivalents"]

_FILE: Final = Path(__file__).parent / "equivalent.toml"
_MARKS: Final = ("XX", "~~")
"""What mutmut puts around texts, and how the list has it: the first looks like an unfinished place."""


@dataclass(frozen=True, slots=True)
class _Change:
    module: str
    function: str
    change: str


@dataclass(frozen=True, slots=True)
class Equivalents:
    """What was accepted, and what of it was found again."""

    _accepted: frozenset[_Change]
    _found: set[_Change] = field(default_factory=set)

    @classmethod
    def load(cls) -> Self:
        """Read the list: groups of one function, with one reason each."""
        groups = tomllib.loads(_FILE.read_text(encoding="utf-8")).get("group", [])
        missing = [group["function"] for group in groups if not group["reason"]]
        if missing:
            raise ValueError(f"no reason is given for {', '.join(missing)}")
        return cls(
            frozenset(
                _Change(group["module"], group["function"], change) for group in groups for change in group["changes"]
            )
        )

    def hold(self, mutant: Mutant) -> bool:
        """Whether a mutant is one of them."""
        change = _Change(mutant.module.path, mutant.function, f"{mutant.was} -> {mutant.becomes}".replace(*_MARKS))
        if change not in self._accepted:
            return False
        self._found.add(change)
        return True

    def stale(self, modules: Sequence[Module]) -> Iterator[str]:
        """Those whose code has changed."""
        paths = {module.path for module in modules}
        for change in self._accepted - self._found:
            if change.module in paths:
                yield f"{change.module} {change.function}: {change.change}"
