"""The thread in which a worker sweeps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from logging import getLogger

from redis_batches.upkeep import threads

logger = getLogger(__name__)

#: Seconds after a sweep that failed in a way that nobody expected.
PAUSE = 1.0


class SweepThread:
    """A thread that sweeps until it is told to stop, and then ends when it can.

    Args:
        tick: Sweeps; returns seconds until the next tick.
        catch_up: What could not be done at the worker's start, if anything: done first, until it
            returns True.
    """

    def __init__(
        self, tick: Callable[[], float], catch_up: Callable[[], bool] | None = None
    ) -> None:
        self._tick, self._catch_up = tick, catch_up
        self._guard = threads.Unforked()
        self._stopped = threading.Event()
        thread = threading.Thread(target=self._run, name="redis_batches-sweeper", daemon=True)
        thread.start()

    def stop(self) -> None:
        """Ends the thread, after the command that it may be waiting for."""
        self._stopped.set()

    def _run(self) -> None:
        wait = 0.0
        while not self._stopped.wait(wait):
            try:
                with self._guard:
                    wait = self._look()
            except Exception:
                logger.exception("a sweep failed; the next one is in a second")
                wait = PAUSE

    def _look(self) -> float:
        if self._catch_up is not None and self._catch_up():
            self._catch_up = None
        return self._tick()
