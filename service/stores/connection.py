"""Redis or Valkey, by URL: bounded waits, one retry, scripts by name, one exception for all that goes wrong."""

import hashlib
from collections.abc import Awaitable, Sequence
from functools import cache
from importlib import resources
from typing import Any, Final, Self, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr
from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster, Sentinel, SentinelConnectionPool
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from service.errors import StoreUnavailable
from service.telemetry import STORE_FAILURES

__all__ = ["Store"]

_T = TypeVar("_T")
_POOL_WAIT_SECONDS: Final = 2.0
"""How long a command may wait for a free connection; many callers at once are no fault of Redis."""

_MAX_CONNECTIONS: Final = 64
_SENTINEL_PATH_PARTS: Final = 2


class Store:
    """A connection pool to Redis or Valkey.

    URLs: `redis://`, `rediss://`, `unix://`, `redis+cluster://host:port`,
    `redis+sentinel://host:port,host:port/<master name>[/<db>]`.
    """

    def __init__(self, url: SecretStr, *, command_seconds: float) -> None:
        self._client: Redis | RedisCluster = _connect(url.get_secret_value(), command_seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def run(self, script: str, *, keys: Sequence[str], args: Sequence[str | int] = ()) -> Any:  # noqa: ANN401 -- each script has its own shape
        """Run one of the scripts beside this file. All of them may run twice: a lost reply is retried.

        Raises:
            StoreUnavailable: No answer in time, or an error.
        """
        text, digest = _script(script)
        return await self._bounded(self._run(text, digest, keys, args))

    async def _run(self, text: str, digest: str, keys: Sequence[str], args: Sequence[str | int]) -> Any:  # noqa: ANN401
        try:
            return await self._client.evalsha(digest, len(keys), *keys, *args)
        except NoScriptError:
            return await self._client.eval(text, len(keys), *keys, *args)

    async def hash(self, key: str) -> dict[str, str]:
        """All fields of a hash; empty if there is none.

        Raises:
            StoreUnavailable: As `run`.
        """
        return await self._bounded(cast("Awaitable[dict[str, str]]", self._client.hgetall(key)))

    async def put_hash(self, key: str, fields: dict[str, str], *, keep_ms: int) -> None:
        """Write fields and expiry together.

        Raises:
            StoreUnavailable: As `run`.
        """
        async with self._client.pipeline(transaction=True) as pipeline:
            pipeline.hset(key, mapping=cast("Any", fields))
            pipeline.pexpire(key, keep_ms)
            await self._bounded(pipeline.execute())

    async def get(self, key: str) -> str | None:
        """A string value.

        Raises:
            StoreUnavailable: As `run`.
        """
        return await self._bounded(cast("Awaitable[str | None]", self._client.get(key)))

    async def put(self, key: str, value: str, *, keep_ms: int) -> None:
        """Write a string value and its expiry together.

        Raises:
            StoreUnavailable: As `run`.
        """
        await self._bounded(self._client.set(key, value, px=keep_ms))

    async def ping(self) -> None:
        """Whether Redis answers.

        Raises:
            StoreUnavailable: It does not.
        """
        await self._bounded(self._client.ping())

    def pubsub(self) -> PubSub:
        """A subscription with a connection of its own."""
        return self._client.pubsub()

    async def _bounded(self, command: Awaitable[_T]) -> _T:
        try:
            return await command
        except (RedisError, OSError, UnicodeDecodeError) as error:
            STORE_FAILURES.labels(type(error).__name__).inc()
            raise StoreUnavailable from error


def _connect(url: str, command_seconds: float) -> Redis | RedisCluster:
    # redis-py 8 waits up to 58 s for a silent server and retries 10 times unless told otherwise.
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": command_seconds,
        "socket_connect_timeout": command_seconds,
        "retry": Retry(NoBackoff(), 1),
    }
    parts = urlsplit(url)
    if parts.scheme in {"redis+cluster", "rediss+cluster"}:
        plain = urlunsplit(parts._replace(scheme=parts.scheme.removesuffix("+cluster")))
        return RedisCluster.from_url(plain, max_connections=_MAX_CONNECTIONS, cluster_error_retry_attempts=1, **options)
    if parts.scheme in {"redis+sentinel", "rediss+sentinel"}:
        return _sentinel(url, options)
    pool = BlockingConnectionPool.from_url(url, max_connections=_MAX_CONNECTIONS, timeout=_POOL_WAIT_SECONDS, **options)
    return Redis.from_pool(pool)


def _sentinel(url: str, options: dict[str, Any]) -> Redis:
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    name, *database = parts.path.strip("/").split("/", _SENTINEL_PATH_PARTS - 1)
    nodes = [(host.rpartition(":")[0], int(host.rpartition(":")[2])) for host in hosts.split(",")]
    login = {"username": username or None, "password": password or None}
    tls = {"ssl": parts.scheme.startswith("rediss")}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        nodes, sentinel_kwargs=options | tls, **options, **login, **tls
    )
    pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
        name,
        sentinel,
        db=int(database[0]) if database else 0,
        max_connections=_MAX_CONNECTIONS,
        **options,
        **login,
        **tls,
    )
    return Redis.from_pool(pool)


@cache
def _script(name: str) -> tuple[str, str]:
    text = resources.files("service.stores").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
