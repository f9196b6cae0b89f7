"""What pyreqwest does and does not do, as this service relies on it."""

import asyncio
import gzip
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import orjson
import pytest
from pydantic import SecretStr
from pyreqwest.exceptions import ConnectError

from service.errors import UpstreamBusy, UpstreamMalformed, UpstreamTimeout, UpstreamUnavailable
from service.upstream.client import LinkUnclear, UpstreamClient
from service.upstream.transport import MAX_BODY_BYTES, Transport, TransportLimits
from tests.processes import eventually
from tests.upstream.vendor import RawVendor, json_answer, raw

TOKEN = SecretStr("tok")
GENEROUS_SECONDS = 5.0


@pytest.fixture
async def vendor() -> AsyncIterator[RawVendor]:
    async with RawVendor() as running:
        yield running


def transport(
    total: float = 10.0,
    *,
    connections: int = 512,
    pool_wait: float = 3,
    proxy: str | None = None,
    https_only: bool = False,
) -> Transport:
    limits = TransportLimits(total_seconds=total, max_connections=connections, pool_wait_seconds=pool_wait)
    return Transport(limits=limits, user_agent="test", https_only=https_only, proxy=SecretStr(proxy) if proxy else None)


def client(vendor: RawVendor, over: Transport) -> UpstreamClient:
    return UpstreamClient(
        transport=over, base_url=vendor.url, credentials_url=vendor.url, client_id="id", secret=SecretStr("secret")
    )


async def arrived(vendor: RawVendor, count: int = 1) -> None:
    await eventually(lambda: len(vendor.seen) >= count)


