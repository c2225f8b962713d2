"""redis-py's clients, with one loop that sends again and one deadline for a call's waits.

redis-py nests retries: of a command, of connecting for it, of asking whether a connection is alive,
of finding a cluster's nodes. Here it tries everything once, and each of its waits is cut to what
is left of the call's time; only `Patient.patiently` tries again.

A script's keys and fixed values are packed once, not at each call: for the 30 arguments of a push
that is a quarter of what redis-py itself takes. Another quarter is its way from a command to a
connection, which is shorter here.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import (
    ConnectionError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection

from redis_batches.core.outage import Breaker
from redis_batches.driver.deadline import left, within
from redis_batches.driver.server_errors import TRANSIENT, OutOfTime, name_server, root_of, word_of

_T = TypeVar("_T")

#: Seconds for which a connection is taken to be alive.
WARM = 1.0
#: redis-py before 5.3 wants to know for which command a connection is.
_COMMAND = ("EVALSHA",) if redis.VERSION < (5, 3) else ()
#: redis-py 5 lets a refused connection out as an OSError.
LOST = (ConnectionError, TimeoutError, OSError, RedisClusterException)
#: Lets redis-py close a connection that failed, and do no more.
ONCE = Retry(NoBackoff(), 0, supported_errors=(ConnectionError, TimeoutError, OSError))


@dataclass(frozen=True)
class Terms:
    """How long a client goes on.

    Attributes:
        place: The server, for an error's text.
        timeout: Seconds for connecting, and for one reply.
        deadline: Seconds for a command with all that it takes.
        retries: How often a command is sent again whose reply, or connection, was lost.
        patient: Whether to ask again while the server answers with what passes by itself.
        fails_over: Whether another server may take over, so that a lost one is asked for until the
            deadline, unless `retries` is 0.
    """

    place: str
    timeout: float
    deadline: float
    retries: int
    patient: bool = True
    fails_over: bool = False

    def pause(self, exc: Exception, lost: int, refused: int) -> float | None:
        """Returns seconds to wait before a command is sent again, or None to give up.

        Args:
            exc: What became of it.
            lost: How often its reply or connection was lost before.
            refused: How often it was refused before.
        """
        word = word_of(exc)
        if word in TRANSIENT:
            return float(min(0.02 * 2**refused, 0.5)) if self.patient else None
        # A node that refuses to name the others will not name them later, either.
        refuses = isinstance(root_of(exc), ResponseError)
        if word is not None or refuses or not isinstance(exc, LOST):
            return None
        if lost < self.retries or (self.fails_over and self.retries):
            return float(min(0.1 * 2 ** min(lost, 10), 1.0))
        return None


class Patient:
    """What our clients have in common: the one loop that sends again.

    Args:
        terms: How long it goes on.
    """

    #: Whether the server answers at all, for who must not wait for that; see `guard`.
    breaker: Breaker | None = None

    def __init__(self, terms: Terms) -> None:
        self.terms = terms

    def patiently(self, ask: Callable[[], _T]) -> _T:
        """Asks until there is an answer, an error that stays, or no time left.

        Args:
            ask: Sends a command once; a second time does no harm.
        """
        if self.breaker is None:
            return self._patiently(ask)
        with self.breaker.attempt():
            return self._patiently(ask)

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        terms, lost, refused = self.terms, 0, 0
        before: Exception | None = None
        with within(terms.deadline):
            while True:
                try:
                    return ask()
                except (RedisError, RedisClusterException, OSError) as exc:
                    name_server(exc, terms.place)
                    pause = terms.pause(exc, lost, refused)
                    if pause is None or pause >= left():
                        if before and left() <= 0:
                            # One whose time was cut says less than the one before.
                            raise before from exc
                        raise
                    before = exc
                    if word_of(exc) is None:
                        lost += 1
                        self.forget_idle()
                    else:
                        refused += 1
                        if isinstance(exc, ReadOnlyError):
                            # After a failover a name may stand for another server. Connections
                            # in use stay: other threads wait for their replies.
                            self.forget_idle()
                except BaseException:
                    # What interrupted a command left its reply unread, perhaps.
                    self.forget_idle()
                    raise
                sleep(pause)

    def forget_idle(self) -> None:
        """Closes connections that nobody uses: they may be as dead as the one that was lost."""

    def drop(self) -> None:
        """Closes all connections: the next command asks anew who the primary is."""


class _Bounded:
    """A connection that waits no longer than the call that uses it may take."""

    _sock: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Seconds for each reply, and what the socket has been told.
        self._most = self._told = kwargs["socket_timeout"]

    def _connect(self) -> Any:
        self._told = self._seconds()
        self.socket_timeout = self.socket_connect_timeout = self._told
        return super()._connect()  # type: ignore[misc]

    def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        """Sends, and lets the reply take what is left of the call."""
        if (self._told != self._most or left() < self._most) and self._sock:
            self._told = self._seconds()
            self._sock.settimeout(self._told)
        super().send_packed_command(*args, **kwargs)  # type: ignore[misc]

    def _seconds(self) -> float:
        seconds = min(self._most, left())
        if seconds <= 0:
            raise OutOfTime("no time was left to wait for it")
        return float(seconds)


class Connection(_Bounded, redis.Connection):
    """By TCP."""


class SSLConnection(_Bounded, redis.SSLConnection):
    """By TLS."""


class UnixConnection(_Bounded, redis.UnixDomainSocketConnection):
    """By a socket of this machine."""


class SentinelConnection(_Bounded, SentinelManagedConnection):
    """To the server that sentinels name."""

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Reads a reply; one that was not read to its end is not left for the next command."""
        kwargs.setdefault("disconnect_on_error", True)
        return super().read_response(*args, **kwargs)


