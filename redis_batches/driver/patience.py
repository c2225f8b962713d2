"""The one loop that sends again, and the one deadline for all that a command waits for.

redis-py nests retries: of a command, of connecting for it, of asking whether a connection is alive,
of finding a cluster's nodes. Here it tries everything once, and each of its waits is cut to what
is left of the call's time; only `Patient.patiently` tries again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import sleep
from typing import Any, TypeVar

from redis.exceptions import (
    ConnectionError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,
)

from redis_batches.core.outage import Breaker
from redis_batches.driver.deadline import left, within
from redis_batches.driver.server_errors import TRANSIENT, name_server, root_of, word_of

_T = TypeVar("_T")

#: redis-py 5 lets a refused connection out as an OSError.
LOST = (ConnectionError, TimeoutError, OSError, RedisClusterException)


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


def patiently(client: Any, ask: Callable[[], _T]) -> _T:
    """Asks as the client's terms say; once if it is none of ours."""
    return client.patiently(ask) if isinstance(client, Patient) else ask()


def guard(client: Any, breaker: Breaker) -> None:
    """Lets a client's commands fail at once while the server is known not to answer."""
    if isinstance(client, Patient):
        client.breaker = breaker
