"""Redis by its URL: a server, a Sentinel's master, or a Cluster, as redis-py's clients."""

from typing import Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

from redis._parsers import _AsyncHiredisParser
from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel, SentinelConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from typing_extensions import override

__all__ = ["connect"]

_LEAST_CONNECT_SECONDS: Final = 2.0
"""For the subscription; a command's connection has the command's limit."""

_SENTINEL_PORT: Final = 26379
_SENTINEL_PATH_PARTS: Final = 2


def connect(url: str, *, command_seconds: float, max_connections: int) -> Redis | RedisCluster:
    """A client that gives up by itself only while it connects: who uses it bounds its commands.

    URLs: `redis://`, `rediss://`, `unix://`, `redis+cluster://host:port`,
    `redis+sentinel://host:port,host:port/<master name>[/<db>]`.
    """
    # redis-py 8 waits up to 58 s for a silent server and retries 10 times unless told otherwise. Its own limit for a
    # command is off: it waits by `asyncio.wait_for`, which in Python 3.11 loses cancellations, and it counts by the
    # clock.
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": None,
        "socket_connect_timeout": max(command_seconds, _LEAST_CONNECT_SECONDS),
        "retry": Retry(NoBackoff(), 1),
    }
    parts = urlsplit(url)
    if parts.scheme in {"redis+cluster", "rediss+cluster"}:
        plain = urlunsplit(parts._replace(scheme=parts.scheme.removesuffix("+cluster")))
        # Its retry sends a command again; the others' only connects again.
        options["retry"] = Retry(NoBackoff(), 0)
        return RedisCluster.from_url(plain, max_connections=max_connections, **options)
    if parts.scheme in {"redis+sentinel", "rediss+sentinel"}:
        # One that is silent must leave time to ask the next.
        return _sentinel(
            url,
            options,
            {"socket_timeout": command_seconds / 2, "socket_connect_timeout": command_seconds / 2},
            max_connections=max_connections,
        )
    pool = ConnectionPool.from_url(url, max_connections=max_connections, parser_class=_Parser, **options)
    return Redis.from_pool(pool)


def _sentinel(url: str, options: dict[str, Any], limits: dict[str, Any], *, max_connections: int) -> Redis:
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = (unquote(each) for each in credentials.partition(":"))
    name, *database = parts.path.strip("/").split("/", _SENTINEL_PATH_PARTS - 1)
    sentinels = [urlsplit(f"//{host}") for host in hosts.split(",")]
    nodes = [(each.hostname, each.port or _SENTINEL_PORT) for each in sentinels]
    login = {"username": username or None, "password": password or None}
    tls = {"ssl": parts.scheme.startswith("rediss")}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        nodes, sentinel_kwargs=options | limits | tls, **options, **login, **tls
    )
    pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
        name,
        sentinel,
        db=int(database[0]) if database else 0,
        max_connections=max_connections,
        parser_class=_Parser,
        **options,
        **login,
        **tls,
    )
    return Redis.from_pool(pool)


class _Parser(_AsyncHiredisParser):
    """What is no UTF-8 fails whoever asked for it; by redis-py's own parser, all who share the connection.

    A Cluster's client takes no parser, and its commands share no connection.
    """

    @override
    async def read_response(self, disable_decoding: bool = False, push_request: bool = False) -> Any:
        try:
            return await super().read_response(disable_decoding, push_request)
        except UnicodeDecodeError:
            return ResponseError("what is stored is no UTF-8")  # the connection raises it, and stays as it is
