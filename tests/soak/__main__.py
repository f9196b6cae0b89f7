"""`python -m tests.soak`: people come and go for a while, and what the service holds must not grow."""

import argparse
import asyncio
import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final

import httpx
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from service.clock import SYSTEM_CLOCK
from service.sandbox.server import SandboxServer
from service.stores.embedded import EmbeddedStore
from tests.conftest import make_settings
from tests.plain import NO_TLS
from tests.processes import serving
from tests.soak.gauges import BOUNDS, Sample, mean, slope_per_minute, take
from tests.soak.people import Town, visit

__all__ = ["main"]

_VISITS_PER_SECOND: Final = 3.0
"""However long each takes: if their number followed the machine's mood, so would all that is measured."""

_SAMPLE_SECONDS: Final = 5.0
_FAST: Final = 0.02
"""Jobs of the sandbox take this share of their time."""

_TELLING_SECONDS: Final = 480
"""What people leave behind lives for up to 156 s: a shorter run is over before as much goes as comes."""

_REST_SECONDS: Final = 150.0
_LEFT: Final[Mapping[str, float]] = {"tasks": 2, "descriptors": 80}
"""What may be left, once all is over, beside what was there at first; connections to Redis are kept."""

_SHOWN_SURPRISES: Final = 10
_PREFIX: Final = "soak"
_ENVIRON: Final = {
    "OMNICONNECT_RETENTION_HOURS": "0.01",
    "OMNICONNECT_ACCOUNT_ATTEMPTS": "1000000",
    "OMNICONNECT_REFUSALS_PER_MINUTE": "1000000",
}


def main() -> None:
    """Run it, tell what was measured, and fail if something grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of who does what (default: %(default)s)")
    asked = parser.parse_args()
    sys.exit(asyncio.run(_soak(asked.seconds, asked.seed)))


async def _soak(seconds: float, seed: int) -> int:
    console = Console()
    async with AsyncExitStack() as stack:
        upstream = stack.enter_context(SandboxServer(speed=_FAST))
        store = stack.enter_context(EmbeddedStore())
        settings = make_settings(store.url, upstream.url, _PREFIX, log_level="ERROR")
        service = await stack.enter_async_context(serving(settings, **_ENVIRON))
        redis = await stack.enter_async_context(Redis.from_url(store.url))
        limits = httpx.Limits(max_connections=None)
        client = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=service.client.base_url, timeout=40, limits=limits, trust_env=False, verify=NO_TLS
            )
        )
        town = Town(client, random.Random(seed))  # noqa: S311 -- chooses what is tested
        await visit(town)
        first = await take(service.client, redis, at=0)
        samples = await _live(town, service.client, redis, seconds)
        last = await _rest(service.client, redis, first) if seconds >= _TELLING_SECONDS else None
        twice = sum(times > 1 for times in upstream.world.link_counts.values())
    broken = [*town.surprises[:_SHOWN_SURPRISES]]
    if twice > town.asked_again:
        broken.append(f"{twice} accounts were sent twice; for {town.asked_again} their people asked for it")
    broken += _told(console, samples, first, last, telling=seconds >= _TELLING_SECONDS)
    visits = sum(town.answers.values())
    console.print(f"{visits} answers in {seconds:.0f} s: " + ", ".join(_counts(town)), highlight=False)
    for each in broken:
        console.print(f"[red]broken[/]: {each}", highlight=False)
    return 1 if broken else 0


async def _live(town: Town, client: httpx.AsyncClient, redis: Redis, seconds: float) -> Sequence[Sample]:
    started = SYSTEM_CLOCK.monotonic()
    until = started + seconds

    async def come(at: float) -> None:
        await asyncio.sleep(at)
        try:
            await visit(town)
        except (httpx.TransportError, AssertionError, TimeoutError, KeyError) as error:
            town.surprises.append(f"{type(error).__name__}: {str(error)[:200]}")

    visits = [
        asyncio.create_task(come(number / _VISITS_PER_SECOND)) for number in range(int(seconds * _VISITS_PER_SECOND))
    ]
    samples = []
    while (now := SYSTEM_CLOCK.monotonic()) < until:
        samples.append(await take(client, redis, at=now - started))
        await asyncio.sleep(min(_SAMPLE_SECONDS, until - now))
    await asyncio.gather(*visits)
    return samples


async def _rest(client: httpx.AsyncClient, redis: Redis, first: Sample) -> Sample:
    """The gauges once everybody has gone and what they left behind has ended."""
    give_up = SYSTEM_CLOCK.monotonic() + _REST_SECONDS
    while True:
        sample = await take(client, redis, at=0)
        rested = all(sample.values[name] <= first.values[name] + more for name, more in _LEFT.items())
        if rested or SYSTEM_CLOCK.monotonic() >= give_up:
            return sample
        await asyncio.sleep(1)


def _told(
    console: Console, samples: Sequence[Sample], first: Sample, last: Sample | None, *, telling: bool
) -> list[str]:
    """Print the table; what has grown too much."""
    counted = samples[len(samples) // 3 :]
    broken = []
    table = Table(title=f"the last two thirds: {len(counted)} samples", title_justify="left")
    for heading in ("", "at first", "mean", "at rest", "per minute", "bound"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in first.values:
        slope, bound = slope_per_minute(counted, name), BOUNDS.get(name)
        at_rest = f"{last.values[name]:,.1f}" if last else ""
        row = [f"{first.values[name]:,.1f}", f"{mean(counted, name):,.1f}", at_rest, f"{slope:+.3f}"]
        table.add_row(name, *row, "" if bound is None else f"{bound:g}")
        if telling and bound is not None and slope > bound:
            broken.append(f"{name} grew by {slope:.3f} in a minute; {bound:g} is allowed")
    console.print(table)
    if any(each.values["keys without TTL"] for each in samples):
        broken.append("there were keys without TTL")
    for name, more in _LEFT.items():
        if last is not None and last.values[name] > first.values[name] + more:
            broken.append(f"{last.values[name]:.0f} {name} were left; there were {first.values[name]:.0f} at first")
    if not telling:
        console.print(
            f"a run of less than {_TELLING_SECONDS} s: it shows that everything works, its slopes say nothing"
        )
    return broken


def _counts(town: Town) -> list[str]:
    return [f"{what} {status}: {times}" for (what, status), times in sorted(town.answers.items())]


if __name__ == "__main__":
    main()
