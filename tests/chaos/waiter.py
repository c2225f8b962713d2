"""Threads that wait for results as callers do, and threads that revoke."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import Any, TypeAlias

from celery.exceptions import TimeoutError
from celery.result import ResultSet

from tests.chaos import tasks
from tests.chaos.ledger import Log, Outcome

#: Seconds in which any call must end: several outages, each as long as an outcome is told again
#: (30 s) or a request that could not be told waits, and the runs between them.
PATIENCE = 90.0
#: How many results a producer waits for at a time, at most.
THREADS = 6
#: Seconds until a caller who lost the result backend asks again.
PAUSE = 0.2

#: A call's key, the short name of its task, and its id.
Called: TypeAlias = "tuple[str, str, str]"


class Waiters:
    """Waits and revokes with threads of its own; what they are too few for is left out.

    Args:
        stopped: Ends delays early.
    """

    def __init__(self, stopped: Event) -> None:
        self._stopped = stopped
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._free = Semaphore(THREADS)
        self._waiting: dict[str, float] = {}
        self._waits, self._revokes = Log("waits"), Log("revokes")
        self._threads = [Thread(target=self._work, daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def wait(self, calls: Sequence[Called], at: float) -> None:
        """Waits for calls that were made at a Unix time."""
        self._submit(lambda: self._wait(calls, at))

    def revoke(
        self, key: str, task: str, task_id: str, at: float, delay: float, broadcast: bool
    ) -> None:
        """Revokes a call after a delay, and waits for it.

        Args:
            key: The call.
            task: The short name of its task.
            task_id: Its id.
            at: Unix time at which it was called.
            delay: Seconds.
            broadcast: Whether the workers are asked to, instead of Redis.
        """

        def job() -> None:
            self._stopped.wait(delay)
            self._revoke(key, task, task_id, broadcast)
            self._wait([(key, task, task_id)], at)

        self._submit(job)

    def end(self, over: Event) -> None:
        """Waits until everybody was told.

        Args:
            over: Nothing runs any more: who was not told by now never will be.
        """
        for _ in self._threads:
            self._jobs.put(None)
        while any(thread.is_alive() for thread in self._threads) and not over.wait(PAUSE):
            pass
        for key, at in [*self._waiting.items()]:
            self._write([key], at, [None])

    def _submit(self, job: Callable[[], None]) -> None:
        if self._free.acquire(blocking=False):
            self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            self._free.release()

    def _revoke(self, key: str, task: str, task_id: str, broadcast: bool) -> None:
        began, done = time.time(), None
        self._revokes.write([{"call": key, "at": began, "done_at": None}], sync=False)
        try:
            if broadcast:
                tasks.app.control.revoke(task_id)
            else:
                getattr(tasks, task).AsyncResult(task_id).revoke()
                done = time.time()
        except Exception as exc:
            print(f"cannot revoke {key}: {exc!r}", flush=True)
        self._revokes.write([{"call": key, "at": began, "done_at": done}], sync=False)

    def _wait(self, calls: Sequence[Called], at: float) -> None:
        keys = [key for key, _, _ in calls]
        self._waiting.update(dict.fromkeys(keys, at))
        self._write(keys, at, _outcomes(calls, at + PATIENCE))
        for key in keys:
            self._waiting.pop(key, None)

    def _write(self, keys: Sequence[str], at: float, outcomes: Sequence[Outcome | None]) -> None:
        seconds = round(time.time() - at, 3)
        self._waits.write(
            (
                {"call": key, "seconds": seconds, "outcome": outcome}
                for key, outcome in zip(keys, outcomes, strict=True)
            ),
            sync=False,
        )


def _outcomes(calls: Sequence[Called], until: float) -> list[Outcome | None]:
    """Returns what calls end with, or None for those that do not until a Unix time."""
    while True:
        results = [getattr(tasks, task).AsyncResult(task_id) for _, task, task_id in calls]
        waited: Any = results[0] if len(results) == 1 else ResultSet(results, app=tasks.app)
        try:
            waited.get(timeout=max(until - time.time(), 0.1), propagate=False)
            return [outcome_of(result.state, result.result) for result in results]
        except TimeoutError:
            return [None] * len(calls)
        except Exception as exc:
            # Celery's own: a lost result backend is an error of whoever waits.
            print(f"cannot wait for {calls}: {exc!r}", flush=True)
            if time.time() > until:
                return [None] * len(calls)
            time.sleep(PAUSE)


def outcome_of(state: str, result: Any) -> Outcome:
    """Returns a final state in the form in which it is compared."""
    if state == "FAILURE":
        return state, type(result).__name__
    return state, None if state == "REVOKED" else result
