"""The whole flow, as a newcomer walks it."""

from service.sandbox.server import SandboxServer
from tests.conftest import Replica
from tests.walk import PGE, sign_in


async def test_four_steps_end_in_om200(replica: Replica, upstream: SandboxServer) -> None:
    walk = replica.walk()
    ids = await walk.ready()
    linked = await walk.link(ids)
    assert linked.status_code == 201
    body = linked.json()
    assert body["status"] == "OM200"
    assert body["message"] == "Resolved: User account(s) successfully linked"
    assert sorted(each["id"] for each in body["serviceAccounts"]) == sorted(ids)
    assert [call.route for call in upstream.world.calls.all()].count("token") == 1
    assert len(upstream.world.links) == 1


async def test_oauth_goes_over_the_utilitys_own_page(replica: Replica) -> None:
    walk = await replica.walk().open()
    started = await walk.validate(None, provider=PGE, wait=None)
    assert started.status_code == 202
    validation = started.json()["validation"]
    page = validation["authorizeUrl"]
    assert "secret" not in page
    granted = await sign_in(replica.client, page)
    assert granted.status_code < 400, granted.text
    finished = (await walk.validation(validation["id"], wait=20)).json()["validation"]
    assert finished["state"] == "succeeded"
