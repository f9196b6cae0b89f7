"""Real proxies in front of the service, each with a configuration that passes on what a client offers."""

import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.framing.served import Service
from tests.nginx import nginx_config
from tests.processes import eventually

__all__ = ["PROXIES", "proxied"]


def _caddy(port: int, upstream: int) -> str:
    return f"""{{
    admin off
    auto_https off
    log {{
        output discard
    }}
}}
http://:{port} {{
    bind 127.0.0.1
    reverse_proxy 127.0.0.1:{upstream}
}}
"""


def _haproxy(port: int, upstream: int) -> str:
    return f"""global
    maxconn 500
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    http-reuse always
listen front
    bind 127.0.0.1:{port}
    server service 127.0.0.1:{upstream}
"""


def _nginx(port: int, upstream: int) -> str:
    return nginx_config(f"""map $http_upgrade $connection_upgrade {{
    default upgrade;
    "" "";
}}
upstream service {{
    server 127.0.0.1:{upstream};
    keepalive 4;
}}
server {{
    listen 127.0.0.1:{port};
    location / {{
        proxy_pass http://service;
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_upgrade;
    }}
}}""")


PROXIES: Final[dict[str, tuple[Callable[[int, int], str], tuple[str, ...]]]] = {
    "caddy": (_caddy, ("run", "--adapter", "caddyfile", "--config", "config")),
    "haproxy": (_haproxy, ("-q", "-f", "config")),
    "nginx": (_nginx, ("-e", "stderr", "-p", ".", "-c", "config")),
}


@asynccontextmanager
async def proxied(name: str, service: Service, place: Path) -> AsyncIterator[Service]:
    """The service behind this proxy, which writes nowhere but to `place`."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here; the whole build installs it")
    configured, arguments = PROXIES[name]
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    config = place / "config"
    config.write_text(configured(port, service.port), encoding="utf-8")
    environ = {each: str(place) for each in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    with (
        (place / "log").open("wb") as log,
        subprocess.Popen([found, *arguments], cwd=place, env=environ, stdout=log, stderr=log) as process,  # noqa: S603, ASYNC220 -- our own
    ):
        try:
            await eventually(lambda: _listens(port) or process.poll() is not None)
            assert process.poll() is None, (place / "log").read_text(encoding="utf-8")
            yield Service(port, process.pid, place / "log")
        finally:
            process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0
