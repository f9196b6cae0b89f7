"""What people do all day, good and bad: each habit is one visit."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Final

import httpx

from service.sandbox.people import PEOPLE
from service.settings import SANDBOX_API_KEY
from tests.events.sse import listening
from tests.walk import PGE, SRP, Walk

__all__ = ["HABITS", "Town", "visit"]

SESSION_SECONDS: Final = 120
"""What is left lying about is gone soon."""

_NEWCOMERS: Final = count()


@dataclass
class Town:
    """Who calls what, and what came of it.

    Attributes:
        answers: By visit and HTTP status.
        surprises: Answers that no visit expects.
        asked_again: Accounts that were to be sent a second time.
    """

    client: httpx.AsyncClient
    rng: random.Random
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    asked_again: int = 0

    async def open(self) -> Walk:
        return await Walk(self.client, api_key=SANDBOX_API_KEY).open(ttlSeconds=SESSION_SECONDS)

    def heard(self, habit: str, answer: httpx.Response, *expected: int) -> None:
        self.answers[habit, answer.status_code] += 1
        if answer.status_code not in expected:
            self.surprises.append(f"{habit}: {answer.status_code} {answer.text[:200]}")


def _newcomer(like: str) -> str:
    """Somebody whom nobody has seen before, with accounts of their own."""
    name = f"{like}.{next(_NEWCOMERS)}"
    PEOPLE[name] = replace(PEOPLE[like], username=name)
    return name


async def _links(town: Town) -> None:
    """Signs in, is told by a stream, links, and links once more."""
    walk = await town.open()
    async with listening(walk) as stream:
        town.heard("validate", await walk.validate(_newcomer("user_one"), wait=None), 202)
        await stream.until("validation.succeeded")
        ids = await walk.account_ids()
        town.heard("link", await walk.link(ids), 201)
        await stream.rest()
    town.heard("link again", await walk.link(ids), 201)
    town.heard("show", await walk.show(by_server=True), 200)


async def _waits(town: Town) -> None:
    """Waits for the answer and then reads the accounts anew."""
    walk = await town.open()
    town.heard("wait", await walk.validate(_newcomer("user_good")), 201)
    town.heard("accounts", await walk.accounts(**{"Cache-Control": "no-cache"}), 200)
    town.heard("close", await walk.close(), 200)


async def _mistypes(town: Town) -> None:
    """Has a wrong password, and then none at all."""
    walk = await town.open()
    town.heard("wrong password", await walk.validate("user_bad", "wrong"), 201)
    town.heard("no password", await walk.validate(None), 422)
    town.heard("accounts too early", await walk.accounts(), 409)
    town.heard("close", await walk.close(), 200)


async def _breaks(town: Town) -> None:
    """Meets a utility that is down, and one whose job breaks."""
    walk = await town.open()
    town.heard("utility down", await walk.validate("user_server_error"), 201)
    town.heard("job broken", await walk.validate("user_job_error", provider=SRP), 201)


async def _loses_the_link(town: Town) -> None:
    """Is told that the outcome is unknown, and decides to send again."""
    walk = await town.open()
    await walk.validate(_newcomer("user_link_lost"))
    lost = await walk.link(ids := await walk.account_ids())
    town.heard("link lost", lost, 504)
    town.asked_again += len(ids)
    town.heard("link resent", await walk.link(ids, resendUnknown=lost.json().get("attempts")), 504)


async def _is_refused(town: Town) -> None:
    walk = await town.open()
    await walk.validate(_newcomer("user_link_refused"))
    town.heard("link refused", await walk.link(await walk.account_ids()), 502)


async def _gives_up(town: Town) -> None:
    """Starts what never ends, and cancels it."""
    walk = await town.open()
    started = await walk.validate("user_never", wait=None)
    town.heard("never", started, 202)
    path = f"{walk.path}/validations/{started.json()['validation']['id']}"
    town.heard("cancel", await town.client.delete(path, headers=walk.headers), 200)
    town.heard("oauth", await walk.validate(None, provider=PGE, wait=None), 202)
    town.heard("close", await walk.close(), 200)


async def _vanishes(town: Town) -> None:
    """Leaves in the middle of a wait and of a stream, and never comes back."""
    walk = await town.open()
    started = await walk.validate("user_never", wait=None)
    town.heard("never", started, 202)
    waiting = asyncio.create_task(walk.validation(started.json()["validation"]["id"], wait=25))
    async with listening(walk) as stream:
        await stream.next()
        await asyncio.sleep(town.rng.random())
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting


async def _makes_no_sense(town: Town) -> None:
    """Sends what is not to be sent, to where nothing is, as nobody."""
    walk = await town.open()
    url, host = "/v1/sessions", walk.server_headers
    send: list[tuple[int, str, str, dict[str, Any]]] = [
        (400, "POST", url, {"headers": host, "content": b"{"}),
        (400, "POST", url, {"headers": host, "content": b'{"a":' * 40}),
        (413, "POST", url, {"headers": host, "content": b"[" + b" " * 70_000 + b"]"}),
        (422, "POST", url, {"headers": host, "json": {"colour": "red"}}),
        (405, "PUT", url, {"headers": host}),
        (404, "GET", f"{url}/ses_{town.rng.randbytes(16).hex()}", {"headers": host}),
        (401, "GET", walk.path, {"headers": {"Authorization": f"Bearer oms_{town.rng.randbytes(16).hex()}"}}),
        (403, "GET", f"{walk.path}/service-accounts", {"headers": host}),
        (404, "POST", f"{walk.path}/links", {"headers": walk.headers, "json": {"serviceAccountIds": ["nobodys"]}}),
    ]
    for status, method, path, options in send:
        headers = {"Content-Type": "application/json"} | options.pop("headers")
        town.heard("nonsense", await town.client.request(method, path, headers=headers, **options), status)


async def _looks_around(town: Town) -> None:
    """A host's server, and whoever watches the service."""
    headers = {"Authorization": f"Bearer {SANDBOX_API_KEY}"}
    for path in ("/v1/providers?search=a", "/livez", "/readyz", "/metrics", "/openapi.json"):
        town.heard("look", await town.client.get(path, headers=headers), 200)


HABITS: Final[dict[Callable[[Town], Awaitable[None]], int]] = {
    _links: 24,
    _waits: 6,
    _mistypes: 4,
    _breaks: 2,
    _loses_the_link: 1,
    _is_refused: 1,
    _gives_up: 4,
    _vanishes: 4,
    _makes_no_sense: 2,
    _looks_around: 2,
}
"""How often each is seen among the others; so few links are lost that the vendor is not taken for broken."""


async def visit(town: Town) -> None:
    """One visit of somebody, by chance."""
    (habit,) = town.rng.choices(list(HABITS), list(HABITS.values()))
    await habit(town)
