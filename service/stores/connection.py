"""Redis or Valkey, by URL: bounded waits, one retry, scripts by name, one exception for all that goes wrong."""

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Self, TypeVar

from pydantic import SecretStr
from redis.asyncio import Redis, RedisCluster, SentinelConnectionPool
from redis.asyncio.client import PubSub
from redis.exceptions import (
    ClusterDownError,
    NoScriptError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.errors import StoreUnavailable
from service.stores.batch import Command, replies_of
from service.stores.connect import connect
from service.stores.keys import operation_key
from service.stores.scripts import load
from service.stores.timeouts import within
from service.telemetry import STORE_FAILURES

__all__ = ["Store"]

_STORE_ERRORS: Final = (RedisError, RedisClusterException, OSError, UnicodeDecodeError, AttributeError)
"""All that redis-py raises when Redis fails: not everything is a `RedisError`, and its client of a Cluster trips over
connections that another task has just closed."""

_PASSING_ERRORS: Final = (
    TimeoutError,
    RedisConnectionError,
    RedisTimeoutError,
    ClusterDownError,
    SlotNotCoveredError,
)
"""A second try may find Redis well: the server was silent, had closed a connection that nobody used, or is no master
any more; the Cluster chooses a new one."""

_T = TypeVar("_T")

_LARGEST_BATCH: Final = 128
_BATCHES_AT_ONCE: Final = 64
_KEPT_AT_ONCE: Final = 32
"""Commands that wait for replicas, each on a connection of its own: while they do, it serves nobody else."""

_MAX_CONNECTIONS: Final = _BATCHES_AT_ONCE + _KEPT_AT_ONCE + 16
"""Also for the subscription, and for connections that are on their way back."""

_REPLICA_MS: Final = 250
"""How long replicas may take to tell that they have something."""

_MARK_MS: Final = 1000

_QUEUE_SECONDS: Final = 5.0
_MOST_WAITING: Final = 10_000
"""Commands that wait for a batch; many callers at once are no fault of Redis."""

_LATEST_RETRY_SECONDS: Final = 5.0
"""A process that stood still for longer than this does not send a command again, since Redis may have forgotten that
it ran."""

_REMEMBER_SECONDS: Final = 30.0
"""How long Redis remembers an operation, beside the time that the tries themselves may take. A call waits up to 5 s for
a batch, by digest and again by text, and each may be retried 5 s late: 20 s. The rest is for what the network or a
stalled server delivers late."""

_OPERATION_BYTES: Final = 9


class Store:
    """A connection pool to Redis or Valkey.

    Attributes:
        remember_ms: How long Redis remembers an operation. No try is sent later than this after the call; a server that
            stalls for longer may run one twice.
    """

    def __init__(self, url: SecretStr, *, command_seconds: float, replicas: int = 0) -> None:
        self._client: Redis | RedisCluster = connect(
            url.get_secret_value(), command_seconds=command_seconds, max_connections=_MAX_CONNECTIONS
        )
        self._replicas = replicas
        self._attempt_seconds = command_seconds * 2  # to connect, and for the command
        # Two tries by a script's digest, and two by its text.
        self.remember_ms: Final = int((_REMEMBER_SECONDS + 4 * self._attempt_seconds) * 1000)
        # A cluster's commands go to as many nodes as there are slots.
        self._largest_batch = 1 if isinstance(self._client, RedisCluster) else _LARGEST_BATCH
        self._waiting: deque[tuple[Command, asyncio.Future[Any], float]] = deque()
        self._batches: set[asyncio.Task[None]] = set()
        self._keeping = asyncio.Semaphore(_KEPT_AT_ONCE)
        self._kept: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for each in self._waiting:
            each[1].cancel()
        self._waiting.clear()
        tasks = [*self._batches, *self._kept]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()
        pool = getattr(self._client, "connection_pool", None)
        if isinstance(pool, SentinelConnectionPool):
            for sentinel in pool.sentinel_manager.sentinels:
                await sentinel.aclose()

    async def run(self, script: str, *, keys: Sequence[str], args: Sequence[str | int] = (), kept: bool = False) -> Any:  # noqa: ANN401 -- each script has its own shape
        """Run one of the scripts beside this file, once.

        A lost reply is retried, so the command may reach Redis up to four times, also late: twice by digest, and twice
        by text if Redis lost the script meanwhile (a kept script on a Cluster up to six times). Each call has an
        operation id in the slot of its first key, by which Redis knows a repeat and answers it as the first run. Only
        the scripts of `REPEATABLE` may count twice.
        A call that is made again after `StoreUnavailable` is another operation; it must be idempotent by itself.

        With `kept`, what it wrote, and what it found written, survives the loss of the server: as many replicas as are
        configured have it, too.

        Raises:
            StoreUnavailable: No answer in time, or an error; `done` if it ran, and too few replicas have it.
        """
        called = load(script)
        given: Command = (len(keys), *keys, *args)
        if called.once:
            operation = operation_key(keys[0], secrets.token_urlsafe(_OPERATION_BYTES))
            given = (len(keys) + 1, *keys, operation, *args, self.remember_ms)
        if kept and self._replicas:
            # By its text: to hear that Redis has forgotten a script would take as long as its replicas may take.
            return await self._keep("EVAL", called.text, *given)
        try:
            return await self._command("EVALSHA", called.digest, *given)
        except NoScriptError:
            return await self._command("EVAL", called.text, *given)

    async def hash(self, key: str) -> dict[str, str]:
        """All fields of a hash; empty if there is none.

        Raises:
            StoreUnavailable: As `run`.
        """
        found: dict[str, str] | list[str] = await self._command("HGETALL", key)
        # RESP2, which a deployment may ask for, has no mappings.
        return found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))

    async def get(self, key: str) -> str | None:
        """A string value.

        Raises:
            StoreUnavailable: As `run`.
        """
        value: str | None = await self._command("GET", key)
        return value

    async def put(self, key: str, value: str, *, keep_ms: int) -> None:
        """Write a string value and its expiry together.

        Raises:
            StoreUnavailable: As `run`.
        """
        await self.run("value_put", keys=[key], args=[value, keep_ms])

    async def unrank(self, key: str, member: str) -> None:
        """Remove a member of a sorted set that is never added again: a late repeat removes nothing.

        Raises:
            StoreUnavailable: As `run`.
        """
        await self._command("ZREM", key, member)

    async def ping(self) -> None:
        """Whether Redis answers.

        Raises:
            StoreUnavailable: It does not.
        """
        await self._command("PING")

    async def servers(self) -> Sequence[dict[str, Any]]:
        """What `INFO` tells of the server, or of each master of a Cluster.

        Raises:
            StoreUnavailable: As `run`.
        """
        try:
            return await self._attempted(self._servers)
        except _STORE_ERRORS as error:
            raise StoreUnavailable from error

    async def _servers(self) -> Sequence[dict[str, Any]]:
        if isinstance(self._client, RedisCluster):
            await self._client.initialize()
            return [await node.execute_command("INFO") for node in self._client.get_primaries()]
        return [await self._client.info()]

    def pubsub(self) -> PubSub:
        """A subscription with a connection of its own."""
        return self._client.pubsub()

    async def _command(self, *command: str | int) -> Any:  # noqa: ANN401 -- each command has its own shape
        """One command, sent together with all others of the same moment.

        Most of what a command costs is a connection taken and given back, a call into the system and a task that
        bounds it: a batch has one of each.

        Raises:
            NoScriptError: Redis does not know the script (any more).
            StoreUnavailable: No answer in time, or another error.
        """
        if len(self._waiting) >= _MOST_WAITING:
            raise StoreUnavailable
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append((command, answer, loop.time()))
        return _told(await answer)

    async def _keep(self, *command: str | int) -> Any:  # noqa: ANN401 -- each command has its own shape
        """One script, and the word of enough replicas that they have it, on one connection that serves nobody else.

        Raises:
            StoreUnavailable: No answer in time, or an error; `done` if it ran, and too few replicas have it.
        """
        try:
            async with asyncio.timeout(_QUEUE_SECONDS):
                await self._keeping.acquire()
        except TimeoutError as error:
            raise StoreUnavailable from error
        task = asyncio.create_task(self._kept_replies(command))
        self._kept.add(task)
        task.add_done_callback(self._kept_over)
        reply, mark, having = await asyncio.shield(task)
        answer = _told(reply)
        _told(mark)
        if _told(having) < self._replicas:
            STORE_FAILURES.labels("NotKept").inc()
            raise StoreUnavailable(done=True)
        return answer

    def _kept_over(self, task: asyncio.Task[Any]) -> None:
        self._keeping.release()
        self._kept.discard(task)

    async def _kept_replies(self, command: Command) -> Sequence[Any]:
        # `WAIT` is about the last write of its connection. A script that finds its work done writes nothing, and would
        # be taken for kept although no replica has what it found: so there is always a write after it.
        mark: Command = ("SET", f"{command[3]}:kept", 1, "PX", _MARK_MS)
        unit = (command, mark, ("WAIT", self._replicas, _REPLICA_MS))
        try:
            return await self._attempted(lambda: replies_of(self._client, unit), more_seconds=_REPLICA_MS / 1000)
        except _STORE_ERRORS as error:
            return [error] * len(unit)

    def _send(self) -> None:
        asked_after = asyncio.get_running_loop().time() - _QUEUE_SECONDS
        while self._waiting and self._waiting[0][2] < asked_after:
            answer = self._waiting.popleft()[1]
            if not answer.done():
                answer.set_result(TimeoutError("no turn"))
        while self._waiting and len(self._batches) < _BATCHES_AT_ONCE:
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._largest_batch))]
            batch = [each[:2] for each in taken if not each[1].done()]  # nothing is sent for who has left
            if batch:
                task = asyncio.create_task(self._deliver(batch))
                self._batches.add(task)
                task.add_done_callback(self._delivered)

    def _delivered(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        self._send()

    async def _deliver(self, batch: Sequence[tuple[Command, asyncio.Future[Any]]]) -> None:
        commands = [command for command, _ in batch]
        replies: Sequence[Any] = [ConnectionError("closed")] * len(batch)
        try:
            replies = await self._attempted(lambda: replies_of(self._client, commands))
        except _STORE_ERRORS as error:
            replies = [error] * len(batch)
        finally:
            for (_, answer), reply in zip(batch, replies, strict=True):
                if not answer.done():
                    answer.set_result(reply)  # also an exception: each who waits raises one of their own

    async def _attempted(self, work: Callable[[], Awaitable[_T]], *, more_seconds: float = 0) -> _T:
        """Try again once, on another connection: redis-py gives up one that is silent or broken.

        This is the only retry but that of `batch.py`, for a Cluster; redis-py's own ones are switched off.
        """
        seconds = self._attempt_seconds + more_seconds
        loop = asyncio.get_running_loop()
        latest = loop.time() + seconds + _LATEST_RETRY_SECONDS
        try:
            return await within(seconds, work())
        except _PASSING_ERRORS:
            if loop.time() > latest:
                raise
            return await within(seconds, work())


def _told(reply: Any) -> Any:  # noqa: ANN401 -- each command has its own shape
    """What a command was answered.

    Raises:
        NoScriptError: Redis does not know the script (any more).
        StoreUnavailable: Any other error.
    """
    if isinstance(reply, NoScriptError):
        raise reply
    if isinstance(reply, Exception):
        STORE_FAILURES.labels(type(reply).__name__).inc()
        raise StoreUnavailable from reply
    return reply
