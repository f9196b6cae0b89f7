"""Streams and long waits pass through nginx with nothing set for them, with gzip, and as deploy/README.md says."""

import asyncio
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from service.sandbox.server import SandboxServer
from service.settings import SANDBOX_API_KEY
from tests.conftest import Replica
from tests.events.sse import listening
from tests.nginx import nginx_config
from tests.plain import NO_TLS
from tests.processes import eventually
from tests.walk import Walk

_ADVICE: Final = (Path(__file__).parents[2] / "deploy" / "README.md").read_text(encoding="utf-8")
_LOCATIONS: Final = {
    "default": "location / {\n    proxy_pass http://127.0.0.1:8000;\n}",
    # Of chunked answers nginx passes on each part even when it buffers; its gzip does not, unless buffering is off.
    "compressing": "location / {\n    proxy_pass http://127.0.0.1:8000;\n    gzip on;\n    gzip_types *;\n}",
    "advised": "\n".join(re.findall(r"^    location [^\n]*\{$.*?^    \}$", _ADVICE, re.MULTILINE | re.DOTALL)),
}


def _config(location: str, *, port: int, upstream: str) -> str:
    server = f"server {{\nlisten 127.0.0.1:{port};\n{location.replace('http://127.0.0.1:8000', upstream)}\n}}"
    return nginx_config(server, error_level="error")


@pytest.fixture(params=list(_LOCATIONS))
async def proxied(request: pytest.FixtureRequest, replica: Replica, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client to nginx in front of the replica."""
    nginx = shutil.which("nginx")
    if nginx is None:
        pytest.skip("no nginx here; the whole build installs it")
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    config = tmp_path / "nginx.conf"
    config.write_text(_config(_LOCATIONS[request.param], port=port, upstream=replica.url), encoding="utf-8")
    pid = tmp_path / "nginx.pid"  # written once it listens
    with subprocess.Popen([nginx, "-e", "stderr", "-p", str(tmp_path), "-c", str(config)]) as process:  # noqa: S603, ASYNC220 -- our own
        try:
            await eventually(lambda: pid.exists() or process.poll() is not None)
            assert process.poll() is None, f"nginx ended with {process.returncode}"
            url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=url, timeout=40, trust_env=False, verify=NO_TLS) as client:
                yield client
        finally:
            process.kill()


@pytest.fixture
async def walk(proxied: httpx.AsyncClient) -> Walk:
    """A session that was opened through nginx."""
    return await Walk(proxied, api_key=SANDBOX_API_KEY).open()


async def test_each_event_passes_while_the_stream_is_open(replica: Replica, walk: Walk) -> None:
    async with listening(walk) as stream:
        first = await stream.next()
        assert first is not None
        assert first.name == "session.created"
        await walk.validate("user_quick")
        seen = await stream.until("validation.succeeded")
        assert [event.name for event in seen] == ["validation.pending", "validation.succeeded"]
        assert walk.id in replica.app.state.steps.changes._rooms
        assert stream.answer.headers["server"].startswith("nginx")


async def test_a_long_wait_passes(replica: Replica, walk: Walk, upstream: SandboxServer) -> None:
    pending = (await walk.validate("user_never", wait=None)).json()["validation"]["id"]
    waiting = asyncio.create_task(walk.validation(pending, wait=20))
    await eventually(lambda: walk.id in replica.app.state.steps.changes._rooms)
    (job,) = await eventually(lambda: list(upstream.world._known.jobs.values()))
    upstream.world.finish(job.id, "success")
    answer = await waiting
    assert answer.headers["preference-applied"] == "wait=20"
    assert answer.json()["validation"]["state"] == "succeeded"


async def test_a_client_that_leaves_nginx_is_freed(replica: Replica, walk: Walk) -> None:
    rooms = replica.app.state.steps.changes._rooms
    async with listening(walk) as stream:
        await stream.next()
        assert walk.id in rooms
    await eventually(lambda: not rooms)