class SentinelSSLConnection(SentinelConnection, redis.SSLConnection):
    """To the server that sentinels name, by TLS."""


class Packed:
    """Several arguments of a command in the form in which Redis reads them.

    See https://redis.io/docs/latest/develop/reference/protocol-spec/.
    """

    __slots__ = ("count", "data")

    def __init__(self, arguments: Iterable[bytes | str | int]) -> None:
        parts = [_packed(argument) for argument in arguments]
        self.count, self.data = len(parts), b"".join(parts)


class Pool(redis.ConnectionPool):
    """redis-py's own, with a shorter way to a connection that answered a moment ago.

    redis-py asks the socket of each connection that it hands out whether the server has closed it
    or left something unread, and books it in and out, which takes a seventh of a push.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._warm: deque[tuple[Any, float]] = deque()
        super().__init__(*args, **kwargs)

    def take(self) -> Any:
        """Returns a connection; one that was closed a moment ago is made anew by a retry."""
        if self.pid != os.getpid():
            self._checkpid()
        try:
            connection, answered = self._warm.pop()
        except IndexError:
            return self.get_connection(*_COMMAND)
        if monotonic() - answered < WARM and connection._sock:
            return connection
        self.release(connection)
        return self.get_connection(*_COMMAND)

    def keep(self, connection: Any, answered: bool) -> None:
        """Takes a connection back.

        Args:
            connection: The connection.
            answered: Whether the reply to its last command was read. Else a signal or the end of a
                greenlet came in between, and the next command would get that reply for its own.
        """
        # redis-py 5 never asks for it, so it has no such method.
        leaves = getattr(connection, "should_reconnect", bool)()
        if answered and not leaves:
            self._warm.append((connection, monotonic()))
        else:
            connection.disconnect()
            self.release(connection)

    def forget_idle(self) -> None:
        """Closes what nobody uses now."""
        while self._warm:
            connection, _ = self._warm.pop()
            connection.disconnect()
            self.release(connection)
        self.disconnect(inuse_connections=False)

    def reset(self) -> None:
        """Forgets all connections, as after a fork."""
        self._warm.clear()
        super().reset()


class SentinelPool(Pool, SentinelConnectionPool):
    """The same for connections to the server that sentinels name."""


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


def patiently(client: Any, ask: Callable[[], _T]) -> _T:
    """Asks as the client's terms say; once if it is none of ours."""
    return client.patiently(ask) if isinstance(client, Patient) else ask()


def guard(client: Any, breaker: Breaker) -> None:
    """Lets a client's commands fail at once while the server is known not to answer."""
    if isinstance(client, Patient):
        client.breaker = breaker


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
