"""Load from wrk: a closed loop of so many connections."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from tests.load.processes import Place, StartFailed

__all__ = ["Burst", "Lines", "burst", "write_lines"]

_SCRIPT: Final = Path(__file__).parent / "wrk.lua"
_SPARE_SECONDS: Final = 60
_TIMEOUT_SECONDS: Final = 10

Lines = Sequence[tuple[str, str | None]]
"""Path and bearer token of each request."""


@dataclass(frozen=True, slots=True)
class Burst:
    """What came of it.

    Attributes:
        answers: All that came, whatever their status.
        failed: Answers that were errors, connections that broke, and answers that took too long.
        p50_ms: Of all answers.
    """

    answers: int
    seconds: float
    failed: int
    p50_ms: float
    p99_ms: float

    @property
    def per_second(self) -> float:
        """Good answers in a second."""
        return max(0, self.answers - self.failed) / self.seconds


def write_lines(place: Place, name: str, lines: Lines) -> Path:
    """A file of requests for wrk."""
    path = place.home / f"{name}.requests"
    path.write_text("".join(f"{target} {token or '-'}\n" for target, token in lines), encoding="ascii")
    return path


def burst(origin: str, lines: Path, *, connections: int, seconds: float) -> Burst:
    """Ask for the lines in turn, for so long.

    Raises:
        StartFailed: wrk did not tell a result.
    """
    command = [
        shutil.which("wrk") or "wrk",
        *("--threads", "1", "--connections", str(connections), "--duration", f"{max(1, round(seconds))}s"),
        *("--timeout", f"{_TIMEOUT_SECONDS}s", "--script", str(_SCRIPT), origin, "--", str(lines)),
    ]
    ran = subprocess.run(  # noqa: S603 -- our own words
        command, capture_output=True, text=True, check=False, timeout=seconds + _SPARE_SECONDS
    )
    told = next((line for line in ran.stdout.splitlines() if line.startswith("RESULT ")), None)
    if told is None:
        raise StartFailed(f"wrk told no result: {ran.stdout[-500:]}{ran.stderr[-500:]}")
    result = orjson.loads(told.removeprefix("RESULT "))
    return Burst(
        answers=result["answers"],
        seconds=result["micros"] / 1_000_000,
        failed=result["bad"] + result["broken"] + result["late"],
        p50_ms=result["p50"] / 1000,
        p99_ms=result["p99"] / 1000,
    )
