"""Secrets, tokens, usernames and passwords are found nowhere that they do not have to be."""

import asyncio
import base64
import binascii
import gc
import hashlib
import json
import logging
import re
import traceback
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, quote_plus

import httpx
import pytest
import structlog
from pydantic import SecretStr
from redis.asyncio import Redis
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.cli.doctor import examine
from service.environment import load_settings
from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY, SANDBOX_SECRET, Settings, SettingsError
from service.stores.connection import Store
from service.stores.embedded import EmbeddedStore
from service.telemetry import configure_logs
from service.upstream.transport import Transport, TransportLimits
from service.wiring import Timing, wire
from tests.collector import Collector, collecting
from tests.conftest import Replica, make_settings, running_replica
from tests.faults.redis_line import RedisLine
from tests.plain import NO_TLS
from tests.processes import eventually
from tests.shared import NEVER_SHUT
from tests.walk import APS, PASSWORD, PGE, SCE, SRP, Walk, sign_in

USERS: Final = [
    *("user_quick", "user_one", "user_none", "user_bad", "user_server_error", "user_job_error", "user_never"),
    *("user_link_refused", "user_link_lost", "user_token_revoked"),
]
REJECTED: Final = ("canary-user@example.org", "canary-pässwörd")
MALFORMED: Final = ("canary-malformed-user", "canary-malformed-pw")
COLLECTOR_KEY: Final = "canary-collector-key"
_ENCODED: Final = re.compile(rb"[A-Za-z0-9+/_-]{16,}={0,2}")


@dataclass
class Finds:
    """Everything that came out of the service, with where it came out, and what must not be in it.

    Attributes:
        canaries: What must not be found, in no way of writing it.
        guessable: What people made up: not even a hash of it may be found, since a hash can be guessed.
    """

    canaries: dict[str, str] = field(default_factory=dict)
    guessable: dict[str, str] = field(default_factory=dict)
    texts: list[tuple[str, bytes]] = field(default_factory=list)
    session_tokens: dict[str, str] = field(default_factory=dict)

    def add(self, where: str, text: str | bytes) -> None:
        self.texts.append((where, text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text))

    def add_all(self, texts: Iterable[tuple[str, str]]) -> None:
        for where, text in texts:
            self.add(where, text)

    def hits(self) -> list[str]:
        wheres: dict[bytes, set[str]] = {}
        for where, text in self.texts:
            wheres.setdefault(text, set()).add(where)
        forms = {text: b"\0\0".join(_unwrapped(text)) for text in wheres}
        everything = b"\0\0".join(forms.values())
        written = [(what, way) for what, canary in self.canaries.items() for way in _ways_to_write(canary)]
        written += [(what, way) for what, canary in self.guessable.items() for way in _ways_to_write(canary)]
        written += [(f"a hash of {what}", way) for what, each in self.guessable.items() for way in _hashes(each)]
        found = [(what, way) for what, way in written if way in everything]
        return sorted(
            {f"{what} in {where}" for what, way in found for t in forms if way in forms[t] for where in wheres[t]}
        )


