"""Server-sent events of a session: what is told, in which order, and to whom."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from service.clock import Millis
from service.errors import StoreUnavailable
from service.link import changes, events
from service.link.settle import digest_of
from service.stores.guards import GuardStore
from service.stores.keys import Keys
from service.stores.records import Intent
from tests.conftest import MovableClock, Replica
from tests.events.sse import listening
from tests.link.parts import connected
from tests.processes import eventually
from tests.walk import SRP


async def test_first_event_is_where_the_session_is_now(replica: Replica) -> None:
    walk = await replica.walk().open()
    async with listening(walk) as stream:
        first = await stream.next()
        assert first is not None
        assert (first.name, first.data["session"]["state"]) == ("session.created", "open")
        assert first.data["id"] == first.id
        headers = stream.answer.headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
    assert 1000 <= stream.retries[0] <= 3000
    await walk.validate()
    async with listening(walk) as stream:
        first = await stream.next()
        assert first is not None
        assert first.name == "validation.succeeded"
        assert first.data["session"]["validations"][0]["state"] == "succeeded"


async def test_every_change_is_told_in_order_at_every_replica(replicas: list[Replica]) -> None:
    walk = await replicas[0].walk().open()

    async def listen(replica: Replica) -> list[Any]:
        async with listening(walk, client=replica.client) as stream:
            await stream.next()
            ready.release()
            return await stream.rest()

    ready = asyncio.Semaphore(0)
    listeners = [asyncio.create_task(listen(each)) for each in replicas]
    for _ in replicas:
        await ready.acquire()
    await walk.validate("user_one", "wrong")
    await walk.validate("user_one")
    await walk.link(await walk.account_ids())
    seen = await asyncio.gather(*listeners)
    names = ["validation.pending", "validation.rejected", "validation.pending", "validation.succeeded", "link.created"]
    assert [event.name for event in seen[0]] == names
    ids = [event.id for event in seen[0]]
    assert ids == sorted(set(ids))
    assert all([event.id for event in each] == ids for each in seen)
    assert seen[0][1].data["validation"]["reason"] == "incorrect_credentials"
    assert seen[0][-1].data["session"]["outcome"]["status"] == "OM200"


async def test_resumes_at_another_replica_without_loss_or_repetition(replicas: list[Replica]) -> None:
    walk = await replicas[0].walk().open()
    async with listening(walk) as stream:
        first = await stream.next()
    assert first is not None
    await walk.validate("user_one", "wrong")
    await walk.validate("user_one")
    seen = []
    after = first.id
    for replica in (*replicas, *replicas)[:4]:
        async with listening(walk, after=after, client=replica.client) as stream:
            event = await stream.next()
            assert event is not None
            seen.append(event.name)
            after = event.id
    assert seen == ["validation.pending", "validation.rejected", "validation.pending", "validation.succeeded"]


@pytest.mark.parametrize("after", ["evt_" + "0" * 32 + "_000001", "evt_", "nonsense", "%s_000099"])
async def test_an_id_that_is_not_of_this_session_begins_anew(replica: Replica, after: str) -> None:
    walk = await replica.walk().open()
    async with listening(walk, after=after % walk.id.replace("ses", "evt") if "%s" in after else after) as stream:
        first = await stream.next()
    assert first is not None
    assert first.name == "session.created"


async def test_ends_with_the_session_and_then_there_is_nothing_to_come_back_for(replica: Replica) -> None:
    walk = await replica.walk().open()
    async with listening(walk) as stream:
        await stream.next()
        await walk.close()
        (last,) = await stream.rest()
    assert (last.name, last.data["session"]["outcome"]["status"]) == ("session.closed", "OM400")
    again = await replica.client.get(f"{walk.path}/events", headers=walk.headers | {"Last-Event-ID": last.id})
    assert (again.status_code, again.content) == (204, b"")
    async with listening(walk) as stream:
        assert [event.name for event in await stream.rest()] == ["session.closed"]


@pytest.mark.parametrize("how", ["closed", "linked"])
async def test_nothing_is_told_after_the_end(replica: Replica, how: str) -> None:
    walk = await replica.walk().open()
    await walk.validate("user_one")
    ids = await walk.account_ids()
    pending = (await walk.validate("user_never", provider=SRP, wait=None)).json()["validation"]["id"]
    await (walk.close() if how == "closed" else walk.link(ids))
    assert (await walk.validation(pending, wait=20)).json()["validation"]["reason"] == "canceled"
    async with listening(walk) as stream:
        (last,) = await stream.rest()
    assert last.name == {"closed": "session.closed", "linked": "link.created"}[how]
    again = await replica.client.get(f"{walk.path}/events", headers=walk.headers | {"Last-Event-ID": last.id})
    assert again.status_code == 204


async def test_expiry_is_told_once_and_alike(replicas: list[Replica], clock: MovableClock) -> None:
    walk = await replicas[0].walk().open(ttlSeconds=60)
    ids = []
    async with listening(walk) as one, listening(walk, client=replicas[1].client) as other:
        await one.next()
        await other.next()
        clock.forward(61)
        for replica in replicas:
            replica.app.state.steps.changes.notices.wake(walk.id)
        for stream in (one, other):
            (last,) = await stream.rest()
            assert (last.name, last.data["session"]["state"]) == ("session.expired", "expired")
            ids.append(last.id)
    async with listening(walk, client=replicas[2].client) as stream:
        ids += [event.id for event in await stream.rest()]
    assert len(set(ids)) == 1


async def test_an_unclear_link_is_told(replica: Replica) -> None:
    walk = await replica.walk().open()
    await walk.validate("user_link_lost")
    ids = await walk.account_ids()
    async with listening(walk) as stream:
        assert (await walk.link(ids)).status_code == 504
        seen = await stream.until("link.unknown")
    assert seen[-1].data["session"]["state"] == "unknown"


async def test_a_link_whose_process_died_is_told_as_unclear(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, valkey: str, prefix: str, clock: MovableClock
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(changes, "LOOK_AGAIN_SECONDS", 0.01)
    walk = await replica.walk().open()
    await walk.validate("user_one")
    choice = sorted(await walk.account_ids())
    async with connected(valkey) as store, listening(walk) as stream:
        sessions = replica.app.state.steps.events._sessions
        session = await sessions.read(walk.id)
        guards = GuardStore(
            store=store, keys=Keys(prefix, session.tenant), lease_ms=60_000, sent_lease_ms=0, keep_ms=60_000
        )
        digest = digest_of(choice)
        intent = Intent("att_dead", Millis(clock.now() + 120_000), digest, choice)
        begun = await sessions.begin_link(
            session, intent, now=clock.now(), most_intents=3, most_keys=3, idempotency=None
        )
        assert begun == "begun"
        await guards.claim("att_dead", session.account_id, choice, digest=digest, waited_for=None, resend=())
        assert await guards.mark_sent("att_dead", session.account_id, choice) == "sent"
        async with asyncio.timeout(5):
            seen = await stream.until("link.unknown")
    assert seen[-1].data["session"]["state"] == "unknown"


async def test_at_most_three_streams_of_one_session_over_all_replicas(replicas: list[Replica]) -> None:
    walk = await replicas[0].walk().open()
    async with listening(walk), listening(walk, client=replicas[1].client):
        async with listening(walk, client=replicas[2].client):
            refused = await replicas[0].client.get(f"{walk.path}/events", headers=walk.headers)
            assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
            assert int(refused.headers["retry-after"]) > 0
            rooms = replicas[2].app.state.steps.changes._rooms
        await eventually(lambda: not rooms)
        async with listening(walk) as stream:
            assert await stream.next() is not None


async def test_places_of_a_dead_process_are_free_after_a_while(replica: Replica, clock: MovableClock) -> None:
    walk = await replica.walk().open()
    sessions = replica.app.state.steps.events._sessions
    for name in ("a", "b", "c"):
        assert await sessions.hold_stream(walk.id, name, now=clock.now(), hold_ms=45_000, most=3)
    assert not await sessions.hold_stream(walk.id, "d", now=clock.now(), hold_ms=45_000, most=3)
    assert await sessions.hold_stream(walk.id, "a", now=clock.now(), hold_ms=45_000, most=3)
    clock.forward(46)
    async with listening(walk) as stream:
        assert await stream.next() is not None


async def test_a_stream_whose_place_others_took_says_goodbye(
    replica: Replica, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)
    walk = await replica.walk().open()
    sessions = replica.app.state.steps.events._sessions
    hold = sessions.hold_stream

    async def fails(*_: object, **__: object) -> bool:
        tried.set()
        raise StoreUnavailable

    async with listening(walk) as stream:
        await stream.next()
        tried = asyncio.Event()
        monkeypatch.setattr(sessions, "hold_stream", fails)
        await tried.wait()
        clock.forward(46)
        for name in ("a", "b", "c"):
            assert await hold(walk.id, name, now=clock.now(), hold_ms=45_000, most=3)
        monkeypatch.setattr(sessions, "hold_stream", hold)
        async with asyncio.timeout(5):
            assert await stream.rest() == []
    assert len(stream.retries) == 2


async def test_heartbeats_keep_it_open_and_its_life_is_bounded(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(events, "LIFE_SECONDS", 0.5)
    walk = await replica.walk().open()
    async with listening(walk) as stream:
        assert [event.name for event in await stream.rest()] == ["session.created"]
    assert stream.comments >= 3
    assert len(stream.retries) == 2


async def test_a_draining_process_says_goodbye(replica: Replica) -> None:
    walk = await replica.walk().open()
    async with listening(walk) as stream:
        await stream.next()
        replica.app.state.steps.changes.drain()
        assert await stream.rest() == []
    assert len(stream.retries) == 2


async def test_a_replaced_token_ends_its_streams(replica: Replica) -> None:
    walk = await replica.walk().open()
    async with listening(walk) as stream:
        await stream.next()
        answer = await replica.client.post(f"{walk.path}/tokens", headers=walk.server_headers)
        assert answer.status_code == 201
        assert await stream.rest() == []


async def test_a_client_that_leaves_is_freed(replica: Replica) -> None:
    walk = await replica.walk().open()
    changes = replica.app.state.steps.changes
    async with listening(walk) as stream:
        await stream.next()
        assert len(changes._rooms) == 1

    await eventually(lambda: not changes._rooms and not changes.notices._listeners.get(walk.id))


async def test_all_waiters_of_a_session_share_one_read(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = await replica.walk().open()
    pending = (await walk.validate("user_never", wait=None)).json()["validation"]["id"]
    changes = replica.app.state.steps.changes
    waiting = [asyncio.create_task(walk.validation(pending, wait=20)) for _ in range(40)]

    await eventually(lambda: walk.id in changes._rooms and len(changes._rooms[walk.id]._followers) == 40)
    read, reads = changes.sessions.read, []

    async def counted(session_id: str) -> Any:
        reads.append(session_id)
        return await read(session_id)

    monkeypatch.setattr(changes.sessions, "read", counted)
    await walk.client.delete(f"{walk.path}/validations/{pending}", headers=walk.headers)
    for answer in await asyncio.gather(*waiting):
        assert answer.json()["validation"]["state"] == "failed"
    # The poller and the canceling call look as well.
    assert len(reads) <= 6


@pytest.mark.parametrize("credential", ["key", "none", "other"])
async def test_only_the_sessions_own_token_listens(replica: Replica, credential: str) -> None:
    walk, other = await replica.walk().open(), await replica.walk().open()
    headers = {"key": walk.server_headers, "none": {}, "other": other.headers}[credential]
    answer = await replica.client.get(f"{walk.path}/events", headers=headers)
    assert answer.status_code == {"key": 403, "none": 401, "other": 404}[credential]


async def test_survives_an_outage_of_redis(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = await replica.walk().open()
    changes = replica.app.state.steps.changes
    async with listening(walk) as stream:
        await stream.next()
        read = changes.sessions.read

        async def fails(_session_id: str) -> Any:
            tried.set()
            raise StoreUnavailable

        tried = asyncio.Event()
        monkeypatch.setattr(changes.sessions, "read", fails)
        changes.notices.wake(walk.id)
        await tried.wait()
        monkeypatch.setattr(changes.sessions, "read", read)
        await walk.close()
        assert [event.name for event in await stream.rest()] == ["session.closed"]


async def test_a_change_whose_read_failed_is_told_without_another_notice(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = await replica.walk().open()
    changes = replica.app.state.steps.changes
    async with listening(walk) as stream:
        await stream.next()
        reads = _failing_reads(changes, monkeypatch)
        await walk.close()
        await eventually(lambda: reads)
        monkeypatch.undo()
        async with asyncio.timeout(8):  # before the next heartbeat
            assert [event.name for event in await stream.rest()] == ["session.closed"]


async def test_redis_is_left_alone_while_it_is_away(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = await replica.walk().open()
    changes = replica.app.state.steps.changes
    async with listening(walk) as stream:
        await stream.next()
        reads = _failing_reads(changes, monkeypatch)
        changes.notices.subscribed.clear()
        for _ in range(50):
            changes.notices.wake_all()  # as whenever a subscription does not come about
            await asyncio.sleep(0)
        assert len(reads) <= 2
        await walk.close()
        monkeypatch.undo()
        changes.notices.subscribed.set()
        changes.notices.wake_all()
        async with asyncio.timeout(5):
            assert [event.name for event in await stream.rest()] == ["session.closed"]


def _failing_reads(changes: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fail what is read for those who follow a session, and nothing else; what was read."""
    reads: list[str] = []

    async def fails(session_id: str) -> Any:
        reads.append(session_id)
        raise StoreUnavailable

    monkeypatch.setattr(changes, "sessions", SimpleNamespace(read=fails))
    return reads


async def test_a_read_that_breaks_leaves_nobody_waiting(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = await replica.walk().open()
    pending = (await walk.validate("user_never", wait=None)).json()["validation"]["id"]

    async def breaks(_session_id: str) -> Any:
        raise RuntimeError

    monkeypatch.setattr(replica.app.state.steps.changes.sessions, "read", breaks)
    async with asyncio.timeout(10):
        answer = await walk.validation(pending, wait=20)
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
