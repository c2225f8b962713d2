"""Publishes doorbells: on connections of their own, where no answer is waited for without end.

Those of the app's pool wait for ever by default, and a fork lends them to the child: when Celery
closes them there, RabbitMQ's are dead for the parent, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from selectors import EVENT_READ, DefaultSelector
from time import monotonic
from typing import Any

from redis_batches.core.outage import Breaker

#: Seconds to connect, and for each answer of the broker.
PATIENCE = 2.0
#: Connections that are kept for the next doorbells.
MOST_IDLE = 10


class Publisher:
    """A process's connections to the broker of an app, each used by one thread at a time.

    Args:
        app: The app.
        clock: Returns seconds; it must never go back.
    """

    def __init__(self, app: Any, clock: Callable[[], float] = monotonic) -> None:
        self._app = app
        self._idle: deque[Any] = deque()
        self._breaker = Breaker(
            "the broker", slow=PATIENCE / 2, pause=5.0, longest=30.0, clock=clock
        )

    def publish(self, send: Callable[[Any], None]) -> None:
        """Sends with a kombu producer; again with a fresh one if the connection was lost meanwhile.

        Args:
            send: Publishes one message; it may be published twice without harm.

        Raises:
            Unanswered: The broker did not answer a moment ago; nothing was tried.
            Exception: What kombu or the broker's driver raises.
        """
        with self._breaker.attempt():
            producer = self._take()
            if producer is not None:
                lost = (OSError, *producer.connection.connection_errors)
                try:
                    self._use(producer, send)
                    return
                except lost:
                    # The broker was restarted: then the others are lost, too.
                    while (other := self._take()) is not None:
                        _drop(other)
            self._use(self._connect(), send)

    def _take(self) -> Any:
        """Returns an idle producer that seems to be alive, or None."""
        while True:
            try:
                producer = self._idle.pop()
            except IndexError:
                return None
            if not _was_closed(producer.connection):
                return producer
            _drop(producer)

    def _use(self, producer: Any, send: Callable[[Any], None]) -> None:
        try:
            send(producer)
        except BaseException:
            # A late answer must not be read for that of another message.
            _drop(producer)
            raise
        if len(self._idle) < MOST_IDLE:
            self._idle.append(producer)
        else:
            _drop(producer)

    def _connect(self) -> Any:
        app = self._app
        connection = app.connection_for_write(connect_timeout=PATIENCE)
        if connection.get_transport_cls().driver_type == "redis":
            options = dict(connection.transport_options)
            for name in ("socket_timeout", "socket_connect_timeout"):
                options[name] = min(options.get(name) or PATIENCE, PATIENCE)
            connection = app.connection_for_write(
                connect_timeout=PATIENCE, transport_options=options
            )
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=PATIENCE)
            if sock := _socket_of(connection):
                # Its `write_timeout` is a socket option, which greenlets' sockets do not heed.
                sock.settimeout(PATIENCE)
            return app.amqp.Producer(connection)
        except BaseException:
            connection.collect()
            raise


def _socket_of(connection: Any) -> Any:
    """Returns the socket of a connection to RabbitMQ; other drivers keep theirs to themselves."""
    transport = connection.transport
    return getattr(connection.connection, "sock", None) if transport.driver_type == "amqp" else None


def _was_closed(connection: Any) -> bool:
    """Whether RabbitMQ has said something unasked: it has closed the connection, or is about to.

    What is written then is lost without an error. redis-py looks for that by itself.
    """
    sock = _socket_of(connection)
    if sock is None:
        return False
    with DefaultSelector() as selector:
        selector.register(sock, EVENT_READ)
        return bool(selector.select(0))


def _drop(producer: Any) -> None:
    """Closes a connection without a word to the broker, which might not answer."""
    producer.connection.collect(socket_timeout=PATIENCE)
