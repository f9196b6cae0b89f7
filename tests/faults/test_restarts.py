"""Processes are replaced while people are in the middle of something: nobody notices, and nothing is done twice."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final

import httpx
import pytest
from typing_extensions import override

from service.sandbox.people import PEOPLE
from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY
from tests.conftest import make_settings, running_replica
from tests.events.sse import listening
from tests.faults.flows import FULL, sent
from tests.plain import NO_TLS
from tests.processes import ServiceProcess, eventually, serving
from tests.walk import SRP, Walk

REPLICAS: Final = 3 if FULL else 2
RESTARTS: Final = 15 if FULL else REPLICAS
LOOK_SECONDS: Final = 0.05
DRAIN_SECONDS: Final = 1.5
"""Far longer than the balancer needs to notice, also on a busy machine."""

GRACEFUL_SECONDS: Final = 30

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("forks")]


class Balancer(httpx.AsyncBaseTransport):
    """A load balancer: takes ready processes in turn, tries the next when one refuses the connection.

    For a read also when the connection ends before the answer begins; both are what nginx does by default.
    """

    def __init__(self) -> None:
        self._ready: list[str] = []
        self._turn = 0
        self._behind = httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_keepalive_connections=0), trust_env=False, verify=NO_TLS
        )

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        for _ in range(20):
            self._turn += 1
            url = httpx.URL(self._ready[self._turn % len(self._ready)])
            request.url = request.url.copy_with(host=url.host, port=url.port)
            try:
                return await self._behind.handle_async_request(request)
            except httpx.ConnectError:
                await asyncio.sleep(LOOK_SECONDS)
            except httpx.RemoteProtocolError:
                if request.method != "GET":
                    raise
        raise httpx.ConnectError("all refuse")

    async def look_after(self, process: ServiceProcess) -> None:
        """Ask a process whether it is ready until it has ended."""
        url = str(process.client.base_url)
        while process.exit_code is None:
            try:
                ready = (await process.client.get("/readyz")).status_code == 200
            except httpx.TransportError:
                ready = False
            if ready and url not in self._ready:
                self._ready.append(url)
            if not ready and url in self._ready:
                self._ready.remove(url)
            await asyncio.sleep(LOOK_SECONDS)


class Crowd:
    """People at the balancer, who go on until it is over.

    Attributes:
        broken: What nobody should have met.
        listening: Somebody has a stream open.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.over = asyncio.Event()
        self.listening = asyncio.Event()
        self.broken: list[str] = []
        self.reads = 0
        self.linked = 0
        self.goodbyes = 0

    async def open(self) -> Walk:
        return await Walk(self.client, api_key=SANDBOX_API_KEY).open()

    async def heard(self, request: Callable[[], Awaitable[httpx.Response]], *expected: int) -> httpx.Response:
        """An answer, which must be one of those expected."""
        answer = await request()
        if answer.status_code not in expected:
            self.broken.append(f"{answer.request.method} {answer.request.url.path}: {answer.text}")
        return answer

    async def read(self) -> None:
        walk = await self.open()
        while not self.over.is_set():
            await self.heard(walk.show, 200)
            await self.heard(lambda: self.client.get("/v1/providers", headers=walk.headers), 200)
            self.reads += 2
            await asyncio.sleep(0.01)

    async def wait(self) -> None:
        walk = await self.open()
        started = (await self.heard(lambda: walk.validate("user_never", wait=None), 202)).json()["validation"]
        while not self.over.is_set():
            answer = await self.heard(lambda: walk.validation(started["id"], wait=2), 200)
            assert answer.json()["validation"]["state"] == "pending"
            self.reads += 1

    async def link(self, number: int) -> None:
        while not self.over.is_set():
            name = f"user_quick.{number}.{self.linked}"
            PEOPLE[name] = replace(PEOPLE["user_quick"], username=name)
            walk = await self.open()
            answer = await self.heard(lambda: walk.validate(name, wait=None), 202)  # noqa: B023 -- awaited here
            validation = answer.json()["validation"]["id"]
            await self.heard(lambda: walk.validation(validation, wait=20), 200)  # noqa: B023
            found = await self.heard(walk.accounts, 200)
            ids = [each["id"] for each in found.json()["serviceAccounts"]]
            await self.heard(lambda: walk.link(ids), 201)  # noqa: B023
            self.linked += 1

    async def listen(self) -> Sequence[str]:
        """All names of events that one session's stream told, resumed wherever it said goodbye."""
        walk = await self.open()
        changing = asyncio.create_task(self._change(walk))
        names: list[str] = []
        ids: list[str] = []
        while True:
            async with listening(walk, after=ids[-1] if ids else None) as stream:
                self.listening.set()
                for event in await stream.rest():
                    names.append(event.name)
                    ids.append(event.id)
                if names and names[-1] == "session.closed":
                    break
                assert len(stream.retries) == 2
                self.goodbyes += 1
        await changing
        numbers = [int(each.rpartition("_")[2]) for each in ids]
        # What came before the stream began is part of the state that it begins with.
        assert numbers == list(range(numbers[0], numbers[0] + len(ids)))
        return names

    async def _change(self, walk: Walk) -> None:
        """Have events told, as long as the session may have further passwords tried."""
        while not self.over.is_set():
            started = await self.heard(lambda: walk.validate("user_quick", provider=SRP, wait=None), 202, 429)
            if started.status_code == 202:
                validation = started.json()["validation"]["id"]
                await self.heard(lambda: walk.validation(validation, wait=20), 200)  # noqa: B023 -- awaited here
            await asyncio.sleep(0.2)
        await self.heard(walk.close, 200)


