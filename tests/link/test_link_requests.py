"""Step 4 over HTTP: one call per choice, whoever asks, however often, at whichever replica."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

import httpx
import pytest

from service.sandbox.server import SandboxServer
from service.settings import Settings
from tests.conftest import MovableClock, Replica, running_replica
from tests.link.waiting import until
from tests.plain import NO_TLS
from tests.walk import SRP, Walk


@pytest.fixture
async def pair(settings: Settings, clock: MovableClock) -> AsyncIterator[list[Replica]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running_replica(settings, clock=clock)) for _ in range(2)]


def _batches(upstream: SandboxServer) -> int:
    return len(upstream.world.calls.all("batch"))


def _accounts(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 201, answer.text
    return [each["id"] for each in answer.json()["serviceAccounts"]]


def _code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


async def test_a_hundred_requests_for_one_choice_at_two_replicas_make_one_call(
    pair: list[Replica], upstream: SandboxServer
) -> None:
    walk = pair[0].walk()
    ids = sorted(await walk.ready("user_quick"))
    upstream.world.faults.add("batch", "delay", value=0.2)
    answers = await asyncio.gather(
        *(
            walk.at(pair[number % 2].client).link(ids if number % 3 else ids[::-1], key="k" if number % 4 < 2 else None)
            for number in range(100)
        )
    )
    assert [_accounts(each) for each in answers] == [ids] * 100
    assert len({each.json()["link"]["id"] for each in answers}) == 1
    assert _batches(upstream) == 1


async def test_overlapping_choices_in_parallel_send_no_account_twice(
    pair: list[Replica], upstream: SandboxServer
) -> None:
    walks = [replica.walk() for replica in pair]
    a, b, c = (await asyncio.gather(*(walk.ready("user_forty") for walk in walks)))[0][:3]
    answers = await asyncio.gather(walks[0].link([a, b]), walks[1].link([b, c]))
    assert 201 in {each.status_code for each in answers}
    for answer in answers:
        assert answer.status_code == 201 or _code(answer) == (409, "already_in_progress")
    counts = upstream.world.link_counts
    assert counts[b] == 1
    assert max(counts.values()) == 1


async def test_another_choice_that_overlaps_is_refused_while_the_first_is_being_linked(
    pair: list[Replica], upstream: SandboxServer
) -> None:
    walks = [replica.walk() for replica in pair]
    a, b, c = (await asyncio.gather(*(walk.ready("user_forty") for walk in walks)))[0][:3]
    upstream.world.faults.add("batch", "delay", value=0.3)
    linking = asyncio.create_task(walks[0].link([a, b]))
    await until(lambda: _batches(upstream))
    refused = await walks[1].link([b, c])
    assert _code(refused) == (409, "already_in_progress")
    assert "Retry-After" in refused.headers
    assert _code(await walks[0].link([a, c])) == (409, "already_in_progress")
    assert _accounts(await linking) == sorted([a, b])
    assert _accounts(await walks[1].link([b, c])) == sorted([b, c])
    assert upstream.world.link_counts == {a: 1, b: 1, c: 1}


async def test_the_same_choice_in_two_sessions_makes_one_call(pair: list[Replica], upstream: SandboxServer) -> None:
    walks = [replica.walk() for replica in pair]
    ids = sorted((await asyncio.gather(*(walk.ready("user_quick") for walk in walks)))[0])
    upstream.world.faults.add("batch", "delay", value=0.1)
    answers = await asyncio.gather(*(walk.link(ids) for walk in walks))
    assert [_accounts(each) for each in answers] == [ids, ids]
    assert _batches(upstream) == 1


@pytest.mark.parametrize(
    ("username", "expected"),
    [("user_link_refused", (502, "upstream_error")), ("user_link_lost", (504, "outcome_unknown"))],
)
async def test_joiners_share_how_the_call_ended(
    pair: list[Replica], upstream: SandboxServer, username: str, expected: tuple[int, str]
) -> None:
    walks = [pair[0].walk(), pair[0].walk(), pair[1].walk()]
    ids = (await asyncio.gather(*(walk.ready(username) for walk in walks)))[0]
    upstream.world.faults.add("batch", "delay", value=2.0)  # who comes after a refusal makes a call of their own
    first = asyncio.create_task(walks[0].link(ids))
    await until(lambda: _batches(upstream))
    answers = await asyncio.gather(first, *(walk.link(ids) for walk in walks))
    assert [_code(each) for each in answers] == [expected] * 4
    assert len({tuple(each.json().get("attempts", ())) for each in answers}) == 1
    assert _batches(upstream) == 1


async def test_what_is_linked_replays_and_says_so(pair: list[Replica], upstream: SandboxServer) -> None:
    walk = pair[0].walk()
    ids = await walk.ready("user_quick")
    first = await walk.link(ids, key="k")
    assert "Idempotency-Replayed" not in first.headers
    for again in (
        await walk.link(ids, key="k"),
        await walk.at(pair[1].client).link(ids),
        await walk.link(ids[::-1], key="another"),
    ):
        assert again.headers["Idempotency-Replayed"] == "true"
        assert {**again.json(), "requestId": ""} == {**first.json(), "requestId": ""}
    assert _batches(upstream) == 1


async def test_what_another_session_linked_is_linked_without_a_call(replica: Replica, upstream: SandboxServer) -> None:
    first, second = replica.walk(), replica.walk()
    ids = await first.ready("user_quick")
    await second.ready("user_quick")
    answers = [await each.link(ids) for each in (first, second)]
    assert [_accounts(answer) for answer in answers] == [sorted(ids)] * 2
    links = {answer.json()["link"]["id"] for answer in answers}
    assert len([link for link in links if re.fullmatch("lnk_[0-9a-f]{24}", link)]) == 2
    assert _batches(upstream) == 1
    assert (await second.show()).json()["session"]["state"] == "linked"


async def test_of_what_is_partly_linked_one_call_links_the_rest(replica: Replica, upstream: SandboxServer) -> None:
    first, second = replica.walk(), replica.walk()
    a, b, c = (await first.ready("user_forty"))[:3]
    await second.ready("user_forty")
    await first.link([b])
    assert _accounts(await second.link([a, b, c])) == sorted([a, b, c])
    assert [sorted(each.service_account_ids) for each in upstream.world.links] == [[b], sorted([a, c])]


async def test_a_session_links_once(replica: Replica, upstream: SandboxServer) -> None:
    walk = replica.walk()
    a, b = await walk.ready("user_quick")
    await walk.link([a])
    assert _code(await walk.link([b])) == (409, "session_closed")
    assert _code(await walk.link([a, b])) == (409, "session_closed")
    assert _batches(upstream) == 1


async def test_a_session_that_was_closed_says_so_whatever_is_chosen(replica: Replica, upstream: SandboxServer) -> None:
    walk = replica.walk()
    ids = await walk.ready("user_quick")
    await walk.close()
    for choice in (ids, ["nobodys"]):
        assert _code(await walk.link(choice)) == (409, "session_closed")
    assert _batches(upstream) == 0


async def test_what_the_person_agreed_to_is_kept_with_the_link(replica: Replica) -> None:
    walk = replica.walk()
    ids = await walk.ready("user_quick")
    consent = {"version": "1", "acceptedAt": "2026-01-01T00:00:00Z"}
    linked = await walk.link(ids, consent=consent)
    assert linked.json()["link"]["consent"] == consent
    assert (await walk.show(by_server=True)).json()["session"]["link"] == linked.json()["link"]


async def test_a_key_names_one_request(replica: Replica, upstream: SandboxServer) -> None:
    walk = replica.walk()
    a, b = await walk.ready("user_link_refused")
    assert _code(await walk.link([a], key='"k"')) == (502, "upstream_error")
    consent = {"version": "1", "acceptedAt": "2026-01-01T00:00:00Z"}
    for other in (walk.link([b], key="k"), walk.link([a, b], key='"k"'), walk.link([a], key="k", consent=consent)):
        assert _code(await other) == (422, "idempotency_key_reused")
    assert _batches(upstream) == 1
    assert _code(await walk.link([a], key="k")) == (502, "upstream_error")
    assert _batches(upstream) == 2, "a definite refusal may be tried again"


async def test_a_key_belongs_to_its_session(replica: Replica) -> None:
    first, second = replica.walk(), replica.walk()
    a, b = await first.ready("user_quick")
    await second.ready("user_quick")
    assert _accounts(await first.link([a], key="k")) == [a]
    assert _accounts(await second.link([b], key="k")) == [b]


@pytest.mark.parametrize(
    "keys", [[""], ['""'], ['a"b'], ["x" * 256], ["a b"], ["\u00e9"], ['"a'], ["a", "b"]], ids=repr
)
async def test_a_key_that_cannot_be_read_is_refused_before_anything_else(
    replica: Replica, upstream: SandboxServer, keys: Sequence[str]
) -> None:
    walk = await replica.walk().open()
    headers = [
        (b"authorization", walk.headers["Authorization"].encode()),
        *((b"idempotency-key", each.encode("latin-1")) for each in keys),
    ]
    answer = await replica.client.post(f"{walk.path}/links", headers=headers, json={"serviceAccountIds": ["a"]})
    assert _code(answer) == (400, "malformed_request")
    assert not upstream.world.calls.all("batch")


async def test_accounts_that_the_session_never_learned_are_not_found(replica: Replica, upstream: SandboxServer) -> None:
    stranger, walk, fresh = replica.walk(), replica.walk(), await replica.walk().open()
    foreign = await stranger.ready("user_quick", provider=SRP)
    own = await walk.ready("user_quick")
    for asking, ids in ((walk, ["nobody"]), (walk, foreign[:1]), (walk, [own[0], foreign[0]]), (fresh, own)):
        assert _code(await asking.link(ids)) == (404, "not_found")
    assert not upstream.world.calls.all("batch")
    assert (await walk.show()).json()["session"]["state"] == "open"


@pytest.mark.parametrize(
    "body",
    [
        {"serviceAccountIds": []},
        {"serviceAccountIds": ["a", "a"]},
        {"serviceAccountIds": [f"a{number}" for number in range(201)]},
        {"serviceAccountIds": ["a/b"]},
        {"serviceAccountIds": ["a"], "resendUnknown": ["anything"]},
        {"serviceAccountIds": ["a"], "unknownField": 1},
        {},
    ],
)
async def test_a_body_that_is_wrong_is_refused(
    replica: Replica, upstream: SandboxServer, body: dict[str, object]
) -> None:
    walk = await replica.walk().open()
    answer = await replica.client.post(f"{walk.path}/links", headers=walk.headers, json=body)
    assert _code(answer) == (422, "invalid_request")
    assert not upstream.world.calls.all("batch")


async def test_a_lost_answer_sticks_until_the_caller_decides_to_send_again(
    pair: list[Replica], upstream: SandboxServer
) -> None:
    walk = pair[0].walk()
    ids = await walk.ready("user_link_lost")
    lost = await walk.link(ids, key="k")
    assert _code(lost) == (504, "outcome_unknown")
    assert lost.json()["retryable"] is False
    told = lost.json()["attempts"]
    assert len(told) == 1

    async def asked_elsewhere() -> Walk:
        other = pair[1].walk()
        await other.ready("user_link_lost")
        return other

    for asking in (walk, walk.at(pair[1].client), await asked_elsewhere()):
        for key in (None, "k", "other"):
            again = await asking.link(ids, key=key)
            assert _code(again) == (504, "outcome_unknown")
            assert again.json()["attempts"] == told
            session = (await asking.show()).json()["session"]
            assert (session["state"], session["attempts"]) == ("unknown", told)
    stranger = f"att_{'0' * 24}"
    assert _code(await walk.link(ids, resendUnknown=[stranger])) == (504, "outcome_unknown")
    assert _batches(upstream) == 1

    lost_again = await walk.link(ids, resendUnknown=told)
    assert _code(lost_again) == (504, "outcome_unknown")
    assert _batches(upstream) == 2
    told_again = lost_again.json()["attempts"]
    assert set(told) < set(told_again)
    assert (await walk.show()).json()["session"]["attempts"] == told_again
    assert (await walk.link(ids, resendUnknown=told)).json()["attempts"] == told_again
    assert _batches(upstream) == 2, "the newer one was not asked for"
    await walk.link(ids, resendUnknown=told_again)
    assert _batches(upstream) == 3


async def test_what_is_sent_again_and_confirmed_is_linked_in_every_session(
    replica: Replica, upstream: SandboxServer
) -> None:
    walk, other = replica.walk(), replica.walk()
    ids = await walk.ready("user_quick")
    await other.ready("user_quick")
    upstream.world.faults.add("batch", "reset")
    told = (await walk.link(ids)).json()["attempts"]
    assert _code(await other.link(ids)) == (504, "outcome_unknown")
    assert _accounts(await other.link(ids, resendUnknown=told)) == sorted(ids)
    assert (await walk.show()).json()["session"]["state"] == "linked"
    assert _accounts(await walk.link(ids)) == sorted(ids)
    assert _batches(upstream) == 2


async def test_an_unknown_session_links_no_other_choice_and_cannot_be_closed(
    replica: Replica, upstream: SandboxServer
) -> None:
    walk = replica.walk()
    a, b = await walk.ready("user_quick")
    upstream.world.faults.add("batch", "status", value=500)
    unclear = (await walk.link([a])).json()["attempts"]
    for refused in (await walk.link([b]), await walk.validate("user_quick")):
        assert _code(refused) == (504, "outcome_unknown")
        assert (refused.json()["attempts"], refused.json()["retryable"]) == (unclear, False)
        assert "Retry-After" not in refused.headers
    assert _code(await walk.close()) == (200, "outcome_unknown")
    assert _batches(upstream) == 1


async def test_a_session_takes_a_hundred_idempotency_keys(replica: Replica, upstream: SandboxServer) -> None:
    walk = replica.walk()
    ids = await walk.ready("user_quick")
    upstream.world.faults.add("batch", "status", value=400, times=None)
    for number in range(100):
        assert _code(await walk.link(ids, key=f"k{number}")) == (502, "upstream_error")
    refused = await walk.link(ids, key="one-more")
    assert _code(refused) == (429, "too_many_attempts")
    assert (refused.json()["retryable"], refused.json()["displayMessage"]) == (False, None)
    assert refused.headers["RateLimit-Policy"].startswith('"idempotency-keys";q=100;w=')
    assert 1700 < int(refused.headers["Retry-After"]) <= 1800
    upstream.world.faults.clear()
    assert _accounts(await walk.link(ids, key="k7")) == sorted(ids)


async def test_a_caller_who_leaves_finds_the_result(replica: Replica, upstream: SandboxServer) -> None:
    walk = replica.walk()
    ids = await walk.ready("user_quick")
    upstream.world.faults.add("batch", "delay", value=0.2)
    async with httpx.AsyncClient(base_url=replica.url, trust_env=False, verify=NO_TLS) as client:
        asking = asyncio.create_task(walk.at(client).link(ids))
        await until(lambda: _batches(upstream))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    async def linked() -> bool:
        state: str = (await walk.show()).json()["session"]["state"]
        assert state in {"linking", "linked"}
        return state == "linked"

    await until(linked)
    session = (await walk.show()).json()["session"]
    assert session["outcome"]["serviceAccounts"] == [{"id": each} for each in sorted(ids)]
    assert _batches(upstream) == 1


async def test_a_session_cannot_be_closed_while_its_call_is_under_way(
    pair: list[Replica], upstream: SandboxServer
) -> None:
    walk = pair[0].walk()
    ids = await walk.ready("user_quick")
    upstream.world.faults.add("batch", "delay", value=0.3)
    linking = asyncio.create_task(walk.link(ids))
    await until(lambda: _batches(upstream))
    for client in (pair[0].client, pair[1].client):
        assert _code(await walk.at(client).close()) == (409, "already_in_progress")
    assert (await linking).status_code == 201
    closed = await walk.close()
    assert closed.status_code == 200
    assert closed.json()["session"]["state"] == "linked"


async def test_after_a_confirmed_close_nothing_is_sent(pair: list[Replica], upstream: SandboxServer) -> None:
    """Requests and a close race at two replicas; the token has died, so that the close may come between two calls."""
    for company in range(1, 9):
        walk = pair[0].walk()
        ids = await walk.ready("user_quick", provider=f"5eedc0de000000000000010{company}")
        for each in pair:  # two tokens in a row that no call could use would have the vendor left alone for a while
            assert (await walk.at(each.client).accounts(**{"Cache-Control": "no-cache"})).status_code == 200
        upstream.world.tokens.revoke_all()
        linked_before = len(upstream.world.links)
        asking = [asyncio.create_task(walk.at(each.client).link(ids)) for each in pair]
        closing = await walk.at(pair[1].client).close()
        sent_by_then = _batches(upstream)
        answers = await asyncio.gather(*asking)
        if closing.status_code == 200 and closing.json()["session"]["state"] == "closed":
            assert _batches(upstream) == sent_by_then
            assert len(upstream.world.links) == linked_before
            assert [_code(each) for each in answers] == [(409, "session_closed")] * 2
            assert (await walk.show()).json()["session"]["state"] == "closed"
        else:
            assert [_accounts(each) for each in answers] == [sorted(ids)] * 2
            assert len(upstream.world.links) == linked_before + 1
