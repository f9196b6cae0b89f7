"""A process that has enough to do says so at once: reads first, probes and those who only wait never."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.conftest import Replica
from tests.processes import eventually

MOST_READS, MOST_REQUESTS = 3, 4


class Held:
    """Requests that stay in flight until they are let go."""

    def __init__(self, replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside = 0
        self.release = asyncio.Event()
        self._replica = replica
        access = replica.app.state.steps.access
        identify = access.identify

        async def wait(knock: Any) -> Any:
            if knock.client_id == "held":
                self.inside += 1
                await self.release.wait()
            return await identify(knock)

        monkeypatch.setattr(access, "identify", wait)

    async def hold(self, count: int) -> list[asyncio.Task[httpx.Response]]:
        expected = self.inside + count
        calls = [
            asyncio.create_task(self._replica.client.post("/v1/sessions", json={"clientId": "held"}))
            for _ in range(count)
        ]
        await eventually(lambda: self.inside >= expected)
        return calls


@pytest.fixture
async def held(shared: Replica, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Held]:
    monkeypatch.setattr("service.api.shedding._MOST_READS", MOST_READS)
    monkeypatch.setattr("service.api.shedding._MOST_REQUESTS", MOST_REQUESTS)
    holding = Held(shared, monkeypatch)
    yield holding
    holding.release.set()


def is_overloaded(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "overloaded"), answer.text
    assert answer.json()["retryable"] is True
    assert answer.headers["Retry-After"] == "1"


async def test_reads_are_shed_first_then_all_but_probes_and_waiters(shared: Replica, held: Held) -> None:
    walk = await shared.walk().open()
    pending = (await walk.validate("user_slow", wait=None)).json()["validation"]["id"]
    calls = await held.hold(MOST_READS)
    is_overloaded(await walk.show())
    assert (await walk.link(["sa_none"])).status_code == 404  # it was let in
    calls += await held.hold(1)
    is_overloaded(await walk.link(["sa_none"]))
    is_overloaded(await walk.show())
    for probe in ("/livez", "/readyz", "/metrics"):
        assert (await shared.client.get(probe)).status_code == 200
    assert (await walk.validation(pending, wait=1)).status_code == 200
    async with shared.client.stream("GET", f"{walk.path}/events", headers=walk.headers) as stream:
        assert stream.status_code == 200

    held.release.set()
    assert {each.status_code for each in await asyncio.gather(*calls)} == {401}
    assert (await walk.show()).status_code == 200
    assert (await walk.link(["sa_none"])).status_code == 404


@pytest.mark.usefixtures("held")
async def test_streams_and_waiters_take_no_place(shared: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = await shared.walk().open()
    pending = (await walk.validate("user_slow", wait=None)).json()["validation"]["id"]
    validations = shared.app.state.steps.validations
    wait, arrived = validations.wait, 0

    async def counted(*args: Any) -> Any:
        nonlocal arrived
        arrived += 1
        return await wait(*args)

    monkeypatch.setattr(validations, "wait", counted)
    waiting = [asyncio.create_task(walk.validation(pending, wait=20)) for _ in range(MOST_REQUESTS + 1)]
    in_two_lines = [*walk.headers.items(), ("Prefer", "wait=20"), ("Prefer", "handling=strict")]
    path = f"{walk.path}/validations/{pending}"
    waiting += [asyncio.create_task(walk.client.get(path, headers=in_two_lines)) for _ in range(MOST_REQUESTS + 1)]
    await eventually(lambda: arrived == len(waiting))
    async with shared.client.stream("GET", f"{walk.path}/events", headers=walk.headers) as stream:
        assert stream.status_code == 200
        assert (await walk.show()).status_code == 200
    await walk.client.delete(f"{walk.path}/validations/{pending}", headers=walk.headers)
    assert {each.status_code for each in await asyncio.gather(*waiting)} == {200}


async def test_waiters_have_a_bound_of_their_own(shared: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait goes on when its caller has left, so that no limit of connections bounds them."""
    monkeypatch.setattr("service.api.shedding._MOST_WAITING", 2)
    walk = await shared.walk().open()
    pending = (await walk.validate("user_never", wait=None)).json()["validation"]["id"]
    changes = shared.app.state.steps.changes
    await eventually(lambda: not changes._rooms)  # whoever waited in the tests before has left
    waiting = [asyncio.create_task(walk.validation(pending, wait=20)) for _ in range(2)]
    await eventually(lambda: walk.id in changes._rooms and len(changes._rooms[walk.id]._followers) == 2)
    at_once = await asyncio.wait_for(walk.validation(pending, wait=20), 5)
    assert (at_once.status_code, at_once.json()["validation"]["state"]) == (200, "pending")
    assert "preference-applied" not in at_once.headers
    assert at_once.headers["retry-after"] == "1"
    is_overloaded(await walk.client.get(f"{walk.path}/events", headers=walk.headers))
    assert (await shared.client.get("/readyz")).status_code == 200
    await walk.client.delete(f"{walk.path}/validations/{pending}", headers=walk.headers)
    assert {each.status_code for each in await asyncio.gather(*waiting)} == {200}
    async with shared.client.stream("GET", f"{walk.path}/events", headers=walk.headers) as stream:
        assert stream.status_code == 200


async def test_who_has_not_sent_all_of_a_body_takes_no_place(shared: Replica, held: Held) -> None:
    url = httpx.URL(shared.url)
    senders = [await asyncio.open_connection(url.host, url.port) for _ in range(MOST_REQUESTS + 1)]
    for _, writer in senders:
        writer.write(
            b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
        )
        await writer.drain()
    await held.hold(MOST_READS - 1)  # their heads were read before these
    assert (await shared.walk().open()).id
    for _, writer in senders:
        writer.close()


async def test_work_is_shed_whatever_it_prefers(shared: Replica, held: Held) -> None:
    walk = await shared.walk().open()
    calls = await held.hold(MOST_REQUESTS)
    is_overloaded(await walk.validate(wait=5))
    found = f"{walk.path}/validations/val_none"
    is_overloaded(await walk.client.get(found, headers=walk.headers | {"Prefer": "respond-async"}))
    is_overloaded(await walk.client.get("/link/events"))
    held.release.set()
    await asyncio.gather(*calls)
