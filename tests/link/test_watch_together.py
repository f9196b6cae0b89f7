"""One poller per job, however many wait for it on however many instances, and whatever becomes of that one."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from service.errors import StoreUnavailable
from service.link import changes, validate, watch
from service.link.tasks import Tasks
from service.sandbox.server import SandboxServer
from service.settings import Settings
from service.stores import notices
from service.stores.connection import Store
from service.stores.jobs import Job, JobStore
from service.stores.keys import Keys
from tests.conftest import Replica, make_settings, running_replica
from tests.processes import eventually, serving

HANG_GUARD_SECONDS = 10


@pytest.fixture
def _only_notices_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "LOOK_AGAIN_SECONDS", 60.0)


def polls(upstream: SandboxServer) -> Counter[str]:
    return Counter(call.path for call in upstream.world.calls.all("job"))


async def test_two_hundred_who_wait_cost_as_much_as_one(replicas: list[Replica], upstream: SandboxServer) -> None:
    async def poll_count(waiters: int) -> int:
        walk = await replicas[0].walk().open()
        started = (await walk.validate("user_slow", wait=None)).json()["validation"]
        answers = await asyncio.gather(
            *(walk.at(replicas[number % 3].client).validation(started["id"], wait=25) for number in range(waiters))
        )
        assert {answer.json()["validation"]["state"] for answer in answers} == {"succeeded"}
        return list(polls(upstream).values())[-1]

    # The job takes 0.3 s, and a lone poller pauses for 0.05 s, less 10 % of jitter: 7 polls, and one after the end.
    assert await poll_count(1) <= 9
    assert await poll_count(200) <= 9
    assert len(upstream.world.calls.all("account")) == 2


@pytest.mark.usefixtures("_only_notices_wake")
async def test_a_waiter_elsewhere_is_woken_by_notice(replicas: list[Replica], upstream: SandboxServer) -> None:
    walk = await replicas[0].walk().open()
    started = (await walk.validate("user_never", wait=None)).json()["validation"]
    waiting = asyncio.create_task(walk.at(replicas[1].client).validation(started["id"], wait=25))
    job = (await eventually(lambda: list(polls(upstream))))[0]
    upstream.world.finish(job.rsplit("/", 1)[1], "success")
    async with asyncio.timeout(HANG_GUARD_SECONDS):
        assert (await waiting).json()["validation"]["state"] == "succeeded"


@pytest.mark.usefixtures("_only_notices_wake")
async def test_a_lost_subscription_strands_nobody(
    settings: Settings, valkey: str, upstream: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        starter, other = [await stack.enter_async_context(running_replica(settings)) for _ in range(2)]
        walk = await starter.walk().open()
        started = (await walk.validate("user_never", wait=None)).json()["validation"]
        waiting = asyncio.create_task(walk.at(other.client).validation(started["id"], wait=25))
        job = (await eventually(lambda: list(polls(upstream))))[0]
        monkeypatch.setattr(notices, "_RECONNECT_SECONDS", 0.05)
        redis: Any = await stack.enter_async_context(Redis.from_url(valkey))
        assert await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= 2
        upstream.world.finish(job.rsplit("/", 1)[1], "success")
        async with asyncio.timeout(HANG_GUARD_SECONDS):
            assert (await waiting).json()["validation"]["state"] == "succeeded"


async def test_draining_lets_those_who_wait_go(replica: Replica) -> None:
    walk = await replica.walk().open()
    started = (await walk.validate("user_never", wait=None)).json()["validation"]
    waiting = asyncio.create_task(walk.validation(started["id"], wait=25))
    await eventually(lambda: walk.id in replica.app.state.steps.changes._rooms)
    replica.app.state.steps.changes.drain()
    async with asyncio.timeout(HANG_GUARD_SECONDS):
        assert (await waiting).json()["validation"]["state"] == "pending"


async def test_a_stopping_instance_hands_its_jobs_over_at_once(
    valkey: str, upstream: SandboxServer, prefix: str
) -> None:
    # A lease of a minute: nobody gets the job in this test unless it is handed over.
    settings = make_settings(valkey, upstream.url, prefix, poll_lease_seconds=60)
    async with running_replica(settings) as staying:
        async with running_replica(settings) as leaving:
            walk = await leaving.walk().open()
            started = (await walk.validate("user_never", wait=None)).json()["validation"]
            job = (await eventually(lambda: list(polls(upstream))))[0]
        upstream.world.calls.clear()
        upstream.world.finish(job.rsplit("/", 1)[1], "success")
        async with asyncio.timeout(HANG_GUARD_SECONDS):
            finished = await walk.at(staying.client).validation(started["id"], wait=25)
        assert finished.json()["validation"]["state"] == "succeeded"


async def test_however_many_jobs_it_hands_over(
    valkey: str, upstream: SandboxServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_MOST_TAKEN_AT_ONCE", 1)
    settings = make_settings(valkey, upstream.url, prefix, poll_lease_seconds=60)
    async with running_replica(settings):
        async with running_replica(settings) as leaving:
            for _ in range(4):
                await (await leaving.walk().open()).validate("user_never", wait=None)
            await eventually(lambda: len(polls(upstream)) == 4)
        upstream.world.calls.clear()
        await eventually(lambda: len(polls(upstream)) == 4, seconds=HANG_GUARD_SECONDS)


async def test_a_stopping_instance_waits_for_the_answer_to_credentials_that_it_has_sent(
    settings: Settings, upstream: SandboxServer
) -> None:
    async with running_replica(settings) as staying, running_replica(settings) as leaving:
        walk = await leaving.walk().open()
        await leaving.client.get("/v1/providers", headers=walk.headers)
        # Longer than the lease: it has to be renewed meanwhile.
        upstream.world.faults.add("jobs", "delay", value=1.5)
        starting = asyncio.create_task(walk.validate("user_quick", wait=None))
        await eventually(lambda: upstream.world.calls.all("jobs"))
        await leaving.app.state.steps.validations._watchers.release()
        validation = (await starting).json()["validation"]
        finished = (await walk.at(staying.client).validation(validation["id"], wait=25)).json()["validation"]
        assert finished["state"] == "succeeded"
        assert len(upstream.world.calls.all("jobs")) == 1


async def test_the_answer_arrives_though_the_polling_process_was_killed(
    settings: Settings, upstream: SandboxServer
) -> None:
    async with running_replica(settings) as staying, serving(settings) as doomed:
        walk = await doomed.walk().open()
        started = (await walk.validate("user_never", wait=None)).json()["validation"]
        job = (await eventually(lambda: list(polls(upstream))))[0]
        waiting = asyncio.create_task(walk.at(staying.client).validation(started["id"], wait=25))
        doomed.kill()
        upstream.world.calls.clear()
        upstream.world.finish(job.rsplit("/", 1)[1], "success")
        assert (await waiting).json()["validation"]["state"] == "succeeded"
        assert len(await walk.at(staying.client).account_ids()) == 2
        assert upstream.world.calls.all("jobs") == []


async def test_jobs_that_redis_has_forgotten_are_polled_on(
    settings: Settings, valkey: str, upstream: SandboxServer
) -> None:
    """The server with the jobs was lost, and those with the sessions were not."""
    async with running_replica(settings) as replica, Redis.from_url(valkey) as redis:
        walk = await replica.walk().open()
        started = (await walk.validate("user_never", wait=None)).json()["validation"]
        job = (await eventually(lambda: list(polls(upstream))))[0]
        watchers = replica.app.state.steps.validations._watchers
        assert await redis.delete(*watchers._jobs._names) == 2
        await watchers._renew(most=0)
        upstream.world.finish(job.rsplit("/", 1)[1], "success")
        finished = (await walk.validation(started["id"], wait=5)).json()["validation"]
        assert finished["state"] == "succeeded"


async def test_a_job_that_is_still_to_be_sent_is_not_held_anew(valkey: str, prefix: str) -> None:
    """Its process stood still, another one has given it up, and the person may have been told so."""
    sent, unsent = Job("ses_1", "val_1"), Job("ses_2", "val_2")
    async with Store(SecretStr(valkey), command_seconds=5) as store:
        stood, other = [JobStore(store=store, keys=Keys(prefix, "t"), lease_ms=60_000) for _ in range(2)]
        for job in (sent, unsent):
            await stood.hold(job)
            await other.hold(job)
        await other.drop([sent, unsent], "finished")
        held = await stood.renew(sent=[sent], unsent=[unsent], most=1)
        assert (held.lost, held.taken) == ([unsent], [])
        assert (await other.renew(sent=[sent], unsent=[], most=1)).lost == [sent]


async def test_credentials_whose_process_was_killed_are_interrupted_and_not_sent_again(
    settings: Settings, upstream: SandboxServer
) -> None:
    async with running_replica(settings) as staying, serving(settings) as doomed:
        walk = await doomed.walk().open()
        upstream.world.faults.add("jobs", "hang")
        starting = asyncio.create_task(walk.validate("user_quick"))
        await eventually(lambda: upstream.world.calls.all("jobs"))
        doomed.kill()
        await asyncio.gather(starting, return_exceptions=True)
        walk = walk.at(staying.client)
        [pending] = (await walk.show()).json()["session"]["validations"]
        finished = (await walk.validation(pending["id"], wait=25)).json()
        assert (finished["status"], finished["code"]) == ("OM500", "interrupted")
        assert finished["validation"]["state"] == "failed"
        assert len(upstream.world.calls.all("jobs")) == 1
        # Only the person can send the password again.
        assert (await walk.validate("user_quick")).json()["validation"]["state"] == "succeeded"


async def test_a_validation_whose_record_got_no_reply_is_not_pending_for_minutes(
    replica: Replica, upstream: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = await replica.walk().open()
    sessions = replica.app.state.steps.validations._sessions
    add = sessions.add_validation

    async def add_without_reply(*args: Any, **options: Any) -> None:
        await add(*args, **options)
        raise StoreUnavailable

    monkeypatch.setattr(sessions, "add_validation", add_without_reply)
    refused = await walk.validate()
    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    [written] = (await walk.show()).json()["session"]["validations"]
    finished = (await walk.validation(written["id"], wait=20)).json()["validation"]
    assert finished["reason"] == "interrupted"
    assert upstream.world.calls.all("jobs") == []


async def test_who_waits_beside_a_stream_that_heard_nothing_finds_the_validation(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    starter, other = replicas[:2]
    walk = await starter.walk().open()
    async with other.client.stream("GET", f"{walk.path}/events", headers=walk.headers) as stream:
        await anext(stream.aiter_lines())
        monkeypatch.setattr(other.app.state.steps.changes.notices, "wake", lambda _: None)
        started = (await walk.validate("user_never", wait=None)).json()["validation"]
        assert (await walk.at(other.client).validation(started["id"], wait=1)).status_code == 200


async def test_who_waits_looks_again_if_no_notice_comes(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    starter, other = replicas[:2]
    for each in (changes, validate):
        monkeypatch.setattr(each, "LOOK_AGAIN_SECONDS", 0.5)
    walk = await starter.walk().open()
    started = (await walk.validate("user_never", wait=None)).json()["validation"]
    followed = other.app.state.steps.changes
    monkeypatch.setattr(followed.notices, "wake", lambda _: None)
    waiting = asyncio.create_task(walk.at(other.client).validation(started["id"], wait=25))
    await eventually(lambda: walk.id in followed._rooms and followed._rooms[walk.id].session)
    await starter.client.delete(f"{walk.path}/validations/{started['id']}", headers=walk.headers)
    async with asyncio.timeout(HANG_GUARD_SECONDS):
        assert (await waiting).json()["validation"]["reason"] == "canceled"


async def test_draining_waits_for_what_tasks_have_started() -> None:
    tasks, begun, recorded = Tasks(), asyncio.Event(), asyncio.Event()

    async def record() -> None:
        await begun.wait()
        recorded.set()

    async def link() -> None:
        tasks.spawn(record(), name="record")

    tasks.spawn(link(), name="link")
    draining = asyncio.create_task(tasks.drain(HANG_GUARD_SECONDS))
    for _ in range(5):
        await asyncio.sleep(0)
    begun.set()
    await draining
    assert recorded.is_set()
