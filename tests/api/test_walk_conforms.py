"""A whole walk, with every answer held against its documented model."""

import httpx

from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY
from tests.api.conforming import conforming
from tests.conftest import MovableClock, Replica
from tests.walk import APS, PGE, SCE, SRP, Walk


async def test_every_answer_of_a_walk_is_as_documented(replica: Replica, upstream: SandboxServer) -> None:
    async with conforming(replica) as client:
        walk = Walk(client, api_key=SANDBOX_API_KEY)
        await walk.open(subject="person-1", metadata={"a": "b"})
        listed = await client.get("/v1/providers", headers=walk.headers)
        again = await client.get("/v1/providers", headers=walk.headers | {"If-None-Match": listed.headers["ETag"]})
        assert again.status_code == 304
        assert (await walk.accounts()).status_code == 409
        pending = await walk.validate("user_never", provider=SRP, wait=None)
        assert (await walk.validate("user_never", provider=SRP)).status_code == 409
        await walk.validate("user_bad", provider=APS)
        assert (await walk.validate(None, provider=SCE)).status_code == 422
        oauth = await walk.validate(None, provider=PGE, wait=None)
        for started in (pending, oauth):
            await client.delete(started.headers["Location"], headers=walk.headers)
        await walk.validate("user_forty")
        ids = await walk.account_ids()
        consent = {"version": "2", "acceptedAt": "2026-01-02T03:04:05Z"}
        assert (await walk.link(["no-such"])).status_code == 404
        assert (await walk.link(ids[:3], consent=consent)).status_code == 201
        assert (await walk.link(ids[:3], consent=consent)).headers["Idempotency-Replayed"] == "true"
        assert (await walk.link(ids)).status_code == 409
        for shown in (await walk.show(), await walk.show(by_server=True), await walk.close()):
            assert shown.json()["session"]["state"] == "linked"
        await client.post(f"{walk.path}/tokens", headers=walk.server_headers)
    assert len(upstream.world.links) == 1


async def test_every_ending_of_a_session_is_as_documented(replica: Replica, clock: MovableClock) -> None:
    async with conforming(replica) as client:
        assert await _ending(client, "user_link_lost") == ("unknown", "outcome_unknown", 504)
        assert await _ending(client, "user_link_refused") == ("open", None, 502)
        closed = await Walk(client, api_key=SANDBOX_API_KEY).open()
        assert (await closed.close()).json()["code"] == "user_closed"
        expired = await Walk(client, api_key=SANDBOX_API_KEY).open()
        clock.forward(1801)
        assert (await expired.show()).json()["code"] == "session_expired"
        assert (await expired.validate()).status_code == 410


async def _ending(client: httpx.AsyncClient, username: str) -> tuple[str, str | None, int]:
    walk = Walk(client, api_key=SANDBOX_API_KEY)
    linked = await walk.link(await walk.ready(username))
    shown = (await walk.show()).json()
    return shown["session"]["state"], shown.get("code"), linked.status_code


async def test_every_failed_validation_is_as_documented(shared: Replica, vendor: SandboxServer) -> None:
    async with conforming(shared) as client:
        walk = await Walk(client, api_key=SANDBOX_API_KEY).open()
        for kind in ("hang", "malformed", "status"):
            vendor.world.faults.add("jobs", kind)
            assert (await walk.validate()).json()["validation"]["state"] == "failed"
        await walk.validate("user_job_error")
        await walk.validate("user_good", "wrong")
        assert (await walk.validate()).status_code == 429
        assert len((await walk.show()).json()["session"]["validations"]) == 5
