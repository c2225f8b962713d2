"""Messages that cannot be stored now: held unacknowledged, and tried again later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from celery.utils.log import get_logger

from redis_batches.core.errors import BacklogFull, BatchesError, StoreError
from redis_batches.core.outage import Quiet
from redis_batches.core.requests import Group

logger = get_logger(__name__)

#: Seconds between two tries; they double while Redis is down, not while the backlog is full.
FIRST_PAUSE, LONGEST_PAUSE, FULL_PAUSE = 0.5, 10.0, 0.1
#: Held messages for which the broker delivers others; then it delivers no more.
MOST_EXTRA = 1000
#: Messages that one try stores, so that the worker's event loop stays responsive.
CHUNK = 100
#: Seconds between two warnings that messages are held.
QUIET = 60.0


class Waits(Protocol):
    """What is held: it knows the group that it will wait in."""

    @property
    def group(self) -> Group:
        """Where it will wait."""


_T = TypeVar("_T", bound=Waits)


class Unstored(Generic[_T]):
    """Stores what arrives in its order, and holds it while that is not possible.

    A held message is not acknowledged, so the broker delivers it again if the worker dies; then,
    and after a lost connection, it is the broker's.

    Args:
        consumer: Celery's consumer, with its connection to the broker.
        task: The name of the task, for the log.
        store: Stores a call, or raises BacklogFull or another BatchesError.
        drain: Called with a group's id while its backlog is full: its doorbells may be in the
            broker behind messages that are not delivered before those held are acknowledged.
        quiet: Says when it may be logged again that Redis cannot be reached, for all tasks.
    """

    def __init__(
        self,
        consumer: Any,
        task: str,
        store: Callable[[_T], None],
        drain: Callable[[str], None],
        quiet: Quiet | None = None,
    ) -> None:
        self._consumer, self._connection = consumer, consumer.connection
        self._task, self._store, self._drain = task, store, drain
        self._held: deque[_T] = deque()
        self._extra = 0
        self._pause = FIRST_PAUSE
        self._warned = -QUIET
        self._quiet = quiet or Quiet()

    def accept(self, call: _T) -> None:
        """Stores a call, or holds it behind those that are held already."""
        if self._held:
            self._held.append(call)
        elif not self._is_stored(call):
            self._held.append(call)
            self._wait()
        else:
            return
        if self._extra < MOST_EXTRA:
            self._extra += 1
            self._consumer.qos.increment_eventually()

    def tick(self) -> None:
        """Tries again, the oldest first."""
        if self._consumer.connection is not self._connection:
            # The broker has taken them back, with the prefetch count of that connection.
            self._held.clear()
            return
        for _ in range(CHUNK):
            if not self._held:
                self._warned = -QUIET
                return
            if not self._is_stored(self._held[0]):
                self._wait()
                return
            self._held.popleft()
            self._let_go()
        self._consumer.timer.call_after(0, self.tick)

    def _is_stored(self, call: _T) -> bool:
        """Whether a call is stored; whatever goes wrong, what is held is tried again."""
        try:
            return self._try(call)
        except Exception:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            logger.exception("what arrives for %s is held, and tried again", self._task)
            return False

    def _try(self, call: _T) -> bool:
        try:
            self._store(call)
        except BacklogFull as exc:
            self._pause = FULL_PAUSE
            self._warn(exc)
            self._drain(call.group.id)
            return False
        except BatchesError as exc:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            if not (isinstance(exc, StoreError) and exc.passes_by_itself):
                self._warn(exc)
            elif self._quiet.may_say("unstored"):
                logger.warning("what arrives for batch tasks is held, and tried again: %s", exc)
            return False
        self._pause = FIRST_PAUSE
        return True

    def _wait(self) -> None:
        self._consumer.timer.call_after(self._pause, self.tick)

    def _let_go(self) -> None:
        if self._extra > len(self._held):
            self._extra -= 1
            qos = self._consumer.qos
            # Celery sets the count anew after a lost connection: what was added is gone then.
            if qos.value > self._consumer.initial_prefetch_count:
                qos.decrement_eventually()

    def _warn(self, exc: Exception) -> None:
        if monotonic() - self._warned >= QUIET:
            self._warned = monotonic()
            logger.warning("what arrives for %s is held, and tried again: %s", self._task, exc)
