"""Whatever the vendor says, callers get an envelope that is true, never a 500, and nothing bad is kept."""

import asyncio
import gzip
import logging
import math
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import orjson
import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from service.errors import UpstreamMalformed
from service.settings import SANDBOX_API_KEY
from service.upstream.transport import TransportLimits
from service.wiring import Timing
from tests.conftest import Replica, make_settings, running_replica
from tests.shared import NEVER_SHUT
from tests.upstream.vendor import ROUTES, RawVendor, json_answer, raw

HEADERS: Final = {"Authorization": f"Bearer {SANDBOX_API_KEY}"}
DEEP: Final = b"[" * 100_000
BOMB: Final = gzip.compress(b" " * (32 * 2**20) + b"{}")

ZOO: Final = {
    "html": b"<!doctype html><title>Sorry</title>",
    "empty": b"",
    "null": b"null",
    "a number": b"1",
    "a string": b'"id"',
    "not a number": b"NaN",
    "infinite": b'{"id": Infinity, "status": NaN}',
    "deep": DEEP,
    "deep inside": b'{"id":"x","token":"t","status":"success","response":' + DEEP,
    "deep and closed": DEEP + b"]" * 100_000,
    "truncated": b'{"id": "unfini',
    "10 MB": b'{"id":"' + b"x" * (10 * 2**20) + b'"}',
    "lone surrogate": b'{"id":"\\ud800","token":"\\ud800","status":"success","response":{"accountId":"\\ud800"}}',
    "no UTF-8": b'{"id":"\xff\xfe"}',
    "UTF-16": '{"id":"x","token":"y"}'.encode("utf-16"),
    "wrong types": b'{"id":1,"token":["t"],"status":"success","response":[1]}',
    "an object for an id": b'{"id":{"$ne":null},"token":{},"status":"success","response":{"accountId":{}}}',
    "a path for an id": b'{"id":"../jobs/1","token":"t","status":"success","response":{"accountId":"../../x"}}',
    "a slash": b'{"id":"a/b","token":"t","status":"success","response":{"accountId":"a/b"}}',
    "a query": b'{"id":"a?b#c","token":"t","status":"success","response":{"accountId":"a?b"}}',
    "a newline": b'{"id":"a\\n","token":"t\\r\\nx: y","status":"success","response":{"accountId":"a\\n"}}',
    "two documents": b'{"id":"a","token":"t"}{"id":"b","token":"u"}',
}


def replies(status: int) -> list[bytes]:
    broken = [raw(status, body) for body in ZOO.values()]
    return [*broken, raw(status, BOMB, "content-encoding: gzip"), raw(status, b"\x1f\x8bno", "content-encoding: gzip")]


@asynccontextmanager
async def service_of(vendor: RawVendor, valkey: str, prefix: str) -> AsyncIterator[Replica]:
    timing = Timing(upstream=TransportLimits(total_seconds=2), limiter=NEVER_SHUT)
    async with running_replica(make_settings(valkey, vendor.url, prefix, poll_seconds=0.02), timing=timing) as replica:
        yield replica


@pytest.fixture
async def vendor() -> AsyncIterator[RawVendor]:
    async with RawVendor() as running:
        yield running


@pytest.fixture
async def replica(vendor: RawVendor, valkey: str, prefix: str) -> AsyncIterator[Replica]:
    async with service_of(vendor, valkey, prefix) as running:
        yield running


def is_upstreams_fault(answer: httpx.Response) -> None:
    assert answer.status_code == 502, answer.text
    body = answer.json()
    assert body["code"] in {"upstream_malformed", "upstream_error"}
    assert body["message"] == "Rejected: Internal server error"


async def test_token(vendor: RawVendor, replica: Replica) -> None:
    good = vendor.says["token"]
    for reply in [*replies(200), raw(204, b""), raw(302, b"", "location: /x"), json_answer(201, {"id": "a"})]:
        vendor.says["token"] = reply
        is_upstreams_fault(await replica.client.post("/v1/sessions", headers=HEADERS, json={}))
    vendor.says["token"] = good
    assert (await replica.client.post("/v1/sessions", headers=HEADERS, json={})).status_code == 201


async def providers(replica: Replica) -> httpx.Response:
    return await replica.client.get("/v1/providers", headers=HEADERS)


