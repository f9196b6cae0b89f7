"""Commands sent together over one of redis-py's connections.

On one server this replaces redis-py's pipeline, whose own work takes longer than all of this.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

from hiredis import pack_command
from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import PipelineCommand
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisClusterException, ResponseError

__all__ = ["Command", "replies_of"]

Command: TypeAlias = tuple[str | int, ...]


async def replies_of(client: Redis | RedisCluster, commands: Sequence[Command]) -> Sequence[Any]:
    """What each was answered, which may be an exception; all over one connection."""
    if isinstance(client, RedisCluster):
        return await _of_cluster(client, commands)
    packed = b"".join(map(pack_command, commands))  # type: ignore[arg-type]  # its stub says one
    return await _exchange(client.connection_pool, packed, len(commands))


async def _exchange(pool: ConnectionPool, packed: bytes, commands: int) -> Sequence[Any]:
    """What so many commands were answered, which may be exceptions. A connection that fails closes itself."""
    connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.send_packed_command(packed)
        return [await _reply(connection) for _ in range(commands)]
    finally:
        await pool.release(connection)


async def _reply(connection: AbstractConnection) -> Any:  # noqa: ANN401 -- each command has its own shape
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


async def _of_cluster(cluster: RedisCluster, commands: Sequence[Command]) -> Sequence[Any]:
    """Send one command to wherever it belongs; or several to the node of the first one's key, over one connection."""
    first, *rest = commands
    if not rest:
        return [await cluster.execute_command(*first)]
    replies = await _of_node(cluster, commands)
    if isinstance(replies[0], Exception):
        await cluster.execute_command(*first)  # follows redirections, and learns of the nodes anew
        replies = await _of_node(cluster, commands)
    return replies


async def _of_node(cluster: RedisCluster, commands: Sequence[Command]) -> Sequence[Any]:
    await cluster.initialize()
    node = cluster.get_node_from_key(str(commands[0][3]))
    if node is None:
        raise RedisClusterException("no node for this key")
    unit = [PipelineCommand(position, *command) for position, command in enumerate(commands)]
    await node.execute_pipeline(unit)
    return [each.result for each in unit]
