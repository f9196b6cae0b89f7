"""Replies of Redis that are lost: what is counted is counted once, however often its command runs."""

from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import pytest

from service.errors import UpstreamBusy
from service.sandbox.server import SandboxServer
from tests.callers.pages import CLIENTS, open_by_page, page_headers
from tests.conftest import Replica, make_settings, running_replica
from tests.faults.redis_line import RedisLine
from tests.walk import APS

COMMAND_SECONDS: Final = 0.05
MOST: Final = 5
ROUNDS: Final = 12
WRONG: Final = "pass_wrong"


@pytest.fixture
async def line(valkey: str) -> AsyncIterator[RedisLine]:
    async with RedisLine(valkey) as running:
        yield running


@pytest.fixture
def address_attempts() -> int:
    """From each address as many passwords as for each account."""
    return MOST


@pytest.fixture
async def replica(
    line: RedisLine, upstream: SandboxServer, prefix: str, address_attempts: int
) -> AsyncIterator[Replica]:
    settings = make_settings(
        line.url,
        upstream.url,
        prefix,
        redis_timeout=COMMAND_SECONDS,
        clients=CLIENTS,
        address_attempts=address_attempts,
    )
    async with running_replica(settings) as running:
        yield running


class Person:
    """Somebody who tries passwords for one account, each in a session that a page opens by itself."""

    def __init__(self, replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
        self._replica = replica
        self._monkeypatch = monkeypatch

    async def tries(self, password: str = WRONG, *, sent: bool = True) -> httpx.Response:
        """One password; without `sent`, the vendor has no turn for it."""
        session = (await open_by_page(self._replica)).json()["session"]
        headers = page_headers(session["token"]) | {"Prefer": "wait=20"}
        body = {"providerId": APS, "username": "user_quick", "password": password}
        with self._monkeypatch.context() as patched:
            if not sent:
                client = self._replica.app.state.steps.validations._client
                patched.setattr(client, "create_job", _busy)
            return await self._replica.client.post(
                f"/v1/sessions/{session['id']}/validations", headers=headers, json=body
            )


async def _busy(*_: Any, **__: Any) -> str:
    raise UpstreamBusy


@pytest.fixture
def person(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> Person:
    return Person(replica, monkeypatch)


@pytest.fixture
def lossy(replica: Replica, line: RedisLine, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the first replies to each command of a step get lost."""
    validations = replica.app.state.steps.validations
    owners = {"take_back_attempt": validations._sessions, "add_validation": validations._sessions}

    def arrange(step: str, *, each: int = 1) -> None:
        owner = owners.get(step, validations._lockout)
        work = getattr(owner, step)

        async def deaf(*given: Any, **named: Any) -> Any:
            with line.losing_replies(each=each):
                return await work(*given, **named)

        monkeypatch.setattr(owner, step, deaf)

    return arrange


def _attempts(upstream: SandboxServer) -> int:
    return len(upstream.world.calls.all("jobs"))


STEPS: Final = ["spend", "give_back", "take_back_attempt", "add_validation"]


@pytest.mark.parametrize("step", STEPS)
async def test_five_passwords_reach_the_vendor_and_no_fewer_whatever_reply_is_lost(
    person: Person, line: RedisLine, lossy: Any, upstream: SandboxServer, step: str
) -> None:
    lossy(step)
    answers: list[httpx.Response] = []
    for _ in range(ROUNDS):
        if len(answers) <= MOST:
            unsent = await person.tries(sent=False)
            if unsent.status_code != 429:
                assert unsent.json()["validation"]["reason"] == "utility_unavailable"
        answers.append(await person.tries())
    assert line.lost.is_set()
    assert [each.status_code for each in answers] == [201] * MOST + [429] * (ROUNDS - MOST)
    assert [each.json()["validation"]["attemptsLeft"] for each in answers[:MOST]] == [4, 3, 2, 1, 0]
    assert _attempts(upstream) == MOST


async def test_a_password_that_was_counted_without_an_answer_is_given_back(
    person: Person, lossy: Any, upstream: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lossy("spend", each=10)
    for _ in range(MOST + 1):
        answer = await person.tries()
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    monkeypatch.undo()
    assert _attempts(upstream) == 0
    assert (await person.tries()).json()["validation"]["attemptsLeft"] == MOST - 1


@pytest.mark.parametrize("address_attempts", [100])
async def test_a_right_password_makes_room_although_a_reply_is_lost(
    person: Person, line: RedisLine, lossy: Any, upstream: SandboxServer
) -> None:
    lossy("forget")
    for _ in range(2):
        await person.tries()
    right = await person.tries("pass_good")
    assert right.json()["validation"]["state"] == "succeeded"
    while (await person.tries()).status_code != 429:
        assert _attempts(upstream) < 3 + ROUNDS
    assert line.lost.is_set()
    assert _attempts(upstream) == 3 + MOST
