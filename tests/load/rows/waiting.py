"""Row 5: thousands who wait for the end of their jobs, on streams and on held requests."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import uvloop

from tests.load.client import Broken, Connection, Stream
from tests.load.machine import free_descriptors
from tests.load.measure import Goal, Measure
from tests.load.peers.start import ours
from tests.load.processes import Server
from tests.load.run import Run
from tests.load.upstreams.crowd import username
from tests.load.upstreams.start import Crowd, crowd
from tests.load.walks import pending

__all__ = ["waiters"]

_EACH: Final = 3
"""Waiters of one session: as many streams as it may have."""

_SPARE_DESCRIPTORS: Final = 2000
_OPENED_AT_ONCE: Final = 32
_ASKED_IN_A_SECOND: Final = 1000
"""Held requests cannot be seen to have arrived, so they come no faster than they are surely taken."""

_SETUP_SECONDS: Final = 120.0
_REST_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 5.0
"""The slowest pace at which the vendor is asked about a job; this row measures waiters, not what jobs cost."""

_TOLD_SECONDS: Final = 60.0
_WAIT_SECONDS: Final = 25
_KB: Final = 1024


@dataclass(frozen=True, slots=True)
class _Waited:
    """A session with a validation that does not end by itself."""

    origin: str
    username: str
    path: str
    token: str
    validation_id: str


@dataclass(slots=True)
class _Waiters:
    """Everybody who waits.

    Attributes:
        told: When whose waiters were told, by user name.
        faults: Why some never will be.
        all_known: Set when all were told, or never will be.
    """

    how_many: int
    told: list[tuple[str, float]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    all_known: asyncio.Event = field(default_factory=asyncio.Event)
    held: list[Stream | asyncio.Task[None]] = field(default_factory=list)

    def tell(self, username: str, moment: float) -> None:
        """One of them was told."""
        self.told.append((username, moment))
        self._look()

    def fail(self, fault: str) -> None:
        """One of them will not be told."""
        self.faults.append(fault)
        self._look()

    def _look(self) -> None:
        if len(self.told) + len(self.faults) >= self.how_many:
            self.all_known.set()

    @property
    def fault(self) -> str:
        """What went wrong first."""
        return self.faults[0] if self.faults else "time was over"

    def leave(self) -> None:
        """Let everybody go."""
        for each in self.held:
            if isinstance(each, Stream):
                each.close()
            else:
                each.cancel()


_Open = Callable[[_Waiters, Sequence[_Waited]], Awaitable[None]]


def waiters(run: Run) -> None:
    """Streams first, then `Prefer: wait`, each with a fresh process."""
    sessions = min(run.effort.waiting, (free_descriptors() - _SPARE_DESCRIPTORS) // _EACH)
    if sessions < run.effort.waiting:
        run.note(f"row 5 has only {sessions * _EACH} waiters: more files may not be open here")
    how_many = f"{sessions * _EACH} waiters of {sessions} sessions"
    streams, held = "streams", "Prefer: wait"
    table = _Table(
        memory=Measure(5, f"{how_many}: memory per waiter", "KB", Goal.below(32, "at most 32 KB", subject=streams)),
        idle=Measure(5, "CPU of the server's core while idle", "%"),
        last=Measure(5, "jobs' end to last told", "s"),
        spread=Measure(5, "first told to last told", "s"),
        after=Measure(
            5, "vendor's word on a job to its last waiter told, longest", "s", Goal.below(1.0, "1 s", subject=streams)
        ),
        lost=Measure(5, "never told", "", Goal.below(0, "none", subject=streams)),
    )
    run.note(f"row 5: jobs are polled every {_POLL_SECONDS:g} s, so their ends are heard of as long after each other")
    run.measure(table.memory, table.idle, table.last, table.spread, table.after, table.lost)
    for name, opener in ((streams, _open_streams), (held, _open_held)):
        with (
            run.place.store() as store,
            crowd(run.place, sessions) as upstream,
            ours(run.place, store=store, upstream=upstream.url, POLL_SECONDS=str(_POLL_SECONDS)) as server,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(_watch(run, table, name, opener=opener, sessions=sessions, server=server, upstream=upstream))


@dataclass(frozen=True, slots=True)
class _Table:
    """What is filled by both kinds."""

    memory: Measure
    idle: Measure
    last: Measure
    spread: Measure
    after: Measure
    lost: Measure

    def __post_init__(self) -> None:
        for each in (self.memory, self.idle, self.last, self.spread, self.after, self.lost):
            each.base = None


async def _watch(
    run: Run, table: _Table, name: str, *, opener: _Open, sessions: int, server: Server, upstream: Crowd
) -> None:
    run.say(f"  {name}: {sessions} sessions")
    turns = asyncio.Semaphore(_OPENED_AT_ONCE)

    async def one(number: int) -> _Waited:
        person = username("user_never", number)
        return _Waited(server.origin, person, *await pending(server.origin, person, turns))

    opening = [asyncio.create_task(one(number)) for number in range(sessions)]
    await asyncio.wait(opening, timeout=_SETUP_SECONDS)
    waited = [each.result() for each in opening if each.done() and each.exception() is None]
    for each in opening:
        each.cancel()
    if len(waited) < sessions:
        run.note(f"row 5, {name}: only {len(waited)} of {sessions} sessions were open after {_SETUP_SECONDS:.0f} s")
    how_many = len(waited) * _EACH
    await asyncio.sleep(_REST_SECONDS)
    table.idle.add("no waiters", await _cpu_percent(server, run.effort.idle_seconds))
    before = server.resident_mb()
    run.say(f"  {name}: {how_many} waiters")
    everybody = _Waiters(how_many)
    try:
        await opener(everybody, waited)
        if len(everybody.held) < how_many:
            run.note(f"row 5, {name}: only {len(everybody.held)} of {how_many} waiters; {everybody.fault}")
        how_many = everybody.how_many = len(everybody.held)
        await asyncio.sleep(_REST_SECONDS)
        table.idle.add(name, await _cpu_percent(server, run.effort.idle_seconds))
        table.memory.add(name, (server.resident_mb() - before) * _KB / max(1, how_many))
        ended = await asyncio.to_thread(upstream.finish_jobs)
        with suppress(TimeoutError):
            async with asyncio.timeout(_TOLD_SECONDS):
                await everybody.all_known.wait()
        _tell(table, name, everybody, ended, await asyncio.to_thread(upstream.told))
        if len(everybody.told) < how_many:
            run.note(f"row 5, {name}: {how_many - len(everybody.told)} were never told; {everybody.fault}")
        table.lost.add(name, how_many - len(everybody.told))
    finally:
        everybody.leave()


def _tell(table: _Table, name: str, everybody: _Waiters, ended: float, said: dict[str, float]) -> None:
    if not everybody.told:
        return
    times = [moment for _, moment in everybody.told]
    table.last.add(name, max(times) - ended)
    table.spread.add(name, max(times) - min(times))
    table.after.add(name, max(moment - said.get(person, ended) for person, moment in everybody.told))


async def _cpu_percent(server: Server, seconds: float) -> float:
    used, started = server.cpu_seconds(), time.monotonic()
    await asyncio.sleep(seconds)
    return 100 * (server.cpu_seconds() - used) / (time.monotonic() - started)


async def _open_streams(everybody: _Waiters, waited: Sequence[_Waited]) -> None:
    turns = asyncio.Semaphore(_OPENED_AT_ONCE)

    async def open_one(each: _Waited) -> None:
        stream = Stream(b"\nevent: validation.succeeded", lambda now: everybody.tell(each.username, now))
        async with turns:
            try:
                await stream.open(each.origin, f"{each.path}/events", token=each.token)
            except Broken as error:
                everybody.fail(str(error))
            else:
                everybody.held.append(stream)

    opening = [asyncio.create_task(open_one(each)) for each in waited for _ in range(_EACH)]
    await asyncio.wait(opening, timeout=_SETUP_SECONDS)
    for each in opening:
        each.cancel()


async def _open_held(everybody: _Waiters, waited: Sequence[_Waited]) -> None:
    async def hold(each: _Waited) -> None:
        try:
            await _hold_until_told(each)
        except Broken as error:
            everybody.fail(str(error))
        else:
            everybody.tell(each.username, time.monotonic())

    started = time.monotonic()
    for number, each in enumerate(each for each in waited for _ in range(_EACH)):
        everybody.held.append(asyncio.create_task(hold(each)))
        await asyncio.sleep(max(0.0, started + number / _ASKED_IN_A_SECOND - time.monotonic()))


async def _hold_until_told(each: _Waited) -> None:
    target, prefer = f"{each.path}/validations/{each.validation_id}", {"Prefer": f"wait={_WAIT_SECONDS}"}
    async with Connection.to(each.origin) as connection:
        while True:
            answer = await connection.send("GET", target, token=each.token, headers=prefer)
            state = answer.json()["validation"]["state"] if answer.status == 200 else str(answer.status)
            if state == "succeeded":
                return
            if state != "pending":
                raise Broken(state)