async def test_companies(vendor: RawVendor, replica: Replica) -> None:
    good = vendor.says["companies"]
    many = [{"id": f"c{number}", "name": "n"} for number in range(5001)]
    for reply in [
        *replies(200),
        json_answer(200, []),
        json_answer(200, many),
        json_answer(200, {"companies": []}),
        json_answer(200, [None, 1, "x", [], {}, {"id": "a/b", "name": "x"}, {"id": "x"}, {"id": "x", "name": ""}]),
        raw(206, b"[]"),
    ]:
        vendor.says["companies"] = reply
        is_upstreams_fault(await providers(replica))
    vendor.says["companies"] = good
    found = await providers(replica)
    assert [each["id"] for each in found.json()["providers"]] == ["c1"]


async def test_a_list_that_has_become_bad_does_not_take_a_good_ones_place(
    vendor: RawVendor, replica: Replica, valkey: str, prefix: str
) -> None:
    before = (await providers(replica)).json()["providers"]
    steps = replica.app.state.steps
    for reply in replies(200):
        vendor.says["companies"] = reply
        with pytest.raises(UpstreamMalformed):
            await steps.providers._fetch(math.inf)
    assert (await providers(replica)).json()["providers"] == before
    async with service_of(vendor, valkey, prefix) as another:
        assert (await providers(another)).json()["providers"] == before


async def test_the_good_part_of_a_list_is_served_and_its_addresses_are_harmless(
    vendor: RawVendor, replica: Replica
) -> None:
    addresses = [
        "javascript:alert(1)",
        "JaVaScRiPt:x",
        "data:text/html,x",
        "vbscript:x",
        "//host",
        "file:///etc",
        "x\ny",
    ]
    vendor.says["companies"] = json_answer(
        200,
        [
            *({"id": f"u{number}", "name": "N", "url": each, "logo": each} for number, each in enumerate(addresses)),
            *({"id": f"l{number}", "name": "O", "loginUrl": each} for number, each in enumerate(addresses)),
            {"id": "twice", "name": "First"},
            {"id": "twice", "name": "Second"},
            {"id": "../jobs", "name": "Path"},
            {"id": "big", "name": "Big logo", "logo": "data:image/png;base64," + "A" * 70_000, "url": ["odd"]},
            {"id": "odd", "name": "Odd login", "loginUrl": 5},
            {"id": "more", "name": "More", "unknown": {"a": [1]}, "secret": "canary"},
            7,
        ],
    )
    answer = await providers(replica)
    assert answer.status_code == 200
    found = {each["id"]: each for each in answer.json()["providers"]}
    assert found.keys() == {*(f"{kind}{n}" for kind in "ul" for n in range(len(addresses))), "twice", "big", "more"}
    assert all(each["url"] is None and each["logo"] is None for each in found.values())
    # A sign-in page that nobody may be sent to does not turn into a question for the password.
    assert all(found[f"l{n}"]["signIn"] == "oauth" for n in range(len(addresses)))
    assert not any(found[f"l{n}"]["available"] for n in range(len(addresses)))
    assert found["twice"]["name"] == "First"
    assert "canary" not in answer.text


async def validated(replica: Replica, wait: int = 10) -> Any:
    walk = await replica.walk().open()
    # Each a person of its own: one account is not tried that often.
    answer = await walk.validate(f"person {walk.id}", "pw", provider="c1", wait=wait)
    assert answer.status_code in {200, 201, 202}, answer.text
    return walk, answer.json()


async def test_jobs(vendor: RawVendor, replica: Replica) -> None:
    good = vendor.says["jobs"]
    for reply in [*replies(201), json_answer(200, {"id": "job1"}), raw(302, b"", "location: /jobs/1")]:
        vendor.says["jobs"] = reply
        before = vendor.count("jobs")
        _, body = await validated(replica)
        assert body["validation"]["state"] == "failed"
        assert vendor.count("jobs") == before + 1
    vendor.says["jobs"] = good
    assert (await validated(replica))[1]["validation"]["state"] == "succeeded"


async def test_job(vendor: RawVendor, replica: Replica) -> None:
    """A poll that makes no sense is as good as none; the next one counts."""
    good = vendor.says["job"]
    assert isinstance(good, bytes)
    for reply in [
        *replies(200),
        json_answer(200, {"status": "success", "response": {}}),
        json_answer(200, {"status": "success", "response": {"accounts": [{"accountId": "a/b"}]}}),
        json_answer(200, {"status": "success", "response": {"accounts": [{"accountId": "a"}] * 201}}),
        json_answer(200, {"status": ["success"], "response": {"accountId": "ua1"}}),
        raw(503, b"{}"),
    ]:
        asked = 0

        async def once(writer: asyncio.StreamWriter, reply: bytes = reply) -> None:
            nonlocal asked
            asked += 1
            writer.write(reply if asked == 1 else good)

        vendor.says["job"] = once
        _, body = await validated(replica)
        assert body["validation"]["state"] == "succeeded", (reply[:200], body)
        assert asked == 2
    assert not [each.line for each in vendor.seen if each.route is None]


