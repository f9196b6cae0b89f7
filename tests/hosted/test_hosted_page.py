"""The hosted page over HTTP: who gets in, what they see, and until when."""

import asyncio
import json
import math
from typing import Any

import httpx
import pytest
import redis.asyncio as redis
from pydantic import SecretStr

from service.errors import NotFound
from service.link.access import token_hash
from service.link.attempt import Choice
from service.link.validate import Credentials
from service.settings import Settings
from tests.conftest import MovableClock, Replica, make_settings, running_replica
from tests.walk import APS, PGE, Walk

BACK = "http://localhost:4200/linked"


class Page:
    """A hosted page's address, and the browsers that open it."""

    def __init__(self, replica: Replica, session: dict[str, Any]) -> None:
        self.replica = replica
        self.session = session
        self.address, _, self.secret = session["url"].partition("#")

    async def enter(
        self, *, secret: str | None = None, cookie: str | None = None, begin: bool = True
    ) -> httpx.Response:
        headers = {"Cookie": f"__Host-{self.session['id']}={cookie}"} if cookie else {}
        body: dict[str, Any] = {"begin": begin} | ({"secret": secret} if secret is not None else {})
        return await self.replica.client.post(f"{self.address}/enter", json=body, headers=headers)

    async def first(self) -> tuple[Walk, str]:
        """Enter as a new browser; the walk of its session, and its cookie."""
        answer = await self.enter(secret=self.secret)
        assert answer.status_code == 200, answer.text
        return self.walk(answer), _cookie(answer)

    def walk(self, entered: httpx.Response) -> Walk:
        walk = self.replica.walk()
        walk.id, walk.token = self.session["id"], entered.json()["token"]
        return walk


def _cookie(answer: httpx.Response) -> str:
    return answer.headers["set-cookie"].partition("=")[2].partition(";")[0]


async def invite(replica: Replica, **body: Any) -> Page:
    hosted = {"returnUrl": BACK} | body.pop("hosted", {})
    answer = await _ask(replica, hosted=hosted, **body)
    assert answer.status_code == 201, answer.text
    return Page(replica, answer.json()["session"])


async def _ask(replica: Replica, **body: Any) -> httpx.Response:
    headers = replica.walk().server_headers
    return await replica.client.post("/v1/sessions", json=body, headers=headers)


@pytest.fixture
async def page(replica: Replica) -> Page:
    return await invite(replica, subject="person-1")


async def test_the_address_carries_a_secret_that_is_no_session_token(page: Page, replica: Replica) -> None:
    assert page.address == f"{replica.url}/link/{page.session['id']}"
    assert len(page.secret) == 43
    assert "token" not in page.session
    assert page.session["state"] == "open"
    asked = await replica.client.get("/v1/providers", headers={"Authorization": f"Bearer {page.secret}"})
    assert asked.status_code == 401


async def test_a_person_links_and_the_server_verifies(page: Page) -> None:
    entered = await page.enter(secret=page.secret)
    body = entered.json()
    assert (body["status"], body["returnUrl"], body["cancelUrl"]) == ("OM200", BACK, BACK)
    walk = page.walk(entered)
    await walk.validate()
    linked = await walk.link(await walk.account_ids())
    assert linked.status_code == 201
    seen = (await walk.show(by_server=True)).json()["session"]
    assert (seen["state"], seen["subject"], seen["outcome"]["status"]) == ("linked", "person-1", "OM200")


async def test_the_cookie_is_for_this_host_and_this_page_alone(page: Page) -> None:
    told = (await page.enter(secret=page.secret)).headers["set-cookie"]
    name, _, rest = told.partition("=")
    assert name == f"__Host-{page.session['id']}"
    assert set(rest.split("; ")[1:]) == {"Path=/", "Max-Age=88200", "Secure", "HttpOnly", "SameSite=Strict"}