async def silence(_writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


# Connections


async def test_each_call_that_acts_has_a_connection_of_its_own(vendor: RawVendor) -> None:
    async with transport() as over:
        for _ in range(5):
            await over.act(f"{vendor.url}/jobs", body={}, token=TOKEN)
    assert [each.connection for each in vendor.seen] == [1, 2, 3, 4, 5]


async def test_reads_share_a_connection(vendor: RawVendor) -> None:
    async with transport() as over:
        for _ in range(5):
            await over.read(f"{vendor.url}/jobs/1", token=TOKEN)
    assert vendor.connections == 1


async def test_a_call_that_acts_never_takes_over_a_reads_connection(vendor: RawVendor) -> None:
    async with transport() as over:
        await over.read(f"{vendor.url}/jobs/1", token=TOKEN)
        await over.act(f"{vendor.url}/jobs", body={}, token=TOKEN)
        await over.read(f"{vendor.url}/jobs/1", token=TOKEN)
    assert [each.connection for each in vendor.seen] == [1, 2, 1]


async def test_reads_survive_that_the_vendor_closes_kept_connections(vendor: RawVendor) -> None:
    """It closes each one at its second request, unanswered: that looks like a lost answer."""
    used: set[asyncio.StreamWriter] = set()

    async def once(writer: asyncio.StreamWriter) -> None:
        if writer in used:
            writer.transport.abort()
        else:
            used.add(writer)
            writer.write(json_answer(200, {"status": "pending"}))

    vendor.says["job"] = once
    async with transport() as over:
        for _ in range(40):
            assert (await client(vendor, over).read_job(TOKEN, "job1")).result == "running"


async def test_a_read_is_repeated_twice_and_no_more(vendor: RawVendor) -> None:
    vendor.says["account"] = hang_up
    async with transport() as over:
        with pytest.raises(UpstreamUnavailable):
            await client(vendor, over).read_utility_account(TOKEN, "ua1")
    assert vendor.count("account") == 3


@pytest.mark.parametrize("route", ["jobs", "batch", "token"])
async def test_a_call_that_acts_is_never_repeated(vendor: RawVendor, route: str) -> None:
    vendor.says[route] = hang_up
    calls: dict[str, Callable[[UpstreamClient], object]] = {
        "token": lambda to: to.fetch_token(),
        "batch": lambda to: to.link(TOKEN, account_id="acc", service_account_ids=["sa1"]),
        "jobs": lambda to: to.create_job(
            TOKEN, company_id="c", job_type=None, username=SecretStr("u"), password=SecretStr("p")
        ),
    }
    async with transport() as over:
        with pytest.raises((UpstreamUnavailable, LinkUnclear)):
            await calls[route](client(vendor, over))  # type: ignore[misc]
    assert len(vendor.seen) == 1


async def test_a_connect_error_does_not_prove_that_nothing_was_sent(vendor: RawVendor) -> None:
    """If this fails, pyreqwest has become clearer; until then no exception may count as "not sent"."""
    vendor.says["batch"] = hang_up
    async with transport() as over:
        with pytest.raises(UpstreamUnavailable) as caught:
            await over.act(f"{vendor.url}/acc/utility-service-accounts/batch", body=["sa1"], token=TOKEN)
    assert isinstance(caught.value.__cause__, ConnectError)
    assert vendor.seen[0].body == b'["sa1"]'


async def test_nobody_there_is_unavailable() -> None:
    async with RawVendor() as gone:
        url = gone.url
    async with transport() as over:
        with pytest.raises(UpstreamUnavailable):
            await over.read(f"{url}/jobs/1", token=TOKEN)


# Time


async def test_a_caller_who_leaves_does_not_abort_the_call(vendor: RawVendor) -> None:
    release = asyncio.Event()

    async def late(writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(json_answer(201, {"id": "job1"}))

    vendor.says["jobs"] = late
    async with transport() as over:
        call = asyncio.create_task(over.act(f"{vendor.url}/jobs", body={}, token=TOKEN))
        await arrived(vendor)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        release.set()
        assert vendor.count("jobs") == 1


async def test_an_abandoned_call_gives_its_slot_back_at_its_own_deadline(vendor: RawVendor) -> None:
    vendor.says["job"] = silence
    async with transport(60, connections=1, pool_wait=GENEROUS_SECONDS) as over:
        call = asyncio.create_task(over.read(f"{vendor.url}/jobs/1", token=TOKEN, seconds=0.4))
        await arrived(vendor)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        vendor.says["job"] = json_answer(200, {})
        answer = await over.read(f"{vendor.url}/jobs/2", token=TOKEN)
    assert answer.status == 200


@pytest.mark.parametrize("head_first", [True, False])
async def test_a_drip_is_over_at_the_deadline(vendor: RawVendor, *, head_first: bool) -> None:
    """A limit per read would let it go on for ever."""

    async def drip(writer: asyncio.StreamWriter) -> None:
        answer = raw(200, b" " * 100_000)
        start = answer.index(b"\r\n\r\n") + 4 if head_first else 0
        writer.write(answer[:start])
        for position in range(start, len(answer)):
            writer.write(answer[position : position + 1])
            await asyncio.sleep(0.05)

    vendor.says["job"] = drip
    started = time.monotonic()
    async with transport(0.5) as over:
        with pytest.raises(UpstreamTimeout):
            await over.read(f"{vendor.url}/jobs/1", token=TOKEN)
    assert time.monotonic() - started < GENEROUS_SECONDS


# Too many calls at once


async def test_a_call_without_a_free_connection_was_not_sent_and_says_so(vendor: RawVendor) -> None:
    vendor.says |= dict.fromkeys(("batch", "jobs", "job"), silence)
    async with transport(connections=1, pool_wait=0.2) as over:
        calls = client(vendor, over)

        def link() -> Awaitable[None]:
            return calls.link(TOKEN, account_id="acc", service_account_ids=["a"])

        def validate() -> Awaitable[str]:
            return calls.create_job(TOKEN, company_id="c", job_type=None, username=TOKEN, password=TOKEN)

        def poll() -> Awaitable[object]:
            return calls.read_job(TOKEN, "1")

        for number, send in enumerate((link, validate, poll), start=1):
            first = asyncio.ensure_future(send())
            await arrived(vendor, number)
            with pytest.raises(UpstreamBusy):
                await send()
            assert len(vendor.seen) == number
            first.cancel()
        assert calls.reachable is None, "a full pool says nothing of the vendor"


async def test_validations_that_hang_keep_no_link_waiting(vendor: RawVendor) -> None:
    vendor.says["jobs"] = silence
    async with transport(connections=1, pool_wait=0.2) as over:
        calls = client(vendor, over)
        hanging = asyncio.create_task(
            calls.create_job(TOKEN, company_id="c", job_type=None, username=TOKEN, password=TOKEN)
        )
        await arrived(vendor)
        await calls.fetch_token()
        await calls.link(TOKEN, account_id="acc", service_account_ids=["a"])
        hanging.cancel()


# Where a call goes


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["read", "act"])
async def test_redirects_are_not_followed(vendor: RawVendor, status: int, method: str) -> None:
    async with RawVendor() as target, transport() as over:
        answer = raw(status, b"{}", f"location: {target.url}/jobs")
        vendor.says["jobs"] = vendor.says["job"] = answer
        if method == "read":
            found = await over.read(f"{vendor.url}/jobs/1", token=TOKEN)
        else:
            found = await over.act(f"{vendor.url}/jobs", body={}, token=TOKEN)
    assert found.status == status
    assert target.connections == 0
    assert len(vendor.seen) == 1


async def test_proxies_of_the_environment_are_not_obeyed(vendor: RawVendor, monkeypatch: pytest.MonkeyPatch) -> None:
    async with RawVendor() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        async with transport() as over:
            await over.read(f"{vendor.url}/jobs/1", token=TOKEN)
            await over.act(f"{vendor.url}/jobs", body={}, token=TOKEN)
        assert proxy.connections == 0
    assert len(vendor.seen) == 2


async def test_a_proxy_of_the_settings_is(vendor: RawVendor) -> None:
    async with RawVendor(says={"other": json_answer(200, {"via": "proxy"})}) as proxy:
        async with transport(proxy=proxy.url) as over:
            answer = await over.read(f"{vendor.url}/jobs/1", token=TOKEN)
        assert orjson.loads(answer.body) == {"via": "proxy"}
        assert proxy.seen[0].line == f"GET {vendor.url}/jobs/1 HTTP/1.1"
    assert vendor.seen == []


async def test_nothing_goes_out_in_the_clear_where_https_is_demanded(vendor: RawVendor) -> None:
    async with transport(https_only=True) as over:
        with pytest.raises(UpstreamUnavailable):
            await over.act(f"{vendor.url}/access-token", body={"secret": "s"})
    assert vendor.connections == 0


async def test_headers_say_no_more_than_needed(vendor: RawVendor) -> None:
    async with transport() as over:
        await client(vendor, over).create_job(
            TOKEN, company_id="c", job_type="APSLogin", username=SecretStr("u"), password=SecretStr("p")
        )
    lines = [line.split(": ", 1) for line in vendor.seen[0].head.strip().split("\r\n")[1:]]
    sent = {name.lower(): value for name, value in lines}
    assert sent.keys() == {
        *("accept", "accept-encoding", "authorization", "content-length", "content-type", "host", "type", "user-agent"),
    }
    assert sent["accept-encoding"] == "gzip"


# Size


@pytest.mark.parametrize("size", [MAX_BODY_BYTES, MAX_BODY_BYTES + 1])
@pytest.mark.parametrize("packed", [False, True])
async def test_a_body_is_capped_after_unpacking(vendor: RawVendor, size: int, *, packed: bool) -> None:
    body = b" " * size
    vendor.says["job"] = raw(200, gzip.compress(body), "content-encoding: gzip") if packed else raw(200, body)
    async with transport() as over:
        if size > MAX_BODY_BYTES:
            with pytest.raises(UpstreamMalformed):
                await over.read(f"{vendor.url}/jobs/1", token=TOKEN)
        else:
            assert len((await over.read(f"{vendor.url}/jobs/1", token=TOKEN)).body) == size


async def test_bombs_cost_no_memory(vendor: RawVendor) -> None:
    packer = zlib.compressobj(9, wbits=31)
    block = b" " * 2**20
    bomb = b"".join([*(packer.compress(block) for _ in range(256)), packer.flush()])
    vendor.says["job"] = raw(200, bomb, "content-encoding: gzip")
    before = peak_memory()
    async with transport() as over:
        for _ in range(5):
            with pytest.raises(UpstreamMalformed):
                await over.read(f"{vendor.url}/jobs/1", token=TOKEN)
    assert peak_memory() - before < 50 * 2**20


def peak_memory() -> int:
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate"])
async def test_encodings_that_were_not_asked_for_are_not_unpacked(vendor: RawVendor, encoding: str) -> None:
    body = zlib.compress(b"{}")
    vendor.says["job"] = raw(200, body, f"content-encoding: {encoding}")
    async with transport() as over:
        assert (await over.read(f"{vendor.url}/jobs/1", token=TOKEN)).body == body


async def test_a_body_that_cannot_be_unpacked_makes_no_sense(vendor: RawVendor) -> None:
    vendor.says["job"] = raw(200, b"\x1f\x8bno", "content-encoding: gzip")
    async with transport() as over:
        with pytest.raises(UpstreamMalformed):
            await over.read(f"{vendor.url}/jobs/1", token=TOKEN)


async def test_what_breaks_off_is_no_answer(vendor: RawVendor) -> None:
    async def half(writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer(200, {"status": "success"})[:-5])
        writer.close()

    vendor.says["job"] = half
    async with transport() as over:
        with pytest.raises(UpstreamUnavailable):
            await over.read(f"{vendor.url}/jobs/1", token=TOKEN)


@pytest.mark.parametrize("kept", [-5, -12, None])
async def test_the_answer_to_a_link_call_is_its_status_line(vendor: RawVendor, kept: int | None) -> None:
    async def broken(writer: asyncio.StreamWriter) -> None:
        answer = json_answer(201, {"linked": 1})
        writer.write(answer[:kept] if kept else answer[: answer.index(b"{")])
        await writer.drain()
        if kept:
            writer.close()
        else:
            await silence(writer)

    vendor.says["batch"] = broken
    async with transport() as over:
        await client(vendor, over).link(TOKEN, account_id="acc", service_account_ids=["sa1"])


@pytest.mark.parametrize("limit", [0.3, 0.6])
async def test_the_time_limit_is_the_requests_own(limit: float, vendor: RawVendor) -> None:
    vendor.says["job"] = silence
    async with transport(limit) as over:
        assert over._total == timedelta(seconds=limit)
        with pytest.raises(UpstreamTimeout):
            await over.read(f"{vendor.url}/jobs/1", token=TOKEN)