async def test_account(vendor: RawVendor, replica: Replica) -> None:
    good = vendor.says["account"]
    vendor.says["account"] = raw(500, b"")
    walk, body = await validated(replica)
    assert body["validation"]["state"] == "succeeded"
    for reply in [
        *replies(200),
        json_answer(200, {"id": "ua1"}),
        json_answer(200, {"id": "ua1", "serviceAccounts": None}),
        json_answer(200, {"id": "ua1", "serviceAccounts": [{"id": "s"}] * 2001}),
        raw(404, b"{}"),
    ]:
        vendor.says["account"] = reply
        is_upstreams_fault(await walk.accounts())
    vendor.says["account"] = good
    assert [each["id"] for each in (await walk.accounts()).json()["serviceAccounts"]] == ["sa1"]
    vendor.says["account"] = raw(200, b"null")
    is_upstreams_fault(await walk.accounts(**{"Cache-Control": "no-cache"}))
    assert [each["id"] for each in (await walk.accounts()).json()["serviceAccounts"]] == ["sa1"]


async def test_the_good_part_of_an_account_is_served(vendor: RawVendor, replica: Replica) -> None:
    vendor.says["account"] = json_answer(
        200,
        {
            "id": "ua1",
            "name": ["odd"],
            "ssn": "canary",
            "serviceAccounts": [
                {"id": "good", "address": {"street": "1 Main", "city": 5, "gps": "canary"}, "meterNumber": 7},
                {"id": "good", "meterNumber": "second"},
                {"id": "odd", "address": "somewhere", "legalNames": "me", "balance": "canary"},
                {"id": "a/../b"},
                {"id": None},
                "x",
            ],
        },
    )
    before = _left_out()
    walk, _ = await validated(replica)
    answer = await walk.accounts()
    assert answer.status_code == 200
    after = _left_out()
    each_time = {"service_account": 3, "service_account_field": 1, "optional_field": 5}
    assert {what: after[what] - before[what] for what in after} == {
        what: count * vendor.count("account") for what, count in each_time.items()
    }
    found = {each["id"]: each for each in answer.json()["serviceAccounts"]}
    assert found.keys() == {"good", "odd"}
    assert found["good"]["address"] == {"street": "1 Main", "city": None, "state": None, "postalCode": None}
    assert found["good"].get("meterNumber") is None
    assert found["odd"]["address"] is None
    assert "canary" not in answer.text


def _left_out() -> dict[str, float]:
    return {
        what: REGISTRY.get_sample_value("omniconnect_upstream_dropped_total", {"what": what}) or 0.0
        for what in ("service_account", "service_account_field", "optional_field")
    }


EXTRA: Final = {"ssn": "canary", "raw_password": "canary", "internal_note": {"canary": ["canary"]}}
HEADER: Final = ("X-Internal: canary", "Set-Cookie: canary=canary")