async def test_the_cookie_does_nothing_for_a_sibling_site(page: Page) -> None:
    walk, cookie = await page.first()
    headers = {"Cookie": f"__Host-{page.session['id']}={cookie}", "Sec-Fetch-Site": "same-site"}
    refused = await walk.client.post(f"{page.address}/enter", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert (await walk.show()).status_code == 200  # its token is as good as before


async def test_the_same_browser_goes_on_without_the_secret(page: Page) -> None:
    walk, cookie = await page.first()
    await walk.validate()
    again = await page.enter(cookie=cookie)
    assert again.status_code == 200
    assert "set-cookie" not in again.headers
    assert len(await page.walk(again).account_ids()) == 2
    # The token from before is not needed any more, so it opens nothing.
    assert (await walk.show()).status_code == 401


async def test_another_browser_starts_anew_and_sees_nothing_earlier(page: Page) -> None:
    first, first_cookie = await page.first()
    validation = (await first.validate()).json()["validation"]["id"]
    found = await first.account_ids()
    second, _ = await page.first()
    seen = (await second.show()).json()["session"]
    assert (seen["state"], seen["validations"]) == ("open", [])
    assert (await second.accounts()).json()["code"] == "validation_required"
    assert (await second.validation(validation)).status_code == 404
    assert (await second.link(found)).status_code in {404, 409}
    assert (await first.show()).status_code == 401
    assert (await page.enter(cookie=first_cookie)).status_code == 404


async def test_looking_begins_nothing(page: Page, clock: MovableClock) -> None:
    for _ in range(3):
        answer = await page.enter(secret=page.secret, begin=False)
        assert (answer.status_code, answer.json()["token"], answer.json()["returnUrl"]) == (200, None, BACK)
        assert "set-cookie" not in answer.headers
        clock.forward(3600)
    walk, cookie = await page.first()
    await walk.validate()
    # Nor does it take a session over.
    assert (await page.enter(secret=page.secret, begin=False)).json()["token"] is None
    assert len(await walk.account_ids()) == 2
    assert (await page.enter(cookie=cookie, begin=False)).json()["token"] is not None


async def test_a_result_that_comes_after_another_browser_took_over_is_dropped(page: Page, replica: Replica) -> None:
    first, _ = await page.first()
    validation = (await first.validate("user_never", wait=None)).json()["validation"]["id"]
    second, _ = await page.first()
    sessions = replica.app.state.steps.hosted._sessions
    changes = {"state": "succeeded", "accounts": "a"}
    given = {"now": replica.app.state.steps.clock.now(), "sealed_accounts": {"a": "x"}}
    assert not await sessions.change_validation(page.session["id"], validation, changes, **given)
    assert (await second.show()).json()["session"]["validations"] == []
    answer = await second.validate("user_one")
    assert answer.json()["validation"]["state"] == "succeeded"
    assert len(await second.account_ids()) == 1


async def test_what_a_browser_began_before_another_took_over_does_not_reach_its_session(
    page: Page, replica: Replica
) -> None:
    first, _ = await page.first()
    await first.validate()
    ids = await first.account_ids()
    steps = replica.app.state.steps
    stale = await steps.hosted._sessions.read(page.session["id"])
    second, _ = await page.first()
    credentials = Credentials(SecretStr("user_good"), SecretStr("pass_good"))
    with pytest.raises(NotFound):
        await steps.validations.start(stale, APS, credentials, address="203.0.113.7", give_up=math.inf)
    with pytest.raises(NotFound):
        await steps.attach.link(stale, Choice(ids, (), None))
    with pytest.raises(NotFound):
        await steps.sessions.close(stale)
    await steps.hosted._sessions.put_accounts(stale, {"a": "sealed"})
    assert await steps.hosted._sessions.close(stale, now=steps.clock.now(), voided=[]) == "missing"
    now = await steps.hosted._sessions.read(page.session["id"])
    assert (now.state, now.validations, now.intents, now.sealed_accounts) == ("open", [], [], {})
    assert (await second.show()).json()["session"]["state"] == "open"


async def test_starting_anew_gives_no_further_passwords(page: Page) -> None:
    walk, _ = await page.first()
    for number in range(5):
        answer = await walk.validate(f"nobody_{number}", "wrong")
        assert answer.json()["validation"]["state"] == "rejected"
    other, _ = await page.first()
    answer = await other.validate()
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_attempts")


@pytest.mark.parametrize("secret", [None, "wrong", "x" * 128, "é" * 20])
async def test_nobody_enters_without_secret_or_cookie(page: Page, secret: str | None) -> None:
    await page.first()
    assert (await page.enter(secret=secret, cookie="wrong")).status_code == 404


async def test_an_unknown_page_is_refused_alike(page: Page, replica: Replica) -> None:
    plain = await replica.walk().open()
    wrong = (await page.enter(secret="wrong")).json()
    assert (await replica.client.head(page.address)).status_code == 200
    for session_id in ("ses_" + "0" * 32, plain.id, "ses_", "..%2f..", "x" * 300):
        answer = await replica.client.post(f"/link/{session_id}/enter", json={"secret": page.secret})
        assert answer.status_code == 404
        assert answer.json() | {"requestId": ""} == wrong | {"requestId": ""}


async def test_after_the_end_it_says_so(page: Page) -> None:
    walk, cookie = await page.first()
    assert (await walk.close()).status_code == 200
    newcomer = await page.enter(secret=page.secret)
    assert (newcomer.status_code, newcomer.json()["code"]) == (409, "session_closed")
    # Who was there may go back to the host, and its server learns of it.
    known = (await page.enter(cookie=cookie)).json()
    assert (known["token"], known["outcome"]["status"], known["cancelUrl"]) == (None, "OM400", BACK)


async def test_a_browser_that_comes_back_after_linking_learns_of_it(page: Page) -> None:
    walk, cookie = await page.first()
    await walk.validate()
    await walk.link(await walk.account_ids())
    assert (await page.enter(cookie=cookie)).json()["outcome"]["status"] == "OM200"
    assert (await page.enter(secret=page.secret)).status_code == 409


async def test_time_runs_from_the_opening(replica: Replica, clock: MovableClock) -> None:
    page = await invite(replica, ttlSeconds=600, hosted={"openWithin": 7 * 24 * 3600})
    clock.forward(7 * 24 * 3600 - 60)
    walk, cookie = await page.first()
    clock.forward(590)
    assert (await walk.show()).json()["session"]["state"] == "open"
    assert (await page.enter(cookie=cookie)).status_code == 200
    clock.forward(20)
    answer = await page.enter(cookie=cookie)
    assert (answer.status_code, answer.json()["token"]) == (200, None)
    assert answer.json()["outcome"] is not None
    assert (await page.enter(secret=page.secret)).status_code == 410


async def test_a_page_that_nobody_opened_in_time_is_over(replica: Replica, clock: MovableClock) -> None:
    page = await invite(replica, hosted={"openWithin": 60})
    clock.forward(61)
    answer = await page.enter(secret=page.secret)
    assert (answer.status_code, answer.json()["code"]) == (410, "session_expired")
    seen = await replica.client.get(f"/v1/sessions/{page.session['id']}", headers=replica.walk().server_headers)
    assert seen.json()["session"]["state"] == "expired"


async def test_while_a_link_may_be_under_way_no_other_browser_enters(
    page: Page, valkey: str, clock: MovableClock
) -> None:
    walk, cookie = await page.first()
    await walk.validate()
    ids = await walk.account_ids()
    async with redis.from_url(valkey) as store:
        key = await _key(store, page.session["id"])
        await store.hset(key, "intent:att_" + "0" * 24, f"{2**45}:{'0' * 64}:{','.join(ids)}")
    answer = await page.enter(secret=page.secret)
    assert (answer.status_code, answer.json()["code"]) == (409, "already_in_progress")
    # Also when its time has run out meanwhile, the one who links may see how it ends.
    clock.forward(3600)
    assert (await page.enter(cookie=cookie)).json()["token"] is not None


async def test_what_a_dead_process_left_of_a_link_keeps_nobody_out(page: Page, valkey: str) -> None:
    await page.first()
    async with redis.from_url(valkey) as store:
        key = await _key(store, page.session["id"])
        await store.hset(key, "intent:att_" + "0" * 24, f"1000:{'0' * 64}:a")
    assert (await page.enter(secret=page.secret)).status_code == 200


async def test_nobody_else_enters_a_session_whose_link_is_unclear(page: Page) -> None:
    walk, cookie = await page.first()
    await walk.validate("user_link_lost")
    assert (await walk.link(await walk.account_ids())).status_code == 504
    assert (await page.enter(secret=page.secret)).status_code == 409
    assert (await page.enter(cookie=cookie)).json()["token"] is not None


async def test_whoever_waits_in_the_browser_before_is_woken(page: Page) -> None:
    walk, _ = await page.first()
    pending = (await walk.validate("user_never", wait=None)).json()["validation"]["id"]
    waiting = asyncio.create_task(walk.validation(pending, wait=20))
    await page.first()
    assert (await waiting).status_code in {401, 404}


async def test_its_token_comes_from_the_page_alone(page: Page, replica: Replica) -> None:
    headers = replica.walk().server_headers
    answer = await replica.client.post(f"/v1/sessions/{page.session['id']}/tokens", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_starting_anew_gives_no_further_validations(page: Page) -> None:
    for _ in range(20):
        walk, _ = await page.first()
        assert (await walk.validate(None, provider=PGE, wait=None)).status_code == 202
    walk, _ = await page.first()
    answer = await walk.validate(None, provider=PGE, wait=None)
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_attempts")


async def test_a_lost_answer_of_redis_is_asked_for_again_without_starting_anew(page: Page, replica: Replica) -> None:
    steps = replica.app.state.steps
    sessions = steps.hosted._sessions
    hashes: dict[str, Any] = {
        "begin": True,
        "secret_hash": token_hash(page.secret),
        "known_browser": "",
        "new_browser": "b" * 64,
        "token_hash": "c" * 64,
    }
    given = {"tenants": steps.hosted._settlements, "now": steps.clock.now(), **hashes}
    assert await sessions.enter(page.session["id"], **given) == "opened"
    assert await sessions.enter(page.session["id"], **given) == "opened"


async def test_redis_holds_neither_secret_nor_cookie(page: Page, valkey: str) -> None:
    walk, cookie = await page.first()
    async with redis.from_url(valkey, decode_responses=True) as store:
        dump = json.dumps(await store.hgetall(await _key(store, page.session["id"])))
    assert page.secret not in dump
    assert cookie not in dump
    assert walk.token not in dump


async def test_an_opened_session_is_kept_as_long_as_any(replica: Replica, valkey: str) -> None:
    page = await invite(replica, ttlSeconds=4 * 3600, hosted={"openWithin": 60})
    await page.first()
    async with redis.from_url(valkey, decode_responses=True) as store:
        left = await store.pttl(await _key(store, page.session["id"]))
    assert left > (4 + 24) * 3600 * 1000 - 60_000


async def test_another_tenants_page_is_unknown(page: Page, replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica.app.state.steps.hosted, "_settlements", {"another": None})
    assert (await page.enter(secret=page.secret)).status_code == 404
    monkeypatch.undo()
    await page.first()


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/linked",
        "http://localhost.evil.example/",
        "http://localhost:x@evil.example/",
        "http://evil.example\\@localhost/",
        "javascript:alert(1)//localhost",
        "//localhost/",
        "http://localhost/\n",
        "http://localhost/#here",
        "data:text/html,x",
        "",
    ],
)
async def test_people_are_sent_nowhere_else(replica: Replica, url: str) -> None:
    for hosted in ({"returnUrl": url}, {"returnUrl": BACK, "cancelUrl": url}):
        answer = await _ask(replica, hosted=hosted)
        assert answer.status_code == 422
        assert not url or url not in answer.text


