"""Callers who take their time, or send too much: behind nginx as deploy/README.md says, it costs nothing."""

import asyncio
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import pytest

from service.settings import SANDBOX_API_KEY, Settings
from tests.conftest import Replica
from tests.nginx import nginx_config
from tests.processes import eventually, resident, serving

ADVICE: Final = (Path(__file__).parents[2] / "deploy" / "README.md").read_text(encoding="utf-8")
SENDERS: Final = 300
HEAD: Final = b"POST /v1/sessions HTTP/1.1\r\nHost: bff.example\r\nContent-Type: application/json\r\n"
MIB: Final = 2**20


def told() -> str:
    """The configuration, letter for letter."""
    found = re.search(r"```nginx\n(.*?)```", ADVICE, re.DOTALL)
    assert found is not None
    return found[1]


def advised(port: int, upstream: str) -> str:
    """The configuration as it is told, but on a port of its own, without TLS, and less patient."""
    server = told().replace("http://127.0.0.1:8000", upstream).replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    server = re.sub(r"^ *ssl_.*\n", "", server, flags=re.MULTILINE)
    for patience in ("client_header_timeout 10s", "client_body_timeout 30s"):
        assert patience in server
        server = server.replace(patience, patience.rpartition(" ")[0] + " 1s")
    return nginx_config(server, main="worker_rlimit_nofile 8192;", events="worker_connections 4096;")


def test_nothing_is_missing_but_the_certificate(nginx: str, tmp_path: Path) -> None:
    config = tmp_path / "nginx.conf"
    config.write_text(f"events {{}}\nhttp {{\naccess_log off;\n{told()}}}\n", encoding="utf-8")
    tried = [nginx, "-t", "-e", "stderr", "-p", str(tmp_path), "-c", str(config)]
    complaints = subprocess.run(tried, check=False, capture_output=True, text=True).stderr.splitlines()  # noqa: S603 -- our own
    assert 'cannot load certificate "/etc/ssl/link.example.com.pem"' in complaints[0]


@dataclass(frozen=True, slots=True)
class Edge:
    """nginx in front of a replica, and a client that behaves."""

    port: int
    process: int
    client: httpx.AsyncClient
    replica: Replica

    async def answers(self) -> bool:
        """Whether others get what they ask for."""
        answer = await self.client.post("/v1/sessions", headers={"Authorization": f"Bearer {SANDBOX_API_KEY}"})
        return answer.status_code == 201

    def connections_to_the_service(self) -> int:
        """What nginx holds open to the replica, seen from the replica's end."""
        port = f":{httpx.URL(self.replica.url).port:04X}"
        rows = [row.split() for row in Path("/proc/net/tcp").read_text(encoding="utf-8").splitlines()[1:]]
        return sum(row[1].endswith(port) and row[3] == "01" for row in rows)


@pytest.fixture
def nginx() -> str:
    """Where it is."""
    found = shutil.which("nginx")
    if found is None or sys.platform != "linux":
        pytest.skip("needs nginx and Linux; the whole build has both")
    return found