async def test_a_rolling_restart_fails_no_read_links_nothing_twice_and_loses_no_event(
    valkey: str, upstream: SandboxServer, prefix: str
) -> None:
    settings = make_settings(valkey, upstream.url, prefix, drain_seconds=DRAIN_SECONDS)
    balancer = Balancer()
    async with (
        AsyncExitStack() as stack,
        httpx.AsyncClient(transport=balancer, verify=NO_TLS, base_url="http://balancer", timeout=40) as client,
        asyncio.TaskGroup() as group,
    ):

        async def start() -> ServiceProcess:
            process = await stack.enter_async_context(serving(settings, OMNICONNECT_SESSION_READS="1000000"))
            group.create_task(balancer.look_after(process))
            return process

        running = [await start() for _ in range(REPLICAS)]
        await eventually(lambda: len(balancer._ready) == REPLICAS)
        crowd = Crowd(client)
        doing: list[Awaitable[Any]] = [crowd.read(), crowd.read(), crowd.wait(), crowd.listen()]
        working = asyncio.gather(*doing, *(crowd.link(number) for number in range(2)))
        await crowd.listening.wait()  # at one of those that end now
        for _ in range(RESTARTS):
            running.append(await start())
            await _ended(running.pop(0))
        crowd.over.set()
        await working
        for process in running:
            process.kill()
    assert crowd.broken == []
    assert crowd.goodbyes
    assert min(crowd.reads, crowd.linked) > RESTARTS
    assert set(upstream.world.link_counts.values()) == {1}
    assert len(upstream.world.links) == crowd.linked


async def _ended(process: ServiceProcess) -> None:
    process.terminate()
    await eventually(lambda: process.exit_code is not None, seconds=GRACEFUL_SECONDS)
    assert process.exit_code == 0


async def test_sigterm_in_the_middle_of_everything_everybody_is_answered(
    valkey: str, upstream: SandboxServer, prefix: str
) -> None:
    settings = make_settings(valkey, upstream.url, prefix)
    async with running_replica(settings) as staying, serving(settings) as leaving:
        linking, left, waiting, starting = [await staying.walk().open() for _ in range(4)]
        await linking.validate("user_quick")
        await left.validate("user_good")
        never = (await waiting.at(leaving.client).validate("user_never", wait=None)).json()["validation"]["id"]
        upstream.world.faults.add("batch", "delay", value=1, times=2)
        upstream.world.faults.add("jobs", "delay", value=1)
        before = sent(upstream, "jobs")
        link, link_of_who_leaves = [
            asyncio.create_task(walk.at(leaving.client).link(await walk.account_ids())) for walk in (linking, left)
        ]
        wait = asyncio.create_task(waiting.at(leaving.client).validation(never, wait=25))
        start = asyncio.create_task(starting.at(leaving.client).validate("user_quick", wait=25))
        async with listening(waiting, client=leaving.client) as stream:
            await stream.next()
            await eventually(lambda: sent(upstream, "batch") == 2 and sent(upstream, "jobs") == before + 1)
            link_of_who_leaves.cancel()
            leaving.terminate()
            assert await stream.rest() == []
            assert len(stream.retries) == 2
        assert (await wait).json()["validation"]["state"] == "pending"
        assert (await link).status_code == 201
        assert (await start).status_code in {201, 202}
        await eventually(lambda: leaving.exit_code is not None, seconds=GRACEFUL_SECONDS)
        assert leaving.exit_code == 0
        for walk in (linking, left):
            assert (await walk.show()).json()["session"]["state"] == "linked"
        [started] = (await starting.show()).json()["session"]["validations"]
        assert (await starting.validation(started["id"], wait=20)).json()["validation"]["state"] == "succeeded"
        assert sent(upstream, "jobs") == before + 1
        assert set(upstream.world.link_counts.values()) == {1}