async def test_return_addresses_are_exact_but_for_the_query(valkey: str, upstream: Any, prefix: str) -> None:
    allowed = frozenset({"https://app.example/linked", "com.example.app:/linked", "https://other.example"})
    settings = make_settings(valkey, upstream.url, prefix, return_urls=allowed)
    good = [
        "https://app.example/linked?user=7",
        "HTTPS://APP.example/linked",
        "com.example.app:/linked",
        "https://other.example/",
    ]
    bad = ["https://app.example/linked/", "https://app.example/linked/../x", "https://app.example:444/linked"]
    bad += [
        "https://u@app.example/linked",
        "com.example.app:/other",
        "com.example.app.evil:/linked",
        "https://app.example/%6cinked",
    ]
    async with running_replica(settings) as replica:
        for url in good:
            assert (await _ask(replica, hosted={"returnUrl": url})).status_code == 201, url
        for url in bad:
            assert (await _ask(replica, hosted={"returnUrl": url})).status_code == 422, url


async def test_only_a_hosts_server_asks_for_a_page(replica: Replica, settings: Settings) -> None:
    origin = f"http://localhost:{settings.port}"
    body = {"clientId": "sandbox-web", "hosted": {"returnUrl": BACK}}
    answer = await replica.client.post("/v1/sessions", json=body, headers={"Origin": origin})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_the_address_is_the_deployments_own(valkey: str, upstream: Any, prefix: str) -> None:
    settings = make_settings(valkey, upstream.url, prefix, public_url="https://link.example/connect/")
    async with running_replica(settings) as replica:
        page = await invite(replica)
        assert page.address == f"https://link.example/connect/link/{page.session['id']}"