async def test_only_listed_fields_come_out(
    vendor: RawVendor, replica: Replica, valkey: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    def said(status: int, content: object) -> bytes:
        return raw(status, orjson.dumps(content), *HEADER)

    vendor.says |= {
        "token": said(200, {"id": "acc", "token": "tok", **EXTRA}),
        "companies": said(200, [{"id": "c1", "name": "One", "url": "https://one.example", **EXTRA}]),
        "jobs": said(201, {"id": "job1", "status": "new", **EXTRA}),
        "job": said(200, {"status": "success", "response": {"accountId": "ua1", **EXTRA}, **EXTRA}),
        "account": said(
            200,
            {
                "id": "ua1",
                "name": "Me",
                "serviceAccounts": [{"id": "sa1", "address": {"street": "1 Main", **EXTRA}, **EXTRA}],
                **EXTRA,
            },
        ),
        "batch": said(201, {"id": "sa1", **EXTRA}),
    }
    caplog.set_level(logging.DEBUG)
    walk, _ = await validated(replica)
    session = await replica.app.state.steps.access._sessions.read(walk.id)
    answers = [
        await replica.client.get("/v1/providers", headers=HEADERS),
        await replica.client.get("/api/utility-companies", headers=walk.headers),
        await replica.client.get(f"/api/jobs/{session.validations[0].job_id}", headers=walk.headers),
        await replica.client.get("/api/utility-user-account/ua1", headers=walk.headers),
        await walk.accounts(**{"Cache-Control": "no-cache"}),
        await walk.link(["sa1"]),
        await walk.show(),
        await walk.show(by_server=True),
        await replica.client.get(f"{walk.path}/events", headers=walk.headers),
        await replica.client.get("/metrics"),
    ]
    assert vendor.count("batch") == 1
    for answer in answers:
        assert answer.is_success, answer.text
        assert "canary" not in f"{answer.headers.raw!r} {answer.text}", answer.request.url.path
    async with Redis.from_url(valkey) as redis:
        stored = [await redis.dump(key) async for key in redis.scan_iter(f"{prefix}:*")]
    assert len(stored) >= 5
    assert not any(b"canary" in (each or b"") for each in stored)
    assert "canary" not in caplog.text


async def test_many_accounts_are_read_side_by_side(vendor: RawVendor, replica: Replica) -> None:
    """One after the other, slow answers would add up to more than a caller waits."""
    running = most = 0

    async def slow(writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        writer.write(json_answer(200, {"id": "ua", "serviceAccounts": []}))

    vendor.says["account"] = slow
    found = [{"accountId": f"ua{number}", "serviceAccountId": f"sa{number}"} for number in range(30)]
    vendor.says["job"] = json_answer(200, {"status": "success", "response": {"accounts": found}})
    walk, _ = await validated(replica)
    assert len((await walk.accounts()).json()["serviceAccounts"]) == 30
    assert 5 <= most <= 10
    assert vendor.count("account") == 30


async def test_batch_counts_as_linked_by_its_status_whatever_the_body(vendor: RawVendor, replica: Replica) -> None:
    for number, reply in enumerate(replies(201)):
        vendor.says["account"] = json_answer(200, {"id": "ua1", "serviceAccounts": [{"id": f"sa{number}"}]})
        vendor.says["batch"] = reply
        walk, _ = await validated(replica)
        linked = await walk.link([f"sa{number}"])
        assert (linked.status_code, linked.json()["status"]) == (201, "OM200")


async def test_batch_with_another_status_is_unknown_or_refused(vendor: RawVendor, replica: Replica) -> None:
    expected = {200: 504, 204: 504, 302: 504, 400: 502, 404: 502, 408: 504, 422: 502, 429: 504, 500: 504, 503: 504}
    for status, told in expected.items():
        vendor.says["account"] = json_answer(200, {"id": "ua1", "serviceAccounts": [{"id": f"sb{status}"}]})
        vendor.says["batch"] = raw(status, b"" if status == 204 else ZOO["html"], "location: /elsewhere")
        before = vendor.count("batch")
        walk, _ = await validated(replica)
        answer = await walk.link([f"sb{status}"])
        assert answer.status_code == told, (status, answer.text)
        assert answer.json()["code"] == ("upstream_error" if told == 502 else "outcome_unknown")
        assert vendor.count("batch") == before + 1


@pytest.mark.parametrize(
    "hostile", ["..", ".", "a/b", "a%2fb", "%2e%2e", "a?b", "a#b", "//host", "a b", "a\n", "", "a" * 129]
)
async def test_no_id_of_a_caller_alters_an_upstream_path(vendor: RawVendor, replica: Replica, hostile: str) -> None:
    walk, _ = await validated(replica)
    before = len(vendor.seen)
    answers = [
        await walk.validate("u", "p", provider=hostile, wait=1),
        await walk.link([hostile]),
    ]
    assert {each.status_code for each in answers} <= {404, 422}
    assert len(vendor.seen) == before


async def test_every_call_was_one_of_the_six(vendor: RawVendor, replica: Replica) -> None:
    walk, _ = await validated(replica)
    assert (await walk.link(["sa1"])).status_code == 201
    assert {each.route for each in vendor.seen} == set(ROUTES)


def labelled(status: int, body: bytes, content_type: str | None) -> bytes:
    label = [f"content-type: {content_type}"] if content_type is not None else []
    return "\r\n".join([f"HTTP/1.1 {status} Said", f"content-length: {len(body)}", *label, "", ""]).encode() + body


def body_of(answer: object) -> bytes:
    assert isinstance(answer, bytes)
    return answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/jsonp"])
async def test_what_does_not_claim_to_be_json_is_not_read(
    vendor: RawVendor, replica: Replica, content_type: str
) -> None:
    well = dict(vendor.says)
    wrong = {
        route: labelled(201 if route == "jobs" else 200, body_of(each), content_type) for route, each in well.items()
    }
    vendor.says["token"] = wrong["token"]
    is_upstreams_fault(await replica.client.post("/v1/sessions", headers=HEADERS, json={}))
    vendor.says |= well | {"companies": wrong["companies"]}
    is_upstreams_fault(await providers(replica))
    vendor.says |= well | {"jobs": wrong["jobs"]}
    assert (await validated(replica))[1]["validation"]["reason"] == "outcome_unknown"
    vendor.says |= well | {"account": wrong["account"]}
    walk, _ = await validated(replica)
    is_upstreams_fault(await walk.accounts())
    vendor.says |= well | {"batch": labelled(201, b"<p>done</p>", content_type)}
    assert [each["id"] for each in (await walk.accounts()).json()["serviceAccounts"]] == ["sa1"]
    assert (await walk.link(["sa1"])).status_code == 201


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=UTF-8", "application/problem+json", "", None]
)
async def test_json_is_read_however_it_is_labelled(
    vendor: RawVendor, replica: Replica, content_type: str | None
) -> None:
    for route, status in {"token": 200, "companies": 200, "jobs": 201, "job": 200, "account": 200}.items():
        vendor.says[route] = labelled(status, body_of(vendor.says[route]), content_type)
    walk, body = await validated(replica)
    assert body["validation"]["state"] == "succeeded"
    assert (await walk.link(["sa1"])).status_code == 201


@pytest.mark.parametrize("route", ["companies", "jobs", "job", "account", "batch"])
async def test_a_401_in_mid_flight_costs_one_token_and_no_caller_a_thing(
    vendor: RawVendor, replica: Replica, route: str
) -> None:
    good = vendor.says[route]
    answers = [raw(401, b"{}"), good]

    async def once(writer: asyncio.StreamWriter) -> None:
        answer = answers.pop(0)
        writer.write(answer if isinstance(answer, bytes) else b"")

    vendor.says[route] = once
    walk, body = await validated(replica)
    assert body["validation"]["state"] == "succeeded"
    assert (await walk.link(["sa1"])).status_code == 201
    assert vendor.count(route) == 2
    assert vendor.count("token") == 2
    assert sum(vendor.count(each) for each in ROUTES) == 8


CUTS_OF_EACH: Final = None if "FAULT_ROUNDS" in os.environ else 6


@pytest.mark.parametrize("route", ["token", "companies", "account", "job"])
async def test_an_answer_that_breaks_off_anywhere_is_no_answer_and_is_not_kept(
    vendor: RawVendor, replica: Replica, route: str
) -> None:
    good = vendor.says[route]
    assert isinstance(good, bytes)
    cuts = list(range(len(good)))
    if CUTS_OF_EACH is not None:
        cuts = random.Random(route).sample(cuts, CUTS_OF_EACH)  # noqa: S311 -- the same sample each time
    walk = None if route == "token" else await replica.walk().open()
    if route == "account":
        vendor.says[route] = raw(500, b"")
        walk, _ = await validated(replica)
    for cut in cuts:
        broken = 0

        async def half(writer: asyncio.StreamWriter, cut: int = cut) -> None:
            nonlocal broken
            broken += 1
            writer.write(good if route == "job" and broken > 1 else good[:cut])
            await writer.drain()
            if route != "job" or broken == 1:
                writer.close()

        vendor.says[route] = half
        if route == "job":
            assert (await validated(replica))[1]["validation"]["state"] == "succeeded", cut
            assert broken == 2
            continue
        if route == "token":
            answer = await replica.client.post("/v1/sessions", headers=HEADERS, json={})
        elif walk is not None and route == "account":
            answer = await walk.accounts(**{"Cache-Control": "no-cache"})
        else:
            answer = await providers(replica)
        assert (answer.status_code, answer.json()["code"]) == (503, "upstream_unavailable"), (cut, answer.text)
    vendor.says[route] = good
    walk, body = await validated(replica)
    assert body["validation"]["state"] == "succeeded"
    assert [each["id"] for each in (await walk.accounts()).json()["serviceAccounts"]] == ["sa1"]
