"""Rings for what is due, takes back what died, and lets delayed requests wait with the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from logging import getLogger

from redis_batches.buffer.store import SWEEP_LIMIT, Store
from redis_batches.core.errors import BatchesError, StoreError
from redis_batches.core.outage import Quiet
from redis_batches.core.outcomes import Swept
from redis_batches.core.settings import MIN_INTERVAL_MS
from redis_batches.core.triggers import Bells, Trigger

logger = getLogger(__name__)

#: Sweeps of one task in one tick, so that a backlog of due groups drains, and still ends.
MAX_ROUNDS = 20
#: A leader leads for this many of its paces after its last sweep.
FRESHNESS = 1.5
#: Seconds between two looks of one that stands by, at most.
STANDBY = 1.0


@dataclass(frozen=True, slots=True)
class Served:
    """A task to sweep for."""

    store: Store
    trigger: Trigger


class Sweeper:
    """Looks after the waiting requests of several tasks.

    Args:
        served: Returns the tasks; asked at each tick.
        ring: Rings a task's doorbells.
        interval: Seconds between two ticks, at most.
        name: Tells this sweeper from others: one of them leads per task, the others stand by.
            "" sweeps at every tick, whoever leads.
        quiet: Says when an error may be logged again.
    """

    def __init__(
        self,
        served: Callable[[], Iterable[Served]],
        ring: Callable[[str, Bells], None],
        interval: float,
        name: str = "",
        quiet: Quiet | None = None,
    ) -> None:
        self.served = served
        self.interval = interval
        self._ring = ring
        self._name = name
        self._quiet = quiet or Quiet()
        self._looked_after: set[str] = set()

    def tick(self) -> float:
        """Sweeps once for every task; returns seconds until the next tick is wanted."""
        return max(min([self.interval, *map(self.look_after, self.served())]), 0.001)

    def look_after(self, served: Served) -> float:
        """Sweeps for one task; returns seconds until it wants to be swept again."""
        task = served.store.task
        ring_again = bool(self._name) and task not in self._looked_after
        try:
            wait = self._sweep(served, ring_again)
        except BatchesError as exc:
            self._warn("sweep", task, exc)
            return self.interval
        self._looked_after.add(task)
        return wait

    def _sweep(self, served: Served, ring_again: bool) -> float:
        pace = self._pace(served.trigger)
        wait_ms = None
        for _ in range(MAX_ROUNDS):
            swept = served.store.sweep(
                served.trigger,
                sweeper=self._name,
                fresh_ms=round(pace * FRESHNESS * 1000),
                ring_again=ring_again,
            )
            ring_again = False
            if swept is None:
                return min(self.interval, STANDBY)
            self._serve(served, swept)
            wait_ms = swept.wait_ms
            if max(len(swept.bells), len(swept.expired), len(swept.ready)) < SWEEP_LIMIT:
                break
        if wait_ms is None:
            return pace
        # What is overdue even now could not be served, or is too much for one tick.
        return min(pace, (wait_ms + 1 if wait_ms else MIN_INTERVAL_MS) / 1000)

    def _pace(self, trigger: Trigger) -> float:
        """What a tick does not see is armed later, and due a flush interval after that."""
        if trigger.interval_ms == 0:
            return self.interval
        return min(self.interval, max(trigger.interval_ms, MIN_INTERVAL_MS) / 1000)

    def _serve(self, served: Served, swept: Swept) -> None:
        store, trigger = served.store, served.trigger
        for bells in swept.bells:
            self._ring(store.task, bells)
        for token, group in swept.expired:
            logger.warning("the worker of batch %s of %s died: it runs again", token, store.task)
            self._try(store.task, partial(store.reclaim, token, group, trigger))
        for group, ids in swept.ready:
            self._try(store.task, partial(store.promote, group, ids, trigger))

    def _try(self, task: str, serve: Callable[[], Bells]) -> None:
        """Serves one item: one that cannot be served keeps none of the others waiting."""
        try:
            self._ring(task, serve())
        except BatchesError as exc:
            self._warn("serve a part of", task, exc)

    def _warn(self, what: str, task: str, exc: BatchesError) -> None:
        """Logs what cannot be done; all that one outage causes is one line a minute."""
        outage = isinstance(exc, StoreError) and exc.passes_by_itself
        if self._quiet.may_say("outage" if outage else f"{what} {task}"):
            others = " (other tasks neither; said once a minute)" if outage else ""
            logger.warning("cannot %s %s: %s%s", what, task, exc, others)
