"""One thread per process that keeps the leases of its batches alive.

It wakes every third of a lease, whatever runs then: a batch that is shorter costs two operations on
a dictionary, and no command.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from time import sleep

from redis_batches.lease import Lease

logger = getLogger(__name__)


class Heartbeat:
    """Extends every lease it keeps.

    Args:
        interval: Seconds between two extensions, a third of the lease.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._kept: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def keep(self, lease: Lease) -> Iterator[None]:
        """Keeps a lease alive until the block ends."""
        with self._lock:
            self._kept[lease.token] = lease
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._loop, name="redis_batches-heartbeat", daemon=True
                )
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._kept.pop(lease.token, None)

    def tick(self) -> float:
        """Extends every lease once; returns seconds until the next tick is wanted."""
        with self._lock:
            kept = [lease for lease in self._kept.values() if not lease.lost and not lease.overdue]
        again = self.interval
        for lease in kept:
            try:
                if not lease.extend() and lease.token in self._kept:
                    why = "is overdue" if lease.overdue else "was lost"
                    logger.error("the lease on batch %s %s while it ran", lease.token, why)
            except Exception as exc:
                logger.warning("could not extend the lease on batch %s: %r", lease.token, exc)
                again = self.interval / 10
        return again

    def _loop(self) -> None:
        wait = self.interval
        while True:
            sleep(wait)
            wait = self.tick()
