"""When a worker sweeps for which task: each at its own pace, and not all in one moment.

With a hundred tasks a look at each of them, one after the other, would keep a batch that is due
waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from random import randrange

from redis_batches.upkeep.sweeper import Served, Sweeper

#: Moments of its pace at which a task may be swept; those that share one share a wake-up.
PHASES = 10


class PacedSweeper:
    """Has a sweeper look after each task when that task wants it.

    Args:
        sweeper: Knows the tasks, and is asked for them once per its interval.
        clock: Returns seconds; it must never go back.
    """

    def __init__(self, sweeper: Sweeper, clock: Callable[[], float]) -> None:
        self._sweeper = sweeper
        self._clock = clock
        self._tasks: list[Served] = []
        #: When the tasks are asked for again, and when each of them wants to be swept.
        self._renewal = 0.0
        self._wanted: dict[str, float] = {}

    def tick(self) -> float:
        """Sweeps for the tasks that want it by now; returns seconds until the next tick."""
        began = self._clock()
        if self._renewal <= began:
            self._renew(began)
        for served in self._tasks:
            task = served.store.task
            if task not in self._wanted:
                phase = randrange(1, PHASES + 1) / PHASES
                self._wanted[task] = began + phase * self._sweeper.look_after(served)
            elif self._wanted[task] <= self._clock():
                wait = self._sweeper.look_after(served)
                self._wanted[task] = self._clock() + wait
        soonest = min(self._wanted.values(), default=self._renewal)
        return max(min(soonest, self._renewal) - self._clock(), 0.001)

    def _renew(self, now: float) -> None:
        self._tasks = list(self._sweeper.served())
        self._renewal = now + self._sweeper.interval
        known = self._wanted
        names = [served.store.task for served in self._tasks]
        self._wanted = {name: known[name] for name in names if name in known}
