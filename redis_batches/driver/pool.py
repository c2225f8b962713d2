"""Connections that wait no longer than the call that uses them may take, and their pools."""

from __future__ import annotations

import os
from collections import deque
from time import monotonic
from typing import Any

import redis
from redis.sentinel import SentinelConnectionPool, SentinelManagedConnection

from redis_batches.driver.deadline import left
from redis_batches.driver.server_errors import OutOfTime

#: Seconds for which a connection is taken to be alive.
WARM = 1.0
#: redis-py before 5.3 wants to know for which command a connection is.
_COMMAND = ("EVALSHA",) if redis.VERSION < (5, 3) else ()


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
