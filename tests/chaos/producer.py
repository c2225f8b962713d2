"""A caller that writes down what it is going to do, and what came of it.

A run starts it as `python -m tests.chaos.producer NAME SEED RATE`; SIGTERM ends it after the call
that it is at.
"""

from __future__ import annotations

import faulthandler
import random
import signal
import sys
import time
from itertools import zip_longest
from threading import Event
from typing import Any

from redis_batches import BatchesError
from tests.chaos import tasks
from tests.chaos.ledger import Log

#: Calls that are announced together.
GROUP = 30
#: How many groups are called at once.
BULK_SHARE = 0.3
#: How often each task is called, by its short name.
WEIGHTS = {"square": 35, "count": 35, "fetch": 20, "limited": 10}
#: How often the calls of a task are in trouble, by the trouble.
TROUBLES = {"fetch": {tasks.ALONE: 0.05, tasks.BATCH: 0.004}, "limited": {tasks.HANG: 0.001}}
#: Seconds of a rush, and of the quiet after it, in which only the interval makes batches due.
RUSH, QUIET = 4.0, 2.0
QUIET_RATE = 4.0


class Producer:
    """Calls tasks at a pace.

    Args:
        name: A name that no other producer of the run has.
        seed: Decides what is called.
        rate: Calls a second in a rush.
    """

    def __init__(self, name: str, seed: int, rate: float) -> None:
        self._name = name
        self._dice = random.Random(f"{seed} {name}")
        self._rate = rate
        self._log = Log("calls")
        self._made = 0
        self.stopped = Event()

    def run(self) -> None:
        """Calls until `stopped`."""
        began = time.monotonic()
        while not self.stopped.is_set():
            group = [self._plan() for _ in range(GROUP)]
            self._log.write(
                {"call": key, "task": task, "number": number} for key, task, number, _ in group
            )
            if self._dice.random() < BULK_SHARE:
                self._log.write(self._call_many(group), sync=False)
                continue
            for call in group:
                quiet = (time.monotonic() - began) % (RUSH + QUIET) > RUSH
                if self.stopped.wait(1 / (QUIET_RATE if quiet else self._rate)):
                    break
                # Unlike the announcement this need not be synced: only the process may be killed.
                self._log.write([self._call(*call)], sync=False)

    def _plan(self) -> tuple[str, str, int, str]:
        self._made += 1
        (task,) = self._dice.choices(list(WEIGHTS), list(WEIGHTS.values()))
        troubles = TROUBLES.get(task, {})
        shares = [1 - sum(troubles.values()), *troubles.values()]
        (trouble,) = self._dice.choices(["", *troubles], shares)
        return f"{self._name}-{self._made}", task, self._dice.randrange(1000), trouble

    def _call_many(self, group: list[tuple[str, str, int, str]]) -> list[dict[str, Any]]:
        """Makes the calls of a group at once, task by task; an error says what was accepted."""
        lines = []
        for task in {task for _, task, _, _ in group}:
            calls = [(key, number, trouble) for key, its, number, trouble in group if its == task]
            try:
                results, error = getattr(tasks, task).delay_many(calls), ""
            except BatchesError as exc:
                results, error = exc.accepted, f"{type(exc).__name__}: {exc}"
            for (key, _, _), result in zip_longest(calls, results):
                task_id = result.id if result else None
                lines.append({"call": key, "task_id": task_id, "error": "" if task_id else error})
        return lines

    def _call(self, key: str, task: str, number: int, trouble: str) -> dict[str, Any]:
        own_id = None if self._dice.random() < 0.5 else key
        try:
            result = getattr(tasks, task).apply_async((key, number, trouble), task_id=own_id)
        except Exception as exc:
            return {"call": key, "task_id": None, "error": f"{type(exc).__name__}: {exc}"}
        return {"call": key, "task_id": result.id, "error": ""}


def main(name: str, seed: str, rate: str) -> None:
    """Calls until it is told to end."""
    producer = Producer(name, int(seed), float(rate))

    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGTERM, lambda *_: producer.stopped.set())
    producer.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
