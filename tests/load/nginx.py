"""nginx, as a peer and as an upstream that answers at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.load.processes import Place, Server

__all__ = ["nginx"]


@contextmanager
def nginx(place: Place, name: str, server: str, *, port: int, core: int, upstream: str = "") -> Iterator[Server]:
    """An nginx with one worker; `server` and `upstream` are what stands in these blocks."""
    home = place.home / f"nginx-{port}"
    home.mkdir()
    config = home / "nginx.conf"
    config.write_text(_config(home.as_posix(), server, upstream), encoding="utf-8")
    command = ["nginx", "-e", "stderr", "-p", home.as_posix(), "-c", config.as_posix()]
    with place.server(name, command, port=port, core=core) as started:
        started.wait_until_ready("/_status")
        yield started


def _config(home: str, server: str, upstream: str) -> str:
    """A configuration that keeps everything in `home`."""
    bodies = "\n".join(
        f"{each}_temp_path {home}/{each};" for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""daemon off;
user root;
worker_processes 1;
pid {home}/nginx.pid;
error_log stderr error;
events {{ worker_connections 16384; }}
http {{
access_log off;
default_type application/json;
keepalive_timeout 3600s;
keepalive_requests 1000000000;
{bodies}
{upstream}
server {{
{server}
}}
}}
"""
