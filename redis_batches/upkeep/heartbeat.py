"""One thread per process that keeps the leases of its batches alive.

It wakes every third of a lease, whatever runs then: a batch that is shorter costs two operations on
a dictionary, and no command. It is a real thread, also under gevent and eventlet, where a function
that does not yield would keep a greenlet from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import ERROR, WARNING, getLogger

from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.upkeep import threads

logger = getLogger(__name__)


class Heartbeat:
    """Extends every lease it keeps.

    Args:
        interval: Seconds between two extensions, a third of the lease.
        store_of: Returns a task's store whose connections belong to the thread that asks for it;
            used where threads are greenlets.
    """

    def __init__(self, interval: float, store_of: Callable[[str], Store] | None = None) -> None:
        self.interval = interval
        self._store_of = store_of if threads.are_greenlets() else None
        #: Read without a lock, as one operation: a greenlet must not keep the thread from it.
        self._kept: dict[str, Lease] = {}
        self._lock = threads.new_lock()
        self._started = False
        self._lines: deque[tuple[int, str, tuple[object, ...]]] = deque()

    @contextmanager
    def keep(self, lease: Lease) -> Iterator[None]:
        """Keeps a lease alive until the block ends."""
        self._kept[lease.token] = lease
        with self._lock:
            starts, self._started = not self._started, True
        if starts:
            threads.start(self._loop)
        try:
            yield
        finally:
            self._kept.pop(lease.token, None)
            self._write()

    def tick(self) -> float:
        """Extends every lease once; returns seconds until the next tick is wanted."""
        again = self.interval
        for lease in list(self._kept.values()):
            if lease.lost or lease.overdue:
                continue
            try:
                store = self._store_of(lease.task) if self._store_of else None
                kept = store.extend(lease) if store else lease.extend()
                if not kept and lease.token in self._kept:
                    why = "is overdue" if lease.overdue else "was lost"
                    self._log(ERROR, "the lease on batch %s %s while it ran", lease.token, why)
            except Exception as exc:
                text = "could not extend the lease on batch %s: %r"
                self._log(WARNING, text, lease.token, exc)
                again = self.interval / 10
        return again

    def _loop(self) -> None:
        wait = self.interval
        while True:
            threads.sleep(wait)
            wait = self.tick()

    def _log(self, level: int, text: str, *args: object) -> None:
        """Logs; what a greenlet may hold, such as a handler's lock, is not waited for."""
        self._lines.append((level, text, args))
        if self._store_of is None:
            self._write()

    def _write(self) -> None:
        while self._lines:
            level, text, args = self._lines.popleft()
            logger.log(level, text, *args)