async def test_the_page_itself_is_the_same_for_everybody(page: Page, replica: Replica) -> None:
    one = await replica.client.get(page.address)
    other = await replica.client.get("/link/ses_unknown")
    nonces = [each.text.partition('nonce="')[2].partition('"')[0] for each in (one, other)]
    assert nonces[0] != nonces[1]
    assert one.text.replace(nonces[0], "") == other.text.replace(nonces[1], "")
    policy = one.headers["content-security-policy"]
    assert f"script-src 'nonce-{nonces[0]}';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert (one.headers["referrer-policy"], one.headers["cache-control"]) == ("no-referrer", "no-store")


async def test_frames_and_name_are_settings(valkey: str, upstream: Any, prefix: str) -> None:
    changes = {"frame_ancestors": frozenset({"https://shop.example"}), "application_name": 'Sun & "Co"'}
    async with running_replica(make_settings(valkey, upstream.url, prefix, **changes)) as replica:
        page = await invite(replica)
        shell = await replica.client.get(page.address)
        assert "frame-ancestors https://shop.example;" in shell.headers["content-security-policy"]
        assert 'content="Sun &amp; &quot;Co&quot;"' in shell.text
        cookie = (await page.enter(secret=page.secret)).headers["set-cookie"]
        assert cookie.endswith("SameSite=None; Partitioned")


async def test_opening_pages_is_limited_by_address(page: Page) -> None:
    await page.first()
    answers = [(await page.enter(secret="wrong")).status_code for _ in range(60)]
    assert answers == [404] * 59 + [429]


async def _key(store: Any, session_id: str) -> str:
    key: str
    (key,) = [key async for key in store.scan_iter(f"*{{s:{session_id}}}")]
    return key
