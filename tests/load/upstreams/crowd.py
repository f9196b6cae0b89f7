"""The sandbox with thousands of people, so that everybody who links has accounts of their own.

`python -m tests.load.upstreams.crowd PORT PEOPLE` reads commands from standard input, one a line, and answers each with
a line of JSON. Times are of the machine's monotonic clock.

| command | what it does | answer |
|---|---|---|
| `calls` | | how many of each kind so far |
| `finish` | ends all running jobs well | when it began to |
| `told` | | when a job was first told to have ended, by user name |
| `slow-tokens` | lets tokens take a while from now on | seconds |
"""

import sys
import time
from collections import Counter
from dataclasses import replace
from typing import Final

import orjson
from typing_extensions import override

from service.sandbox.companies import Company
from service.sandbox.people import PEOPLE
from service.sandbox.server import SandboxServer
from service.sandbox.world import Job, World

__all__ = ["main", "username"]

_TOKEN_SECONDS: Final = 0.2
_CROWDED: Final = ("user_good", "user_slow", "user_quick", "user_never")


def username(person: str, number: int) -> str:
    """Somebody with whom all goes as with `person`."""
    return f"{person}.{number}"


class _World(World):
    """Remembers its jobs, and when their ends were told."""

    def __init__(self) -> None:
        super().__init__()
        self._running: list[str] = []
        self.told: dict[str, float] = {}

    @override
    def create_job(self, company: Company, username: str, password: str) -> Job:
        job = super().create_job(company, username, password)
        self._running.append(job.id)
        return job

    @override
    def job(self, job_id: str) -> Job | None:
        job = super().job(job_id)
        if job is not None and job.finished:
            self.told.setdefault(job.username, time.monotonic())
        return job

    def finish_all(self) -> None:
        """End everything that runs."""
        running, self._running = self._running, []
        for job_id in running:
            job = super().job(job_id)
            if job is not None and not job.finished:
                self.finish(job_id, "success")


def main() -> None:
    """Serve until standard input ends, which it does with whoever started this."""
    for name in _CROWDED:
        for number in range(int(sys.argv[2])):
            called = username(name, number)
            PEOPLE[called] = replace(PEOPLE[name], username=called)
    world = _World()
    with SandboxServer(port=int(sys.argv[1]), world=world):
        for line in sys.stdin:
            sys.stdout.buffer.write(orjson.dumps(_obey(world, line.strip())) + b"\n")
            sys.stdout.buffer.flush()


def _obey(world: _World, command: str) -> object:
    match command:
        case "calls":
            return Counter(call.route or "unknown" for call in world.calls.all())
        case "finish":
            started = time.monotonic()
            world.finish_all()
            return started
        case "told":
            return world.told
        case "slow-tokens":
            world.faults.add("token", "delay", value=_TOKEN_SECONDS, times=None)
            return _TOKEN_SECONDS
        case _:
            raise ValueError(command)


if __name__ == "__main__":
    main()
