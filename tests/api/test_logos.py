"""The providers' pictures: from here alone, fetched once, and no host is asked for more than its picture."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from pydantic import SecretStr

from service.app import create_app
from service.link import logos
from service.upstream.pictures import NoPicture, Picture
from tests.api.conftest import shared
from tests.conftest import MovableClock, Replica, make_settings, running_replica
from tests.processes import eventually
from tests.upstream.test_pictures import PNG, SVG, shown
from tests.upstream.vendor import RawVendor, json_answer
from tests.walk import APS

__all__ = ["shared"]

SVG_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
MANY = 12


@dataclass
class Gallery:
    """An instance whose vendor lists pictures at a host of the test's."""

    replica: Replica
    host: RawVendor

    async def logo(self, provider: str = "p0", method: str = "GET", **headers: str) -> httpx.Response:
        return await self.replica.client.request(method, f"/logos/{provider}", headers=headers)


@pytest.fixture
async def gallery(valkey: str, prefix: str, clock: MovableClock) -> AsyncIterator[Gallery]:
    async with RawVendor({"other": shown(PNG, "image/png")}) as host, RawVendor() as vendor:
        vendor.says["companies"] = json_answer(
            200,
            [
                *({"id": f"p{n}", "name": f"Power {n}", "logo": f"{host.url}/{n}.png"} for n in range(MANY)),
                {"id": "data", "name": "Data", "logo": "data:image/gif;base64,R0lG"},
                {"id": "none", "name": "None"},
                {"id": "odd", "name": "Odd", "logo": "javascript:alert(1)"},
                {"id": "inner", "name": "Inner", "logo": "https://10.0.0.1/logo.png"},
            ],
        )
        async with running_replica(make_settings(valkey, vendor.url, prefix), clock=clock) as replica:
            yield Gallery(replica, host)


async def test_a_picture_of_another_host_is_served_as_ours(gallery: Gallery) -> None:
    answer = await gallery.logo(Cookie="a=b", Authorization="Bearer x")
    assert (answer.status_code, answer.content) == (200, PNG)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"] == "public, max-age=86400"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert gallery.host.url not in str(answer.headers)
    (seen,) = gallery.host.seen
    assert seen.line == "GET /0.png HTTP/1.1"
    assert not {"cookie", "authorization", "x-request-id", "referer"} & {
        line.partition(":")[0].lower() for line in seen.head.split("\r\n")
    }


async def test_an_svg_of_another_host_stays_without_scripts(gallery: Gallery) -> None:
    gallery.host.says["other"] = shown(SVG, "image/svg+xml; charset=utf-8")
    answer = await gallery.logo()
    assert (answer.content, answer.headers["content-type"]) == (SVG, "image/svg+xml")
    assert answer.headers["content-security-policy"] == SVG_POLICY


async def test_a_picture_of_the_list_itself_needs_no_host(shared: Replica) -> None:
    answer = await shared.client.get(f"/logos/{APS}")
    assert answer.headers["content-type"] == "image/svg+xml"
    assert answer.headers["content-security-policy"] == SVG_POLICY
    assert answer.headers["cache-control"] == "public, max-age=86400"
    assert answer.text.startswith("<svg")
    known = {"If-None-Match": answer.headers["etag"]}
    assert (await shared.client.get(f"/logos/{APS}", headers=known)).status_code == 304


