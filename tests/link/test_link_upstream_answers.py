"""What each answer of the vendor to the batch call means: linked, definitely not, or unknown and never sent again."""

from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import count

import httpx
import pytest
from pydantic import SecretStr

from service.clock import SYSTEM_CLOCK
from service.errors import OutcomeUnknown
from service.link.attempt import Choice
from service.sandbox.answers import Answer
from service.sandbox.companies import COMPANIES
from service.sandbox.faults import Kind
from service.sandbox.server import SandboxServer
from service.settings import Settings
from service.upstream.client import UpstreamClient
from service.upstream.transport import Transport, TransportLimits
from service.wiring import Timing
from tests.conftest import Replica, running_replica
from tests.link.parts import Parts, Tokens, connected, made_of
from tests.link.waiting import until
from tests.shared import NEVER_SHUT
from tests.walk import Walk

UPSTREAM_SECONDS = 0.4


@pytest.fixture
async def hasty(settings: Settings) -> AsyncIterator[Replica]:
    """A replica that does not wait long for the vendor."""
    timing = Timing(upstream=TransportLimits(total_seconds=UPSTREAM_SECONDS))
    async with running_replica(settings, timing=timing) as replica:
        yield replica


@pytest.fixture
async def walk(hasty: Replica) -> Walk:
    return hasty.walk()


def _code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def _statuses(upstream: SandboxServer) -> list[int | None]:
    return [each.status for each in upstream.world.calls.all("batch")]


@pytest.mark.parametrize(
    ("kind", "value"), [("malformed", None), ("html", None), ("huge", 2**21), ("gzip_bomb", 2**22), ("drip", 0.001)]
)
async def test_a_201_means_linked_whatever_its_body(
    walk: Walk, upstream: SandboxServer, kind: Kind, value: float | None
) -> None:
    ids = await walk.ready("user_quick")
    upstream.world.faults.add("batch", kind, value=value, after=True)
    assert (await walk.link(ids)).status_code == 201
    assert (await walk.show()).json()["session"]["state"] == "linked"
    assert len(_statuses(upstream)) == 1


@pytest.mark.parametrize("status", [400, 403, 404, 409, 422, 499])
async def test_another_4xx_means_definitely_not_and_may_be_tried_again(
    walk: Walk, upstream: SandboxServer, status: int
) -> None:
    ids = await walk.ready("user_quick")
    upstream.world.faults.add("batch", "status", value=status)
    refused = await walk.link(ids)
    assert _code(refused) == (502, "upstream_error")
    assert refused.json()["retryable"] is True
    session = (await walk.show()).json()["session"]
    assert session["state"] == "open"
    assert "outcome" not in session
    assert (await walk.link(ids)).status_code == 201
    assert _statuses(upstream) == [status, 201]


async def test_after_a_refusal_another_choice_may_be_made_and_the_session_closed(
    walk: Walk, upstream: SandboxServer
) -> None:
    a, b = await walk.ready("user_link_refused")
    for ids in ([a], [b], [a, b]):
        assert _code(await walk.link(ids)) == (502, "upstream_error")
    assert len(_statuses(upstream)) == 3
    assert (await walk.close()).json()["session"]["state"] == "closed"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 302, 307, 304, 200, 202, 204])
async def test_every_other_status_means_unknown_and_nothing_is_sent_again(
    walk: Walk, upstream: SandboxServer, status: int
) -> None:
    ids = await walk.ready("user_quick")
    upstream.world.faults.add("batch", "status", value=status)
    for _ in range(3):
        assert _code(await walk.link(ids)) == (504, "outcome_unknown")
    assert len(upstream.world.calls.all("batch")) == 1
    assert not [each for each in upstream.world.calls.all() if each.route is None], "a redirect was followed"


@pytest.mark.parametrize(
    ("kind", "after"), [("hang", False), ("hang", True), ("reset", False), ("reset", True), ("delay", False)]
)
async def test_silence_means_unknown_and_nothing_is_sent_again(
    walk: Walk, upstream: SandboxServer, kind: Kind, *, after: bool
) -> None:
    ids = await walk.ready("user_quick")
    upstream.world.faults.add("batch", kind, after=after)
    for _ in range(3):
        assert _code(await walk.link(ids)) == (504, "outcome_unknown")
    assert len(_statuses(upstream)) == 1