def _ways_to_write(text: str) -> set[bytes]:
    """As it is, as JSON and URLs have it, in hex, and in Base64 at each of its three offsets."""
    plain = text.encode()
    ways = {plain, json.dumps(text)[1:-1].encode(), quote(text, safe="").encode(), quote_plus(text).encode()}
    ways |= {plain.hex().encode(), plain.hex().upper().encode(), repr(plain)[2:-1].encode()}
    for offset in range(3):
        whole = base64.b64encode(b"\0" * offset + plain)
        # Only the digits that depend on nothing before and after it.
        digits = whole[-(-offset * 8 // 6) : (offset + len(plain)) * 8 // 6]
        ways |= {digits, digits.translate(bytes.maketrans(b"+/", b"-_"))}
    return ways


def _hashes(text: str) -> set[bytes]:
    digests = [hashlib.new(name, text.encode()).digest() for name in ("md5", "sha1", "sha256", "sha512")]
    return {way for each in digests for way in (each, each.hex().encode(), base64.b64encode(each).rstrip(b"="))}


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
async def line(tmp_path: Path) -> AsyncIterator[RedisLine]:
    with EmbeddedStore(tmp_path) as store:
        async with RedisLine(store.url) as running:
            yield running


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting(monkeypatch, OTEL_EXPORTER_OTLP_HEADERS=f"authorization={COLLECTOR_KEY}") as running:
        yield running


@pytest.fixture
async def replica(  # noqa: PLR0917 -- fixtures
    line: RedisLine, upstream: SandboxServer, prefix: str, finds: Finds, capture: _Capture, collector: Collector
) -> AsyncIterator[Replica]:
    del capture, collector  # from the start on
    settings = make_settings(line.url, upstream.url, prefix, redis_timeout=0.1, trace_share=1)
    finds.add("settings", f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}")
    timing = Timing(upstream=TransportLimits(total_seconds=0.4), limiter=NEVER_SHUT)
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
    told = {"traceparent": password, "tracestate": f"a={password}", "baggage": f"a={password}"}
    await replica.client.get(walk.path, headers=walk.headers | told)
    told["traceparent"] = f"00-{'1' * 32}-{'1' * 16}-01"
    await replica.client.get(walk.path, headers=walk.headers | told)


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
    tokens.accepted()


async def drive_bugs(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exceptions that nobody expects, with all that is secret in their texts, their causes and their frames."""

    async def broken(*given: Any, **named: Any) -> None:
        raise RuntimeError(f"{given!r} {named!r} {PASSWORD} {SANDBOX_API_KEY}") from ValueError(SANDBOX_SECRET)

    steps = replica.app.state.steps
    for part, name in ((steps.validations._client, "create_job"), (steps.validations, "start")):
        with monkeypatch.context() as patch:
            walk = await replica.walk().open()
            patch.setattr(part, name, broken)
            await walk.validate("user_quick", wait=0)
    with monkeypatch.context() as patch:
        patch.setattr(steps.sessions._tokens, "get", broken)
        answer = await replica.client.post("/v1/sessions", headers=replica.walk().server_headers, json={})
    assert answer.json()["code"] == "internal_error"


async def examined(settings: Settings) -> str:
    return " ".join([repr(each) async for each in examine(settings)])


def files_of(home: Path) -> list[tuple[str, bytes]]:
    """What Redis has written: commands as they came, and a snapshot."""
    files = [each for each in home.rglob("*") if each.is_file()]
    assert {".rdb", ".aof"} <= {each.suffix for each in files}
    return [(f"redis file {each.name}", each.read_bytes()) for each in files]


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
        # The sandbox and the tests are no part of the service; they hold what they check. A connection of
        # uvicorn holds the headers of its last request, whoever made its class a little different.
        ours = module.startswith("service.") and not module.startswith("service.sandbox")
        if ours and not issubclass(kind, HttpToolsProtocol):
            with suppress(Exception):
                yield f"repr of {module}.{kind.__qualname__}", repr(each)
                yield f"fields of {module}.{kind.__qualname__}", repr(getattr(each, "__dict__", ""))


@pytest.fixture
def under_way(finds: Finds, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[tuple[str, ...]]]:
    """Looks at the objects also while requests wait, once for each way that leads to Redis or the vendor."""
    ways: set[tuple[str, ...]] = set()

    def look() -> None:
        way = tuple(frame.f_code.co_qualname for frame, _ in traceback.walk_stack(None))
        if way not in ways:
            ways.add(way)
            finds.add_all(reprs())

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def looked(*given: Any, **named: Any) -> Any:
            look()
            return call(*given, **named)

        return looked

    for kind, name in ((Store, "_command"), (Store, "_keep"), (Transport, "_exchange")):
        monkeypatch.setattr(kind, name, watched(getattr(kind, name)))
    # What is older is looked at in the end: it takes long, as there is much of it.
    gc.collect()
    gc.freeze()
    yield ways
    gc.unfreeze()


async def test_nothing_secret_is_found_anywhere(  # noqa: PLR0917 -- fixtures
    replica: Replica,
    line: RedisLine,
    upstream: SandboxServer,
    finds: Finds,
    capture: _Capture,
    collector: Collector,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    under_way: set[tuple[str, ...]],
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
        await drive_bugs(replica, monkeypatch)
        await drive_outage(replica, line)
        finds.add("doctor", await examined(settings))
        await replica.client.get("/metrics")
        await replica.client.get("/readyz")
        await replica.client.get("/openapi.json")
        finds.texts += await dump(direct)
        await direct.config_set("rdbcompression", "no")
        await direct.save()
        finds.texts += files_of(tmp_path)
        commands = len([where for where, _ in finds.texts if where == "redis command"])
        await direct.set("last", "word")
        await eventually(lambda: any(b"last" in text for where, text in finds.texts if where == "redis command"))
        noting.cancel()
        await asyncio.gather(noting, return_exceptions=True)
    assert commands > 200
    assert {"omniconnect"} <= capture.loggers
    await replica.client.get("/openapi.json", headers={"X-Request-Id": "last-word"})
    await eventually(lambda: any(b"last-word" in body for body in collector.bodies))
    assert {"link", "create_job", "POST /v1/sessions/{session_id}/validations"} <= {
        each.name for each in collector.spans
    }
    finds.add("spans", b"".join(collector.bodies))
    assert len(under_way) > 40
    gc.unfreeze()
    finds.add_all(reprs())

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
        "the collector's key": COLLECTOR_KEY,
        **finds.session_tokens,
        **{f"upstream token {number}": bearer for number, bearer in enumerate(bearers)},
        **{f"signature of upstream token {number}": each.rpartition(".")[2] for number, each in enumerate(bearers)},
    }
    finds.guessable = {
        "the password": PASSWORD,
        **{user: user for user in USERS},
        **dict(zip(("rejected user", "rejected password"), REJECTED, strict=True)),
        **dict(zip(("malformed user", "malformed password"), MALFORMED, strict=True)),
    }
    assert finds.hits() == []


REDIS_PASSWORD: Final = "canary-redis-password"
PROXY_PASSWORD: Final = "canary-proxy-password"


async def test_settings_and_their_examination_show_no_secret(upstream: SandboxServer, prefix: str) -> None:
    encryption_key = base64.b64encode(b"canary of thirty-two bytes, yes.").decode()
    settings = make_settings(
        f"redis://canary-user:{REDIS_PASSWORD}@127.0.0.1:1/0",
        upstream.url,
        prefix,
        upstream_proxy=SecretStr(f"http://proxy-user:{PROXY_PASSWORD}@127.0.0.1:1"),
        encryption_keys={"main": SecretStr(encryption_key)},
    )
    finds = Finds()
    finds.add("settings", f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}")
    finds.add("doctor", await examined(settings))
    finds.add("process", repr(vars(wire(settings))))
    finds.canaries = {
        "the secret": SANDBOX_SECRET,
        "the encryption key": encryption_key,
        "the password of Redis": REDIS_PASSWORD,
        "the password of the proxy": PROXY_PASSWORD,
    }
    assert "cannot be reached" in str(finds.texts)
    assert finds.hits() == []


@pytest.mark.parametrize(
    "value", ["hunter2", "hunter2://a:hunter2@hunter2", '{"hunter2": ["hunter2"]}', "hunter2:hunter2"]
)
def test_faults_of_settings_show_no_value(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(f"OMNICONNECT_{name.upper()}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    told = "".join(traceback.format_exception(caught.value))
    assert len(caught.value.faults) > 10
    assert "hunter2" not in f"{told} {caught.value!r} {caught.value.faults}"


def test_the_search_finds_what_is_hidden() -> None:
    finds = Finds(canaries={"it": "canary-pässwörd"})
    hidden = "x canary-pässwörd y".encode()
    finds.add("plain", hidden)
    finds.add("base64", base64.b64encode(hidden))
    finds.add("urlsafe", b"k=" + base64.urlsafe_b64encode(hidden).rstrip(b"="))
    finds.add("packed", zlib.compress(hidden))
    finds.add("packed base64", base64.b64encode(zlib.compress(hidden)))
    finds.add("percent", quote("canary-pässwörd"))
    finds.add("hex", hidden.hex())
    finds.add("JSON", json.dumps("canary-pässwörd"))
    finds.add("Base64 in the middle of more", base64.b64encode(b"xx" + hidden))
    finds.guessable = {"it": "canary-pässwörd"}
    finds.add("hash", f"sha256:{hashlib.sha256('canary-pässwörd'.encode()).hexdigest()}")
    assert len(finds.hits()) == len(finds.texts)


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
        await asyncio.sleep(0)  # its lines are written when the turn of the event loop is over
        told = capsys.readouterr().err
    finally:
        configure_logs("DEBUG")
        structlog.configure(logger_factory=before)
    assert '"event":"ours"' in told
    assert "It failed" in told
    assert "builtins.ValueError" in told
    assert "p4ssw0rd" not in told


@pytest.mark.parametrize("closed", [False, True])
def test_a_log_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch, *, closed: bool) -> None:
    before = structlog.get_config()["logger_factory"]
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123 -- a device
        monkeypatch.setattr("sys.stderr", full)
        configure_logs("DEBUG")
        if closed:
            with suppress(OSError):
                full.close()
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
