"""What is measured: samples by subject, and the goal that is set for ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

__all__ = ["OURS", "Effort", "Goal", "Measure"]

OURS: Final = "ours"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done for the figures.

    Attributes:
        repeats: Measurements of each subject, interleaved with the others'.
        seconds: Each of them.
        walkers: Persons who link at the same time.
        rounds: How often they do so, with short jobs.
        waiting: Sessions with three waiters each.
        idle_seconds: How long waiters are watched doing nothing.
        callers: Cold callers at the same time.
        starts: Measured starts.
        links: For the leak check: one a second for an hour.
    """

    repeats: int = 5
    seconds: float = 3
    walkers: int = 240
    rounds: int = 2
    waiting: int = 3334
    idle_seconds: float = 8
    callers: int = 1000
    starts: int = 5
    links: int = 3600

    @classmethod
    def quick(cls) -> "Effort":
        """Enough to see that everything runs; its figures say nothing."""
        return cls(1, 1, 30, 1, 100, 2, 100, 1, 100)


@dataclass(frozen=True, slots=True)
class Goal:
    """What ours should reach.

    Attributes:
        holds: Given the medians of all subjects.
    """

    text: str
    holds: Callable[[Mapping[str, float]], bool]

    @classmethod
    def below(cls, most: float, text: str, *, subject: str = OURS) -> "Goal":
        """Not more than so much."""
        return cls(text, lambda medians: medians.get(subject, most + 1) <= most)

    @classmethod
    def above(cls, least: float, text: str, *, subject: str = OURS) -> "Goal":
        """Not less than so much."""
        return cls(text, lambda medians: medians.get(subject, least - 1) >= least)


@dataclass(slots=True)
class Measure:
    """One quantity.

    Attributes:
        base: Whose ratio to the others is told; None if none makes sense.
    """

    row: int
    name: str
    unit: str
    goal: Goal | None = None
    base: str | None = OURS
    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, subject: str, value: float) -> None:
        """One more sample."""
        self.samples.setdefault(subject, []).append(value)

    def medians(self) -> dict[str, float]:
        """By subject."""
        return {subject: median(values) for subject, values in self.samples.items()}

    def ratio(self, subject: str) -> float | None:
        """The base's median through a subject's."""
        medians = self.medians()
        if self.base is None or subject == self.base or self.base not in medians or not medians[subject]:
            return None
        return medians[self.base] / medians[subject]

    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        return self.goal.holds(self.medians()) if self.goal else None

    def as_json(self) -> dict[str, Any]:
        """Everything, with all samples."""
        told = {
            subject: {
                "median": median(values),
                "min": min(values),
                "max": max(values),
                "ratio": self.ratio(subject),
                "samples": values,
            }
            for subject, values in self.samples.items()
        }
        goal = {"text": self.goal.text, "met": self.met()} if self.goal else None
        return {
            "row": self.row,
            "name": self.name,
            "unit": self.unit,
            "goal": goal,
            "base": self.base,
            "subjects": told,
        }
