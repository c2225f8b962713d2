"""redis-py's clients, with our own way of sending again, and a shorter one for scripts.

A script's keys and fixed values are packed once, not at each call: for the 30 arguments of a push
that is a quarter of what redis-py itself takes. Another quarter is its way from a command to a
connection, which is shorter here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import ConnectionError, RedisClusterException, ResponseError, TimeoutError
from redis.retry import Retry
from redis.sentinel import Sentinel

from redis_batches.driver.patience import Patient, Terms
from redis_batches.driver.pool import Pool

#: Lets redis-py close a connection that failed, and do no more.
ONCE = Retry(NoBackoff(), 0, supported_errors=(ConnectionError, TimeoutError, OSError))


class Packed:
    """Several arguments of a command in the form in which Redis reads them.

    See https://redis.io/docs/latest/develop/reference/protocol-spec/.
    """

    __slots__ = ("count", "data")

    def __init__(self, arguments: Iterable[bytes | str | int]) -> None:
        parts = [_packed(argument) for argument in arguments]
        self.count, self.data = len(parts), b"".join(parts)


class Client(Patient, redis.Redis):
    """A client that sends a script whose keys and fixed values were packed before.

    Args:
        pool: Its connections, which it closes in the end.
        terms: How long it goes on.
    """

    def __init__(self, pool: Pool, terms: Terms) -> None:
        Patient.__init__(self, terms)
        redis.Redis.__init__(self, connection_pool=pool)
        self.auto_close_connection_pool = True

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Sends a command until it is answered."""
        return self.patiently(lambda: self.once(*args, **options))

    def once(self, *args: Any, **options: Any) -> Any:
        """Sends a command once."""
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def forget_idle(self) -> None:
        """Closes connections that nobody uses."""
        cast(Pool, self.connection_pool).forget_idle()

    def drop(self) -> None:
        """Closes all connections."""
        self.connection_pool.disconnect()

    def run_packed(self, fixed: Packed, rest: Sequence[bytes | str | int]) -> Any:
        """Sends EVALSHA once, with some arguments that were packed before, and some that were not.

        As redis-py's `execute_command`, but redis-py 6 and later record each command for metrics of
        their own, which is left out.
        """
        command, pool = [pack_script(fixed, rest)], cast(Pool, self.connection_pool)
        connection, answered = pool.take(), False
        try:
            connection.send_packed_command(command)
            reply = connection.read_response()
            answered = True
            return reply
        except ResponseError:
            answered = True
            raise
        finally:
            pool.keep(connection, answered)


class Cluster(Patient, RedisCluster):
    """A client of a cluster, which it asks for its nodes at once.

    Args:
        terms: How long it goes on.
        nodes: Hosts and ports, of which one has to answer.
        make_pool: Makes the connections to one node.
    """

    def __init__(
        self, terms: Terms, nodes: Sequence[tuple[str, int]], make_pool: Callable[..., Pool]
    ) -> None:
        self.terms = terms
        host, port = nodes[0]
        old: dict[str, Any] = {"cluster_error_retry_attempts": 0} if redis.VERSION < (6,) else {}
        others = [ClusterNode(*node) for node in nodes[1:]]  # type: ignore[no-untyped-call]
        # Only with a URL does it take connections that are made by somebody else.
        url = f"redis://{f'[{host}]' if ':' in host else host}:{port}"
        RedisCluster.__init__(
            self, url=url, startup_nodes=others, connection_pool_class=make_pool, retry=ONCE, **old
        )

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Sends a command until it is answered."""
        return self.patiently(lambda: self.once(*args, **options))

    def once(self, *args: Any, **options: Any) -> Any:
        """Sends a command once, and again where a node redirects it to."""
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def node_of(self, key: str) -> redis.Redis:
        """Returns a client of the node that has a key; it follows no redirection."""
        found = self.get_node_from_key(key)  # type: ignore[no-untyped-call]
        if found is None:
            raise RedisClusterException("no node has the slot")
        return self.get_redis_connection(found)

    def forget_idle(self) -> None:
        """Closes connections that nobody uses."""
        for node in self.get_nodes():  # type: ignore[no-untyped-call]
            if node.redis_connection is not None:
                node.redis_connection.connection_pool.forget_idle()

    def drop(self) -> None:
        """Closes all connections."""
        self.disconnect_connection_pools()  # type: ignore[no-untyped-call]


class Sentinels(Sentinel):
    """Sentinels that are asked by clients of ours."""

    def __init__(self, clients: Sequence[Client], min_other_sentinels: int) -> None:
        super().__init__([], min_other_sentinels)  # type: ignore[no-untyped-call]
        self.sentinels = list(clients)


def send_once(client: Any, *command: Any) -> Any:
    """Sends a command once, if the client is one of ours."""
    return getattr(client, "once", client.execute_command)(*command)


def drop_connections(client: Any) -> None:
    """Closes a client's connections, whosever client it is."""
    drop = client.drop if isinstance(client, Patient) else client.connection_pool.disconnect
    drop()


def pack_script(fixed: Packed, rest: Sequence[bytes | str | int]) -> bytes:
    """Returns the bytes of an EVALSHA."""
    head = b"*%d\r\n$7\r\nEVALSHA\r\n%b" % (1 + fixed.count + len(rest), fixed.data)
    return head + b"".join(map(_packed, rest))


def _packed(argument: bytes | str | int) -> bytes:
    data = argument if isinstance(argument, bytes) else str(argument).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)
