"""Secrets, tokens, usernames and passwords are found nowhere that they do not have to be."""

import asyncio
import base64
import binascii
import gc
import logging
import re
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import pytest
import structlog
from redis.asyncio import Redis
from typing_extensions import override

from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY, SANDBOX_SECRET, Settings
from service.stores.embedded import EmbeddedStore
from service.telemetry import configure_logs
from service.upstream.transport import TransportLimits
from service.wiring import Timing
from tests.conftest import Replica, make_settings, running_replica
from tests.faults.redis_line import RedisLine
from tests.plain import NO_TLS
from tests.processes import eventually
from tests.walk import APS, PASSWORD, PGE, SCE, SRP, Walk, sign_in

USERS: Final = [
    *("user_quick", "user_one", "user_none", "user_bad", "user_server_error", "user_job_error", "user_never"),
    *("user_link_refused", "user_link_lost", "user_token_revoked"),
]
REJECTED: Final = ("canary-user@example.org", "canary-pässwörd")
MALFORMED: Final = ("canary-malformed-user", "canary-malformed-pw")
_ENCODED: Final = re.compile(rb"[A-Za-z0-9+/_-]{16,}={0,2}")


@dataclass
class Finds:
    """Everything that came out of the service, with where it came out, and what must not be in it."""

    canaries: dict[str, str] = field(default_factory=dict)
    texts: list[tuple[str, bytes]] = field(default_factory=list)
    session_tokens: dict[str, str] = field(default_factory=dict)

    def add(self, where: str, text: str | bytes) -> None:
        self.texts.append((where, text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text))

    def hits(self) -> list[str]:
        found = []
        for where, text in self.texts:
            for form in _unwrapped(text):
                found += [f"{what} in {where}" for what, canary in self.canaries.items() if canary.encode() in form]
        return sorted(set(found))


def _unwrapped(text: bytes) -> Iterator[bytes]:
    """A text as it is, decoded where it looks like Base64, and inflated where it is packed."""
    yield text
    if text.isascii():
        yield text.decode().encode().decode("unicode_escape").encode()
    pieces = [text]
    for piece in _ENCODED.findall(text):
        for decode in (base64.b64decode, base64.urlsafe_b64decode):
            with suppress(binascii.Error, ValueError):
                pieces.append(decode(piece + b"=" * (-len(piece) % 4)))
    yield from pieces[1:]
    for piece in pieces:
        for bits in (zlib.MAX_WBITS, -zlib.MAX_WBITS, zlib.MAX_WBITS | 16):
            with suppress(zlib.error):
                yield zlib.decompressobj(bits).decompress(piece, 2**20)


class _Capture(logging.Handler):
    """Takes all records of all loggers, unredacted."""

    def __init__(self, finds: Finds) -> None:
        super().__init__(logging.NOTSET)
        self._finds = finds
        self.loggers: set[str] = set()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.loggers.add(record.name)
        if record.name.partition(".")[0] in {"httpx", "httpcore"}:
            return  # the client of this test, which may log what it sends; the service calls with another
        told = self.format(record) if record.exc_info else record.getMessage()
        self._finds.add(f"log {record.name}", f"{told} {record.args!r} {record.msg!r} {record.stack_info}")


@pytest.fixture
def finds() -> Finds:
    return Finds()


@pytest.fixture
def capture(finds: Finds) -> Iterator[_Capture]:
    """Everything at DEBUG, also what the service would not let through."""
    handler = _Capture(finds)
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in [*logging.root.manager.loggerDict, ""]}
    root.addHandler(handler)
    for name in levels:
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
async def line() -> AsyncIterator[RedisLine]:
    with EmbeddedStore() as store:
        async with RedisLine(store.url) as running:
            yield running


@pytest.fixture
async def replica(
    line: RedisLine, upstream: SandboxServer, prefix: str, finds: Finds, capture: _Capture
) -> AsyncIterator[Replica]:
    del capture  # from the start on
    settings = make_settings(line.url, upstream.url, prefix, redis_timeout=0.1)
    finds.add("settings", f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}")
    timing = Timing(upstream=TransportLimits(total_seconds=0.4))
    async with running_replica(settings, timing=timing) as running:

        async def note(response: httpx.Response) -> None:
            body = await response.aread()
            where = f"{response.request.method} {response.request.url.path} {response.status_code}"
            if re.search(r"/v1/sessions(/[^/]+/tokens)?$", response.request.url.path) and response.status_code == 201:
                token = response.json()["session"]["token"]
                finds.session_tokens[f"session token {len(finds.session_tokens)}"] = token
                body = body.replace(token.encode(), b"")  # here it belongs
            finds.add(where, body)
            finds.add(f"headers of {where}", repr(response.headers.raw))

        running.client.event_hooks["response"].append(note)
        yield running


async def dump(redis: Any) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    async for key in redis.scan_iter():
        kind = await redis.type(key)
        value: Any = {
            b"string": redis.get,
            b"hash": redis.hgetall,
            b"set": redis.smembers,
        }.get(kind, lambda name: redis.zrange(name, 0, -1, withscores=True))(key)
        content = await value
        parts = [content] if isinstance(content, bytes) else _flat(content)
        found += [(f"redis key {key[:60]!r}", part) for part in [key, *parts]]
        found.append((f"redis serialized {key[:60]!r}", await redis.dump(key) or b""))
    return found


