"""`python -m tests.load`: measures this service beside its peers, and prints one table."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console

from service.serve import ended_by_signal
from tests.load import report
from tests.load.client import Broken
from tests.load.machine import Cores, facts, free_descriptors, missing_tools, noise
from tests.load.measure import Effort
from tests.load.processes import StartFailed, opened_place
from tests.load.rows import ROWS
from tests.load.run import Run

__all__ = ["main"]

_RESULTS: Final = Path(__file__).parent / "results.json"
_WIDTH: Final = 180
_NOTES: Final = (
    "server and peers: one worker each, on one core; load, store and upstream share the other",
    "CPU per request and links per CPU second count the server's process, not the store's",
    "ours writes its log lines as it does in production; the peers write no access log",
)


def main() -> None:
    """Run the rows that were asked for."""
    asked = _parser().parse_args()
    missing = missing_tools()
    if missing:
        sys.exit(f"Install first: apt-get install {' '.join(missing)}")
    cores = Cores.choose()
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    about = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "machine": facts(), "quick": asked.quick}
    free_descriptors()
    before = noise(cores)
    broken = False
    with ended_by_signal(), opened_place(cores) as place:
        run = Run(place, Effort.quick() if asked.quick else Effort(), notes=list(_NOTES))
        if cores.server == cores.load:
            run.note("there is one core only: server and load take it from each other")
        if asked.quick:
            run.note("a quick run: it shows that everything works, its figures say nothing")
        for number in asked.rows:
            run.say(f"row {number}")
            try:
                ROWS[number](run)
            except (StartFailed, Broken) as error:
                run.note(f"row {number} was broken off: {error}")
                broken = True
    about["noise"] = {"before": before, "after": noise(cores)}
    measured = [each for each in run.measures if each.samples]
    console.print(_told(about))
    report.show(console, measured, run.notes)
    report.write(asked.output, measured, run.notes, about)
    console.print(f"Written to {asked.output}", highlight=False)
    sys.exit(1 if broken else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.load",
        description="Measure this service beside its peers. Starts everything itself; takes a quarter of an hour.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"row {number}  {(row.__doc__ or '').strip()}" for number, row in ROWS.items()),
    )
    parser.add_argument("--rows", type=_rows, default=list(ROWS), metavar="1,2", help="only these rows")
    parser.add_argument("--quick", action="store_true", help="a smoke run: once, a second each, few callers")
    parser.add_argument("--output", type=Path, default=_RESULTS, help="where the samples go (default: %(default)s)")
    return parser


def _rows(text: str) -> Sequence[int]:
    try:
        rows = sorted({int(each) for each in text.split(",")})
    except ValueError:
        rows = []
    if not rows or not set(rows) <= set(ROWS):
        raise argparse.ArgumentTypeError(f"rows are {', '.join(map(str, ROWS))}, separated by commas")
    return rows


def _told(about: dict[str, object]) -> str:
    lines = []
    for title in ("machine", "noise"):
        told = about[title]
        if isinstance(told, dict):
            lines.append(f"{title}: " + ", ".join(f"{name} {value}" for name, value in told.items()))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
