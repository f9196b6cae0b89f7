"""Processes of the service that strike themselves down, or stand still, at one point of a flow.

A point is an await of a Redis command or of a vendor call that a request, or a task that it started, comes to: its
name, which of several of this name it is, and whether before or after. A process that lists its points tells all that
it comes to, so that tests take them from there and miss none.
"""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any, Final, Literal, NamedTuple, TypeVar

import httpx

from service.link import refresh
from service.link.attempt import Patience
from service.settings import SANDBOX_API_KEY, Settings
from service.stores.connection import Store
from service.stores.scripts import load, names
from service.upstream.transport import Transport
from service.wiring import Timing
from tests.conftest import running_replica
from tests.plain import NO_TLS
from tests.processes import FORKS, eventually
from tests.walk import Walk

__all__ = ["LEASE_SECONDS", "TIMING", "Moment", "Point", "Victim", "victim"]

LEASE_SECONDS: Final = float(os.environ.get("FAULT_LEASE_SECONDS", "0.4"))
"""Of all that whoever takes part holds: what a process held that is gone, or stands still, is over soon."""

TIMING: Final = Timing(claim_lease=LEASE_SECONDS, sent_lease=LEASE_SECONDS, patience=Patience(mark=LEASE_SECONDS / 4))

Moment = Literal["before", "after"]
_T = TypeVar("_T")
_FLOWS: Final = ("/validations", "/links")
_in_flow: ContextVar[bool] = ContextVar("in flow", default=False)


class Point(NamedTuple):
    """Where to strike; `number` counts from 1."""

    operation: str
    number: int
    moment: Moment


class _Points:
    """Comes by at each point."""

    def __init__(self, heard: Connection, strike: Point | None, number: signal.Signals) -> None:
        self._heard = heard
        self._strike = strike
        self._signal = number
        self._seen: Counter[str] = Counter()

    async def around(self, operation: str, work: Awaitable[_T]) -> _T:
        if not _in_flow.get():
            return await work
        self._seen[operation] += 1
        number = self._seen[operation]
        self._pass(Point(operation, number, "before"))
        answer = await work
        self._pass(Point(operation, number, "after"))
        return answer

    def _pass(self, point: Point) -> None:
        if self._strike is None:
            self._heard.send(point)
        elif point == self._strike:
            self._heard.send(point)
            os.kill(os.getpid(), self._signal)


def _scripts() -> dict[str, str]:
    """Names, by all that a command may call them by."""
    return {called: name for name in names() for called in (load(name).text, load(name).digest)}


def _instrument(points: _Points) -> None:
    command, exchange = Store._command, Transport._exchange
    scripts = _scripts()

    async def command_or_strike(self: Store, *parts: str | int) -> Any:
        name = scripts[str(parts[1])] if parts[0] in {"EVALSHA", "EVAL"} else _name_of(*parts)
        return await points.around(name, command(self, *parts))

    async def exchange_or_strike(self: Transport, client: Any, method: str, url: str, **rest: Any) -> Any:
        steps = url.split("/api/", 1)[1].split("/")
        route = steps[-1] if steps[-1] == "batch" else steps[0]
        return await points.around(f"{method} {route}", exchange(self, client, method, url, **rest))

    Store._command = command_or_strike  # type: ignore[method-assign]
    Transport._exchange = exchange_or_strike  # type: ignore[method-assign]


def _name_of(command: str | int, key: str | int = "", *_: str | int) -> str:
    """A command on a kind of key: its hash tag tells of what."""
    return f"{command} {str(key).partition('{')[2][:1]}"


def _run(settings: Settings, heard: Connection, strike: Point | None, number: signal.Signals) -> None:
    refresh._LEASE_MS = int(LEASE_SECONDS * 1000)  # type: ignore[misc]
    _instrument(_Points(heard, strike, number))
    asyncio.run(_serve(settings, heard))


async def _serve(settings: Settings, heard: Connection) -> None:
    async with running_replica(settings, timing=TIMING) as replica:
        inner = replica.app.middleware_stack

        async def marking_flows(scope: Any, receive: Any, send: Any) -> None:
            _in_flow.set(scope.get("method") == "POST" and scope["path"].endswith(_FLOWS))
            await inner(scope, receive, send)

        replica.app.middleware_stack = marking_flows
        heard.send(replica.url)
        await asyncio.Event().wait()


class Victim:
    """One such process, and a client to it."""

    def __init__(self, process: ForkServerProcess, heard: Connection, client: httpx.AsyncClient) -> None:
        self._process = process
        self._heard = heard
        self.client = client

    def walk(self) -> Walk:
        """A person's walk through the steps, at this process."""
        return Walk(self.client, api_key=SANDBOX_API_KEY)

    def points(self) -> list[Point]:
        """What it has come to since it was asked last: all points, or the one where it struck."""
        points: list[Point] = []
        with suppress(EOFError):  # it has ended
            while self._heard.poll():
                points.append(self._heard.recv())
        return points

    async def struck(self) -> None:
        """Wait until it has come to its point."""
        await eventually(lambda: self._heard.poll() or self._process.exitcode is not None)

    async def ended(self) -> int:
        """Wait for its end; the exit code."""
        await eventually(lambda: self._process.exitcode is not None)
        assert self._process.exitcode is not None
        return self._process.exitcode

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        self._process.kill()

    def stand_still(self) -> None:
        """Stop it, as it would stop itself."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let one that stands still go on."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGCONT)


@asynccontextmanager
async def victim(
    settings: Settings, *, strike: Point | None = None, number: signal.Signals = signal.SIGKILL
) -> AsyncIterator[Victim]:
    """A process that sends itself a signal at a point, or tells all points that it comes to."""
    heard, tell = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_run, args=(settings, tell, strike, number), daemon=True)
    process.start()
    tell.close()
    try:
        await eventually(heard.poll)
        async with httpx.AsyncClient(base_url=heard.recv(), timeout=20, trust_env=False, verify=NO_TLS) as client:
            yield Victim(process, heard, client)
    finally:
        process.kill()
        process.join()
        heard.close()