def _flat(content: Any) -> list[bytes]:
    pairs = content.items() if isinstance(content, dict) else content
    return [each for pair in pairs for each in (pair if isinstance(pair, tuple) else [pair]) if isinstance(each, bytes)]


async def drive_walks(replica: Replica, upstream: SandboxServer) -> None:
    for number, user in enumerate(USERS):
        walk = await replica.walk().open(subject=f"s{number}", metadata={"k": "v"})
        validation = (await walk.validate(user, wait=0 if user == "user_never" else 5)).json()["validation"]
        await walk.validation(validation["id"])
        answer = await walk.accounts()
        if answer.status_code == 200 and (ids := [each["id"] for each in answer.json()["serviceAccounts"]]):
            await walk.link(ids, key=f"key-{number}")
            await walk.link(ids, key=f"key-{number}")
        await walk.show(by_server=True)
        ended = (await walk.close()).json().get("session", {})
        if ended.get("state") in {"linked", "closed"}:
            await walk.client.get(f"{walk.path}/events", headers=walk.headers)
        await replica.client.post(f"{walk.path}/tokens", headers=walk.server_headers)
    walk = await replica.walk().open()
    started = (await walk.validate(None, provider=PGE, wait=None)).json()["validation"]
    async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as browser:
        await sign_in(browser, started["authorizeUrl"])
    await walk.validation(started["id"], wait=5)
    await walk.accounts(**{"Cache-Control": "no-cache"})
    upstream.world.tokens.revoke_all()
    await walk.accounts(**{"Cache-Control": "no-cache"})


async def drive_refused(replica: Replica) -> None:
    walk = await replica.walk().open()
    await walk.validate(*REJECTED, wait=5)
    username, password = MALFORMED
    headers, path = walk.headers | {"Content-Type": "application/json"}, f"{walk.path}/validations"
    good = {"providerId": APS, "username": username, "password": password}
    bodies: list[Any] = [
        {**good, "password": [password]},
        {**good, "username": {username: password}},
        {**good, password: username},
        {**good, "providerId": password},
        {**good, "password": password * 100},
        {**good, "providerId": "5eedc0de00000000000000ff"},
        {**good, "providerId": SCE},
        {"providerId": APS, "username": username},
        [username, password],
        f"{username} {password}",
    ]
    for body in bodies:
        await replica.client.post(path, headers=headers, json=body)
    raw = f'{{"providerId": "{APS}", "username": "{username}", "password": "{password}'
    for content in (
        raw,
        f'{raw}\\ud800"}}',
        f'{raw}", "x": NaN}}',
        raw.encode() + b"\xff",
        f'{raw}", "password": "{password}"}}',
        f"{raw}{'x' * 70_000}",
    ):
        await replica.client.post(path, headers=headers, content=content)
    await replica.client.post(path, headers=walk.headers | {"Content-Type": "text/plain"}, content=raw)
    await replica.client.post(path, headers=walk.headers, params={username: password}, json=good | {"x": 1})
    for credential in (f"oms_{password}", password, f"{walk.token}x", f"{SANDBOX_API_KEY}x"):
        await replica.client.get(walk.path, headers={"Authorization": f"Bearer {credential}"})
    for url in (f"/v1/{password}", f"/v1/sessions/{password}", f"/v1/providers?search={password}"):
        await replica.client.get(url, headers=walk.server_headers)
    await replica.client.get("/v1/providers", headers={"Authorization": f"Basic {password}", "X-Request-Id": "\x7f"})


async def drive_faults(replica: Replica, upstream: SandboxServer) -> None:
    faults = upstream.world.faults
    tokens = replica.app.state.steps.sessions._tokens
    for kind in ("status", "reset", "hang"):
        for route in ("token", "jobs", "account", "batch"):
            walk = await replica.walk().open()
            if route == "token":
                upstream.world.tokens.revoke_all()
            faults.add(route, kind, times=2)
            await walk.validate("user_one", wait=2)
            answer = await walk.accounts(**{"Cache-Control": "no-cache"})
            if answer.status_code == 200:
                await walk.link([each["id"] for each in answer.json()["serviceAccounts"]])
            faults.clear()
    await tokens.drop(await tokens.get())
    faults.add("token", "status", value=401, times=None)
    await replica.client.post("/v1/sessions", headers=replica.walk().server_headers, json={})
    faults.clear()


async def drive_outage(replica: Replica, line: RedisLine) -> None:
    walk = await replica.walk().open()
    line.trouble = "black_hole"
    await asyncio.gather(walk.validate("user_quick", wait=1), walk.show(), walk.accounts())
    await line.cut()
    await asyncio.gather(walk.validate("user_quick", wait=1), walk.show(), _left(walk))
    await line.heal()
    await asyncio.sleep(0.1)


