"""The table, and the file with all samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import orjson
from rich.console import Console
from rich.table import Table

from tests.load.measure import Measure

__all__ = ["show", "write"]

_DECIMALS_BELOW: Final = ((0.1, 3), (10, 2), (1000, 1))


def show(console: Console, measures: Sequence[Measure], notes: Sequence[str]) -> None:
    """Print one table: medians with their extremes, and how the base compares to each peer of the same run."""
    table = Table(title="ratio: ours through theirs, by medians", title_justify="left")
    for heading in ("", "what", "who"):
        table.add_column(heading)
    for heading in ("median", "min", "max"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    table.add_column("ratio", justify="right")
    table.add_column("goal")
    for measure in measures:
        for number, (subject, values) in enumerate(measure.samples.items()):
            first = number == 0
            ratio = measure.ratio(subject)
            table.add_row(
                str(measure.row) if first else "",
                measure.name if first else "",
                subject,
                *map(_figure, (median(values), min(values), max(values))),
                measure.unit,
                f"{_figure(ratio)} x" if ratio is not None else "",
                _goal(measure) if first else "",
            )
        table.add_section()
    console.print(table)
    for note in notes:
        console.print(f"- {note}", highlight=False, markup=False)


def write(path: Path, measures: Sequence[Measure], notes: Sequence[str], about: Mapping[str, Any]) -> None:
    """Write everything down."""
    content = {**about, "notes": notes, "measures": [each.as_json() for each in measures]}
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")


def _goal(measure: Measure) -> str:
    if measure.goal is None:
        return ""
    return f"[green]met[/]: {measure.goal.text}" if measure.met() else f"[red]missed[/]: {measure.goal.text}"


def _figure(value: float) -> str:
    if value == round(value):
        return f"{value:,.0f}"
    for bound, decimals in _DECIMALS_BELOW:
        if abs(value) < bound:
            return f"{value:.{decimals}f}"
    return f"{value:,.0f}"
