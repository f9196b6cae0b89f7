"""What every row is given."""

import sys
from dataclasses import dataclass, field

from tests.load.measure import Effort, Measure
from tests.load.processes import Place

__all__ = ["Run"]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the benchmark.

    Attributes:
        notes: What a reader of the figures must know.
    """

    place: Place
    effort: Effort
    measures: list[Measure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def measure(self, *measures: Measure) -> None:
        """Take up what a row is going to fill."""
        self.measures.extend(measures)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def say(self, text: str) -> None:
        """Tell whoever waits what is being done."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