@pytest.fixture
async def edge(nginx: str, replica: Replica, tmp_path: Path) -> AsyncIterator[Edge]:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    config = tmp_path / "nginx.conf"
    config.write_text(advised(port, replica.url), encoding="utf-8")
    pid = tmp_path / "nginx.pid"  # written once it listens
    with subprocess.Popen([nginx, "-e", "stderr", "-p", str(tmp_path), "-c", str(config)]) as process:  # noqa: S603, ASYNC220 -- our own
        try:
            await eventually(lambda: pid.exists() or process.poll() is not None)
            assert process.poll() is None, f"nginx ended with {process.returncode}"
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=40, trust_env=False) as client:
                yield Edge(port, process.pid, client, replica)
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class Sender:
    """One connection, byte by byte."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def drip(self, head: bytes, *, then: bytes, every: float) -> bytes:
        """Send a head, and then a little again and again until the other side says something, or leaves."""
        self.writer.write(head)
        reading = asyncio.create_task(self.reader.read(65_536))
        while not reading.done():
            if then:
                self.writer.write(then)
            await asyncio.wait([reading], timeout=every)
        with suppress(ConnectionError):
            return await reading
        return b""


@asynccontextmanager
async def senders(port: int, how_many: int) -> AsyncIterator[list[Sender]]:
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(how_many):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            opened.append(Sender(reader, writer))
        yield opened


@pytest.mark.parametrize("then", [b"", b"x"], ids=["silent", "dripping"])
async def test_who_takes_long_for_the_head_is_sent_away(edge: Edge, then: bytes) -> None:
    async with senders(edge.port, SENDERS) as slow:
        dripping = [asyncio.create_task(each.drip(HEAD + b"X-A: ", then=then, every=0.2)) for each in slow]
        assert await edge.answers()
        assert edge.connections_to_the_service() <= 2
        said = await asyncio.gather(*dripping)  # each ends because nginx closes
        assert all(each == b"" or b" 408 " in each.partition(b"\r\n")[0] for each in said)
    assert await edge.answers()


async def test_who_stops_in_the_body_is_sent_away_and_never_seen(edge: Edge) -> None:
    async with senders(edge.port, SENDERS) as slow:
        head = HEAD + b'Content-Length: 1000\r\n\r\n{"subject": "'
        stopping = [asyncio.create_task(each.drip(head, then=b"", every=60)) for each in slow]
        assert await edge.answers()
        assert edge.connections_to_the_service() <= 2
        said = await asyncio.gather(*stopping)
        assert all(each == b"" or b" 408 " in each.partition(b"\r\n")[0] for each in said)
    assert await edge.answers()


async def test_who_drips_the_body_holds_a_place_at_nginx_and_none_at_the_service(edge: Edge) -> None:
    """nginx's patience is for the next byte: the place costs its connection, and no more."""
    async with senders(edge.port, SENDERS) as slow:
        for each in slow:
            each.writer.write(HEAD + b'Content-Length: 1000\r\n\r\n{"subject": "')
        for _ in range(8):
            for each in slow:
                each.writer.write(b"x")
            assert await edge.answers()
            assert edge.connections_to_the_service() <= 2


async def test_a_head_that_is_too_large_ends_at_nginx(edge: Edge) -> None:
    before = resident(edge.process)
    async with senders(edge.port, 100) as bombers:
        bomb = b"".join(b"X-%d: %s\r\n" % (each, b"x" * 15_000) for each in range(8))
        told = [asyncio.create_task(each.drip(HEAD + bomb, then=bomb, every=0.01)) for each in bombers]
        assert await edge.answers()
        said = await asyncio.gather(*told)
    assert all(each == b"" or b" 400 " in each.partition(b"\r\n")[0] for each in said)
    assert resident(edge.process) - before < 32 * MIB
    assert await edge.answers()


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_a_body_that_is_too_large_ends_at_nginx(edge: Edge, *, chunked: bool) -> None:
    length = b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: 10000000000\r\n\r\n"
    part = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    before = resident(edge.process)
    async with senders(edge.port, 20) as bombers:
        told = [asyncio.create_task(each.drip(HEAD + length, then=part, every=0.01)) for each in bombers]
        assert await edge.answers()
        assert edge.connections_to_the_service() <= 2
        said = await asyncio.gather(*told)
    assert all(each == b"" or b" 413 " in each.partition(b"\r\n")[0] for each in said)
    assert resident(edge.process) - before < 32 * MIB
    assert await edge.answers()


async def test_without_nginx_they_are_kept_and_others_answered(settings: Settings) -> None:
    """What deploy/README.md tells of a listener that callers reach directly."""
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(serving(settings))
        port = httpx.URL(service.client.base_url).port
        assert port is not None
        await service.walk().open()
        before = resident(service.pid)
        slow = await stack.enter_async_context(senders(port, 2 * SENDERS))
        for each in slow[:SENDERS]:
            each.writer.write(HEAD + b"X-A: ")
        for each in slow[SENDERS:]:
            each.writer.write(HEAD + b'Content-Length: 1000\r\n\r\n{"subject": "')
        await service.walk().open()
        assert resident(service.pid) - before < 2 * SENDERS * 32 * 1024
        slow[0].writer.write(b"x\r\n\r\n")
        assert b" 401 " in await slow[0].reader.readline()
        (bomber,) = await stack.enter_async_context(senders(port, 1))
        bomber.writer.write(HEAD + b"X-A: " + b"x" * 5 * MIB + b"\r\n\r\n")
        assert b" 400 " in await bomber.reader.readline()
        await service.walk().open()
