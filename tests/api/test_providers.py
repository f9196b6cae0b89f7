"""Step 2a over HTTP: search, and being asked again."""

import pytest

from service.sandbox.server import SandboxServer
from tests.conftest import Replica


async def names(replica: Replica, search: str) -> list[str]:
    answer = await replica.client.get("/v1/providers", params={"search": search}, headers=replica.walk().server_headers)
    assert answer.status_code == 200
    return [each["name"] for each in answer.json()["providers"]]


async def test_providers_that_begin_with_the_text_come_first(shared: Replica) -> None:
    everything = await names(shared, "")
    assert len(everything) == 18
    found = await names(shared, "s")
    begin = [each for each in found if each.casefold().startswith("s")]
    assert found[: len(begin)] == begin
    assert len(begin) < len(found)
    assert set(found) == {each for each in everything if "s" in each.casefold()}
    assert begin == sorted(begin, key=str.casefold)


@pytest.mark.parametrize(
    ("search", "count"),
    [("salt river", 1), ("SALT", 1), ("  Salt ", 1), ("gas &", 1), ("%", 0), (".*", 0), ("no such", 0), ("\u202e", 0)],
)
async def test_the_text_is_a_part_of_the_name_in_any_case(shared: Replica, search: str, count: int) -> None:
    assert len(await names(shared, search)) == count


async def test_a_search_text_has_256_characters_at_most(shared: Replica) -> None:
    headers = shared.walk().server_headers
    assert (await shared.client.get("/v1/providers", params={"search": "x" * 256}, headers=headers)).status_code == 200
    refused = await shared.client.get("/v1/providers", params={"search": "x" * 257}, headers=headers)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "search")


async def test_the_list_may_be_kept_for_five_minutes_by_its_caller_alone(shared: Replica) -> None:
    headers = shared.walk().server_headers
    first = await shared.client.get("/v1/providers", headers=headers)
    assert first.headers["Cache-Control"] == "private, max-age=300"
    tag = first.headers["ETag"]
    for condition in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await shared.client.get("/v1/providers", headers=headers | {"If-None-Match": condition})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["ETag"] == tag
        assert again.headers["Cache-Control"] == "private, max-age=300"
    for condition in ('"other"', tag.strip('"'), ""):
        assert (
            await shared.client.get("/v1/providers", headers=headers | {"If-None-Match": condition})
        ).status_code == 200


async def test_each_search_has_a_tag_of_its_own(shared: Replica) -> None:
    headers = shared.walk().server_headers
    tags = {
        (await shared.client.get("/v1/providers", params={"search": text}, headers=headers)).headers["ETag"]
        for text in ("", "s", "sa", "no such", "none such")
    }
    assert len(tags) == 5


async def test_a_session_token_reads_the_list_too_and_costs_the_vendor_nothing(
    shared: Replica, vendor: SandboxServer
) -> None:
    walk = await shared.walk().open()
    assert (await shared.client.get("/v1/providers", headers=walk.headers)).status_code == 200
    assert vendor.world.calls.all("companies") == []