async def test_who_has_a_picture_is_not_sent_it_again(gallery: Gallery) -> None:
    tag = (await gallery.logo()).headers["etag"]
    again = await gallery.logo(**{"If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert (await gallery.logo(**{"If-None-Match": '"other"'})).status_code == 200


@pytest.mark.parametrize("provider", ["p0", "data"])
async def test_a_head_request_is_answered_as_a_get_without_the_body(gallery: Gallery, provider: str) -> None:
    got, head = await gallery.logo(provider), await gallery.logo(provider, "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    changing = {"date", "x-request-id"}
    assert {name: value for name, value in head.headers.items() if name not in changing} == {
        name: value for name, value in got.headers.items() if name not in changing
    }
    assert (await gallery.logo("nobody", "HEAD")).status_code == 404
    refused = await gallery.logo(provider, "POST")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("provider", ["none", "odd", "inner", "nobody", "http%3A%2F%2F127.0.0.1"])
async def test_where_there_is_no_picture_a_frontend_shows_initials(gallery: Gallery, provider: str) -> None:
    answer = await gallery.logo(provider)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.headers["cache-control"] == "no-store"
    assert gallery.host.connections == 0


@pytest.mark.parametrize(
    "answer", [shown(b"<html>", "text/html"), shown(b"<html>", "image/png"), shown(PNG.ljust(65_537), "image/png")]
)
async def test_what_is_no_picture_is_not_passed_on(gallery: Gallery, answer: bytes) -> None:
    gallery.host.says["other"] = answer
    assert (await gallery.logo()).json()["code"] == "not_found"


# Once


async def test_a_crowd_costs_one_fetch_and_so_does_who_comes_later(gallery: Gallery, clock: MovableClock) -> None:
    answers = await asyncio.gather(*(gallery.logo() for _ in range(30)))
    assert {each.content for each in answers} == {PNG}
    clock.forward(logos.KEEP_MS / 1000 - 1)
    assert (await gallery.logo()).content == PNG
    assert len(gallery.host.seen) == 1
    clock.forward(1)
    assert (await gallery.logo()).content == PNG
    assert len(gallery.host.seen) == 2


async def test_a_failure_is_kept_for_a_while(gallery: Gallery, clock: MovableClock) -> None:
    gallery.host.says["other"] = shown(b"", "text/plain", status=404)
    answers = await asyncio.gather(*(gallery.logo() for _ in range(5)))
    gallery.host.says["other"] = shown(PNG, "image/png")
    clock.forward(logos.KEEP_FAILURE_MS / 1000 - 1)
    assert {each.status_code for each in [*answers, await gallery.logo()]} == {404}
    assert len(gallery.host.seen) == 1
    clock.forward(1)
    assert (await gallery.logo()).status_code == 200


async def test_somebody_who_leaves_takes_the_picture_from_nobody(gallery: Gallery) -> None:
    release = asyncio.Event()

    async def late(writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(shown(PNG, "image/png"))

    gallery.host.says["other"] = late
    find = gallery.replica.app.state.steps.logos.find
    leaving, staying = asyncio.create_task(find("p0")), asyncio.create_task(find("p0"))
    await eventually(lambda: gallery.host.seen)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    release.set()
    assert await staying == Picture("image/png", PNG)
    assert len(gallery.host.seen) == 1


async def test_few_are_fetched_at_a_time_and_who_waits_too_long_has_another_try(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logos, "_TURN_SECONDS", 0.2)
    release = asyncio.Event()

    async def late(writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(shown(PNG, "image/png"))

    gallery.host.says["other"] = late
    asked = [asyncio.create_task(gallery.logo(f"p{n}")) for n in range(MANY)]
    await eventually(lambda: sum(each.done() for each in asked) == MANY - 4)
    await eventually(lambda: gallery.host.connections == 4)
    release.set()
    statuses = sorted([(await each).status_code for each in asked])
    assert statuses == [200] * 4 + [404] * (MANY - 4)
    again = [(await gallery.logo(f"p{n}")).status_code for n in range(MANY)]
    assert again == [200] * MANY
    assert gallery.host.connections == MANY


async def test_no_more_is_kept_than_bears_the_memory(gallery: Gallery) -> None:
    known = gallery.replica.app.state.steps.logos
    await gallery.logo()
    for number in range(300):
        known._keep(f"https://pictures.example/{number}", None)
    assert len(known._known) == 256
    await gallery.logo()
    assert len(gallery.host.seen) == 2


# Who is told where a picture is


async def test_a_list_names_no_other_host_for_pictures(gallery: Gallery) -> None:
    walk = await gallery.replica.walk().open()
    listed = (await gallery.replica.client.get("/v1/providers", headers=walk.headers)).json()["providers"]
    told = {each["id"]: each["logo"] for each in listed}
    assert told["p0"] == "/logos/p0"
    assert told["inner"] == "/logos/inner"
    assert told["data"] == "data:image/gif;base64,R0lG"
    assert told["none"] is told["odd"] is None
    answer = await gallery.replica.client.get("/api/utility-companies", headers=walk.headers)
    vendors = {each["id"]: each.get("logo") for each in answer.json()}
    assert vendors["p0"] == f"{gallery.host.url}/0.png"


async def test_in_production_no_inner_host_is_connected_to(valkey: str, prefix: str, gallery: Gallery) -> None:
    settings = make_settings(
        valkey, "https://vendor.example", prefix, sandbox=False, client_id="client", secret=SecretStr("a real secret")
    )
    pictures = create_app(settings).state.steps.logos._pictures
    host = gallery.host
    for address in (host.url, f"https://127.0.0.1:{host.port}", f"https://localhost:{host.port}", "https://localhost"):
        with pytest.raises(NoPicture) as refused:
            await pictures.fetch(f"{address}/0.png")
        assert refused.value.reason in {"address", "place"}
    assert host.connections == 0