async def test_a_complete_401_is_repeated_once_with_a_new_token(walk: Walk, upstream: SandboxServer) -> None:
    ids = await walk.ready("user_quick")
    upstream.world.tokens.revoke_all()
    assert (await walk.link(ids)).status_code == 201
    assert _statuses(upstream) == [401, 201]
    assert len(upstream.world.calls.all("token")) == 2


async def test_a_second_401_is_om410_and_nothing_sticks(walk: Walk, upstream: SandboxServer) -> None:
    ids = await walk.ready("user_quick")
    upstream.world.faults.add("batch", "status", value=401, times=2)
    refused = await walk.link(ids)
    assert _code(refused) == (502, "upstream_credentials_rejected")
    body = refused.json()
    assert (body["status"], body["message"]) == ("OM410", "Rejected: Incorrect secret or client id")
    assert _statuses(upstream) == [401, 401]
    assert (await walk.show()).json()["session"]["state"] == "open"
    assert (await walk.link(ids)).status_code == 201


async def test_a_401_that_breaks_off_means_unknown(walk: Walk, upstream: SandboxServer) -> None:
    ids = await walk.ready("user_quick")
    upstream.world.tokens.revoke_all()
    upstream.world.faults.add("batch", "truncate", value=len(_head(401)) + 3, after=True)
    assert _code(await walk.link(ids)) == (504, "outcome_unknown")
    assert len(_statuses(upstream)) == 1


@pytest.mark.parametrize("route_fault", ["hang", "reset", "html"])
async def test_without_a_token_nothing_is_sent_and_nothing_sticks(
    walk: Walk, upstream: SandboxServer, route_fault: Kind
) -> None:
    ids = await walk.ready("user_quick")
    upstream.world.faults.add("batch", "status", value=401)
    upstream.world.faults.add("token", route_fault)
    refused = await walk.link(ids)
    assert refused.status_code in {502, 503, 504}
    assert refused.json()["code"] in {"upstream_timeout", "upstream_unavailable", "upstream_malformed"}
    assert _statuses(upstream) == [401]

    async def linked() -> bool:
        again = await walk.link(ids)
        return again.status_code == 201 or (again.json()["retryable"] is not True and pytest.fail(again.text))

    await until(linked)


def _head(status: int) -> bytes:
    """The longest head that the sandbox sends with this status."""
    challenge = ((b"www-authenticate", b"Bearer"),) if status == 401 else ()
    body = b"x" * 60 if status == 401 else b"x" * 12
    return Answer(status, body, extra_headers=challenge).raw().removesuffix(body)


class _OneToken(Tokens):
    def __init__(self, value: str) -> None:
        self.value = value


@pytest.fixture
async def direct(valkey: str, prefix: str, upstream: SandboxServer) -> AsyncIterator[Parts]:
    """The link step without the web around it, for very many links."""
    transport = Transport(limits=TransportLimits(), user_agent="test", https_only=False)
    client = UpstreamClient(
        transport=transport,
        base_url=upstream.url,
        credentials_url=upstream.url,
        client_id="",
        secret=SecretStr(""),
        rules=NEVER_SHUT,
    )
    token = _OneToken(upstream.world.issue_token())
    async with transport, connected(valkey) as store:
        yield made_of(store, prefix, SYSTEM_CLOCK, client=client, tokens=token)


def _service_accounts(upstream: SandboxServer) -> Iterator[str]:
    """Ever new service accounts that the vendor knows."""
    for company in COMPANIES.values():
        if company.sign_in == "password":
            job = upstream.world.create_job(company, "user_forty", "pass_good")
            upstream.world.finish(job.id, "success")
            for account in job.accounts:
                yield from (each.id for each in account.service_accounts)


async def test_a_201_counts_from_the_last_byte_of_its_head_on_and_nothing_less_is_sent_again(
    direct: Parts, upstream: SandboxServer
) -> None:
    fresh, numbers = _service_accounts(upstream), count()

    async def link(choice: Sequence[str]) -> bool:
        session = await direct.open(f"S{next(numbers)}")
        try:
            await direct.attach.link(session, Choice(choice))
        except OutcomeUnknown:
            return False
        return True

    whole = Answer(201, b'{"linked":1}').raw()
    head = len(whole) - len(b'{"linked":1}')
    for cut in range(len(whole)):
        choice = [next(fresh)]
        upstream.world.faults.add("batch", "truncate", value=cut, after=True)
        linked = await link(choice)
        assert linked == (cut >= head), cut
        assert await link(choice) == linked, cut
        assert upstream.world.link_counts[choice[0]] == 1, cut
