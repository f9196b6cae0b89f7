"""Starting what is measured, each with one worker on the server's core: this service, and its peers."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from service.settings import SANDBOX_API_KEY, SANDBOX_CLIENT_ID, SANDBOX_ENCRYPTION_KEY, SANDBOX_SECRET
from tests.load.nginx import nginx
from tests.load.processes import Place, Server, free_port
from tests.load.upstreams.answers import long_token
from tests.load.upstreams.start import Upstream

__all__ = ["node_peer", "node_ready", "ours", "plain", "proxy"]

_NODE: Final = Path(__file__).parent / "node"
_INSTALL_SECONDS: Final = 120
_UNLIMITED: Final = "1000000"
"""For limits that are to run and not to refuse: one person of the load stands for many."""


@contextmanager
def ours(place: Place, *, store: str, upstream: str, **settings: str) -> Iterator[Server]:
    """This service as it is run; `settings` by their variables' names."""
    port = free_port()
    environ = {
        "SANDBOX": "true",
        "CLIENT_ID": SANDBOX_CLIENT_ID,
        "SECRET": SANDBOX_SECRET,
        "UPSTREAM_URL": upstream,
        "REDIS_URL": store,
        "ENCRYPTION_KEYS": f"load:{SANDBOX_ENCRYPTION_KEY}",
        "PORT": str(port),
        "ACCOUNT_ATTEMPTS": _UNLIMITED,
        "SESSION_READS": _UNLIMITED,
        "PASSWORD_MINUTES": "60",  # jobs that wait for thousands of others to come do not time out
        **settings,
    }
    named = {f"OMNICONNECT_{name}": value for name, value in environ.items()}
    with place.python("ours", "service", "serve", port=port, core=place.cores.server, environ=named) as server:
        server.wait_until_ready("/readyz")
        yield server


@contextmanager
def plain(place: Place, *, store: str, upstream: str) -> Iterator[Server]:
    """The tutorial's way; without an access log, which ours has."""
    port = free_port()
    environ = {
        "UPSTREAM_URL": upstream,
        "REDIS_URL": store,
        "CLIENT_ID": SANDBOX_CLIENT_ID,
        "CLIENT_SECRET": SANDBOX_SECRET,
        "API_KEY": SANDBOX_API_KEY,
    }
    arguments = ("uvicorn", "tests.load.peers.plain:app", "--port", str(port), "--no-access-log")
    with place.python("plain", *arguments, port=port, core=place.cores.server, environ=environ) as server:
        server.wait_until_ready("/livez")
        yield server


@contextmanager
def proxy(place: Place, upstream: Upstream) -> Iterator[Server]:
    """nginx: kept-alive connections and a fixed token, no state and no checks."""
    port = free_port()
    backends = f"""upstream vendor {{
server 127.0.0.1:{upstream.server.port};
keepalive 512;
keepalive_requests 1000000000;
keepalive_timeout 3600s;
}}"""
    server = f"""listen 127.0.0.1:{port} backlog=4096;
location = /_status {{ stub_status; }}
location / {{
proxy_pass http://vendor/api/;
proxy_http_version 1.1;
proxy_set_header Connection "";
proxy_set_header Authorization "Bearer {long_token()}";
}}"""
    with nginx(place, "nginx", server, port=port, core=place.cores.server, upstream=backends) as started:
        yield started


def node_ready(place: Place) -> Path | None:
    """Where node's peers are installed; None if that cannot be done here."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return None
    home = place.home / "node"
    if home.exists():
        return home
    shutil.copytree(_NODE, home, ignore=shutil.ignore_patterns("node_modules"))
    try:
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=home, check=True, capture_output=True, timeout=_INSTALL_SECONDS)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"node's peers are left out, npm ci failed: {error}\n")
        shutil.rmtree(home)
        return None
    return home


@contextmanager
def node_peer(place: Place, home: Path, name: str, upstream: Upstream) -> Iterator[Server]:
    """`express` or `fastify`, passing reads through with a fixed token."""
    port = free_port()
    environ = {
        "PORT": str(port),
        "UPSTREAM_URL": upstream.url,
        "UPSTREAM_TOKEN": long_token(),
        "NODE_ENV": "production",
    }
    command = ["node", f"{name}.js"]
    core = place.cores.server
    with place.server(name, command, port=port, core=core, environ=environ, cwd=home) as server:
        server.wait_until_ready("/")
        yield server