async def _left(walk: Walk) -> None:
    """A caller who leaves in the middle."""
    with suppress(httpx.TimeoutException):
        await walk.client.post(
            f"{walk.path}/validations",
            headers=walk.headers,
            json={"providerId": SRP, "username": "user_quick", "password": PASSWORD},
            timeout=0.02,
        )


def reprs() -> Iterator[tuple[str, str]]:
    """What a debugger or a crash report would show of this service's objects."""
    for each in gc.get_objects():
        kind = type(each)
        module = str(kind.__module__)
        # The sandbox and the tests are no part of the service; they hold what they check.
        if module.startswith("service.") and not module.startswith("service.sandbox"):
            with suppress(Exception):
                yield f"repr of {module}.{kind.__qualname__}", repr(each)
                yield f"fields of {module}.{kind.__qualname__}", repr(getattr(each, "__dict__", ""))


async def test_nothing_secret_is_found_anywhere(
    replica: Replica, line: RedisLine, upstream: SandboxServer, finds: Finds, capture: _Capture
) -> None:
    async with Redis.from_url(f"unix://{line._target}") as direct, direct.monitor() as monitor:

        async def note_commands() -> None:
            async for command in monitor.listen():
                finds.add("redis command", command["command"])

        noting = asyncio.create_task(note_commands())
        await drive_walks(replica, upstream)
        await drive_refused(replica)
        finds.texts += await dump(direct)
        await drive_faults(replica, upstream)
        await drive_outage(replica, line)
        await replica.client.get("/metrics")
        await replica.client.get("/readyz")
        await replica.client.get("/openapi.json")
        finds.texts += await dump(direct)
        commands = len([where for where, _ in finds.texts if where == "redis command"])
        await direct.set("last", "word")
        await eventually(lambda: any(b"last" in text for where, text in finds.texts if where == "redis command"))
        noting.cancel()
        await asyncio.gather(noting, return_exceptions=True)
    assert commands > 200
    assert {"omniconnect"} <= capture.loggers
    for where, text in reprs():
        finds.add(where, text)

    calls = upstream.world.calls.all()
    bearers = {
        call.headers["authorization"].removeprefix("Bearer ") for call in calls if "authorization" in call.headers
    }
    assert len(bearers) >= 5
    assert {PASSWORD, "user_quick", REJECTED[1]} <= {
        value
        for call in calls
        if call.route == "jobs"
        for value in re.findall(r'"(?:username|password)":"([^"]*)"', call.body)
    }
    finds.canaries = {
        "the secret": SANDBOX_SECRET,
        "the API key": SANDBOX_API_KEY,
        "the password": PASSWORD,
        **finds.session_tokens,
        **{f"upstream token {number}": bearer for number, bearer in enumerate(bearers)},
        **{f"signature of upstream token {number}": each.rpartition(".")[2] for number, each in enumerate(bearers)},
        **{user: user for user in USERS},
        **dict(zip(("rejected user", "rejected password"), REJECTED, strict=True)),
        **dict(zip(("malformed user", "malformed password"), MALFORMED, strict=True)),
    }
    assert finds.hits() == []


def test_the_search_finds_what_is_hidden() -> None:
    finds = Finds(canaries={"it": "canary-pässwörd"})
    hidden = "x canary-pässwörd y".encode()
    finds.add("plain", hidden)
    finds.add("base64", base64.b64encode(hidden))
    finds.add("urlsafe", b"k=" + base64.urlsafe_b64encode(hidden).rstrip(b"="))
    finds.add("packed", zlib.compress(hidden))
    finds.add("packed base64", base64.b64encode(zlib.compress(hidden)))
    assert len(finds.hits()) == 5


async def test_log_lines_of_libraries_show_no_values(capsys: pytest.CaptureFixture[str]) -> None:
    before = structlog.get_config()["logger_factory"]
    configure_logs("DEBUG")
    try:
        for name in ("asyncio", "uvicorn.error", "redis", "anything"):
            logger = logging.getLogger(name)
            logger.error("It failed: %s", "p4ssw0rd")
            told_at_once = "It failed\nfuture: <Task exception=ValueError('p4ssw0rd')>"
            logger.error(told_at_once)
            try:
                raise ValueError("p4ssw0rd")  # noqa: TRY301
            except ValueError:
                logger.exception("It broke")
        structlog.get_logger("omniconnect").error("ours", exc_info=ValueError("p4ssw0rd"))
        told = capsys.readouterr().err
    finally:
        configure_logs("DEBUG")
        structlog.configure(logger_factory=before)
    assert "It failed" in told
    assert "builtins.ValueError" in told
    assert "p4ssw0rd" not in told


def test_a_log_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = structlog.get_config()["logger_factory"]
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123 -- a device
        monkeypatch.setattr("sys.stderr", full)
        configure_logs("DEBUG")
        try:
            structlog.get_logger().error("lost")
        finally:
            monkeypatch.undo()
            configure_logs("DEBUG")
            structlog.configure(logger_factory=before)
            with suppress(OSError):
                full.close()


def test_settings_hold_the_canaries_that_are_searched_for(settings: Settings) -> None:
    assert settings.secret.get_secret_value() == SANDBOX_SECRET
