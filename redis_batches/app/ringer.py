"""A thread that rings for a worker's event loop, which must not wait for the broker."""

from __future__ import annotations

import atexit
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from logging import getLogger
from time import monotonic
from typing import NamedTuple

from redis_batches.core.triggers import Bells
from redis_batches.upkeep import threads

logger = getLogger(__name__)

#: Groups that may wait to be rung for; a sweep rings for what finds no place.
MOST = 20_000
#: As many doorbells as scripts let be out for a group.
MOST_BELLS = 16
#: Seconds for which the end of the process waits for doorbells that it has yet to ring.
LAST_CHANCE = 2.0


class Cause(NamedTuple):
    """What doorbells have in common that are rung together.

    Attributes:
        group: Id of the group.
        priority: Of the messages.
        force: Whether what waits is claimed though it is not due.
    """

    group: str
    priority: int | None = None
    force: bool = False


class Ringer:
    """Rings what is posted, the tasks in turn: one with thousands of groups holds up no other.

    Args:
        ring: Rings a task's doorbells, in bounded time.
    """

    def __init__(self, ring: Callable[[str, Bells, Cause], None]) -> None:
        self._ring = ring
        self._guard = threads.Unforked()
        self._waiting: OrderedDict[str, OrderedDict[Cause, Bells]] = OrderedDict()
        self._count = 0
        self._busy = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def post(
        self, task: str, bells: Bells, priority: int | None = None, force: bool = False
    ) -> bool:
        """Has doorbells rung soon; returns False if too many wait for that.

        Args:
            task: The name of the batch task.
            bells: For which group, where, and how many.
            priority: The message priority of the call that caused it.
            force: Whether what waits is claimed though it is not due.
        """
        cause = Cause(bells.group, priority, force)
        with self._changed:
            if self._count >= MOST:
                return False
            causes = self._waiting.setdefault(task, OrderedDict())
            if (known := causes.get(cause)) is not None:
                # As of the older: a doorbell that is too old makes no other seem lost.
                bells = replace(known, count=min(known.count + bells.count, MOST_BELLS))
            else:
                self._count += 1
            causes[cause] = bells
            self._start()
            self._changed.notify_all()
        return True

    def drain(self, seconds: float = LAST_CHANCE) -> bool:
        """Waits until everything was rung, for some seconds; returns whether it was."""
        until = monotonic() + seconds
        with self._changed:
            while self._waiting or self._busy:
                left = until - monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._loop, name="redis_batches-ringer", daemon=True
            )
            self._thread.start()
            atexit.register(self.drain)

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                while not self._waiting:
                    self._changed.wait()
                task, cause, bells = self._next()
                self._busy = True
            try:
                with self._guard:
                    self._ring(task, bells, cause)
            except Exception:
                logger.exception("cannot ring for %s, the next sweep will", task)

    def _next(self) -> tuple[str, Cause, Bells]:
        """Takes the oldest of the task whose turn it is; the task goes behind the others."""
        task, causes = next(iter(self._waiting.items()))
        cause, bells = causes.popitem(last=False)
        self._count -= 1
        if causes:
            self._waiting.move_to_end(task)
        else:
            del self._waiting[task]
        return task, cause, bells
