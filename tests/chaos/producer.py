"""A caller that writes down what it is going to do, and what came of it.

A run starts it as `python -m tests.chaos.producer NAME SEED RATE`. SIGTERM ends it after the call
that it is at, and after what it waits for; SIGINT says that nobody will be told any more.
"""

from __future__ import annotations

import faulthandler
import random
import signal
import sys
import time
from collections.abc import Mapping
from itertools import zip_longest
from threading import Event
from typing import Any

from redis_batches import BatchesError
from tests.chaos import tasks
from tests.chaos.flows import make_flow
from tests.chaos.ledger import Log
from tests.chaos.waiter import Waiters

#: What a producer prints when it only waits for results.
CALLS_NO_MORE = "calls no more"
#: Calls that are announced together.
GROUP = 30
#: How many groups are called at once.
BULK_SHARE = 0.3
#: How often a canvas comes after a group.
FLOW_SHARE = 0.7
#: How often each task is called, by its short name.
WEIGHTS = {"square": 30, "count": 30, "fetch": 20, "settle": 15, "limited": 5}
#: How often the calls of a task are in trouble, by the trouble.
TROUBLES = {
    "fetch": {tasks.ALONE: 0.05, tasks.BATCH: 0.004, tasks.REFUSED: 0.02},
    "limited": {tasks.HANG: 0.001},
    "settle": {tasks.REFUSED: 0.1, tasks.TWICE: 0.2, tasks.ALWAYS: 0.05},
}
#: How often calls that are made one by one are waited for, delayed, revoked.
WAIT_SHARE, DELAY_SHARE, REVOKE_SHARE = 0.1, 0.05, 0.04
#: How often a part of a group or chord is revoked.
REVOKE_PART_SHARE = 0.15
#: Seconds of a delay, at most.
DELAY = 2.0
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
        self._began = time.monotonic()
        self.stopped, self.over = Event(), Event()
        self._waiters = Waiters(self.stopped)

    def run(self) -> None:
        """Calls until `stopped`."""
        while not self.stopped.is_set():
            group = [self._plan() for _ in range(GROUP)]
            now = time.time()
            self._log.write(
                {
                    **{"call": key, "task": task, "at": now},
                    "expect": tasks.outcomes_of(task, number, trouble),
                }
                for key, task, number, trouble in group
            )
            if self._dice.random() < BULK_SHARE:
                self._log.write(self._call_many(group), sync=False)
            else:
                self._call_each(group)
            if self._dice.random() < FLOW_SHARE and not self.stopped.is_set():
                self._call_flow()
        print(CALLS_NO_MORE, flush=True)
        self._waiters.end(self.over)

    def _plan(self) -> tuple[str, str, int, str]:
        self._made += 1
        (task,) = self._dice.choices(list(WEIGHTS), list(WEIGHTS.values()))
        troubles: Mapping[str, float] = TROUBLES.get(task, {})
        shares = [1 - sum(troubles.values()), *troubles.values()]
        (trouble,) = self._dice.choices(["", *troubles], shares)
        return f"{self._name}-{self._made}", task, self._dice.randrange(1000), trouble

    def _call_many(self, group: list[tuple[str, str, int, str]]) -> list[dict[str, Any]]:
        """Makes the calls of a group at once, task by task; an error says what was accepted."""
        lines = []
        for task in {task for _, task, _, _ in group}:
            calls = [(key, number, trouble) for key, its, number, trouble in group if its == task]
            at = time.time()
            try:
                results, error = getattr(tasks, task).delay_many(calls), ""
            except Exception as exc:
                accepted = exc.accepted if isinstance(exc, BatchesError) else []
                results, error = accepted, _text(exc)
            for (key, _, _), result in zip_longest(calls, results):
                task_id = result.id if result else None
                lines.append({**_answered(key, task_id, "" if task_id else error), "at": at})
        return lines

    def _call_each(self, group: list[tuple[str, str, int, str]]) -> None:
        for key, task, number, trouble in group:
            quiet = (time.monotonic() - self._began) % (RUSH + QUIET) > RUSH
            if self.stopped.wait(1 / (QUIET_RATE if quiet else self._rate)):
                break
            line = self._call(key, task, number, trouble)
            # Unlike the announcement this need not be synced: only the process may be killed.
            self._log.write([line], sync=False)
            if line["task_id"] and task != "count":
                self._follow_up(key, task, line)

    def _call(self, key: str, task: str, number: int, trouble: str) -> dict[str, Any]:
        own_id = None if self._dice.random() < 0.5 else key
        delay = self._dice.uniform(0, DELAY) if self._dice.random() < DELAY_SHARE else None
        called, at = getattr(tasks, task), time.time()
        try:
            result = called.apply_async((key, number, trouble), task_id=own_id, countdown=delay)
        except Exception as exc:
            return {**_answered(key, None, _text(exc)), "at": at}
        return {**_answered(key, result.id, ""), "at": at}

    def _follow_up(self, key: str, task: str, line: dict[str, Any]) -> None:
        """Waits for some calls, and revokes some."""
        lot = self._dice.random()
        if lot < REVOKE_SHARE:
            delay, broadcast = self._dice.uniform(0, DELAY), self._dice.random() < 0.3
            self._waiters.revoke(key, task, line["task_id"], line["at"], delay, broadcast)
        elif lot < REVOKE_SHARE + WAIT_SHARE:
            self._waiters.wait([(key, task, line["task_id"])], line["at"])

    def _call_flow(self) -> None:
        self._made += 1
        flow = make_flow(f"{self._name}-{self._made}", self._dice)
        revokes = flow.revocable and self._dice.random() < REVOKE_PART_SHARE
        revoked = self._dice.choice(flow.revocable) if revokes else ""
        delay, broadcast = self._dice.uniform(0, DELAY / 2), self._dice.random() < 0.3
        at, error = time.time(), ""
        self._log.write({**line, "at": at} for line in flow.lines)
        try:
            flow.canvas.apply_async()
        except Exception as exc:
            error = _text(exc)
        ids = [(line["call"], line["call"] if not error else None) for line in flow.lines]
        self._log.write((_answered(key, task_id, error) for key, task_id in ids), sync=False)
        if error:
            return
        names = {line["call"]: line["task"] for line in flow.lines}
        if revoked:
            self._waiters.revoke(revoked, names[revoked], revoked, at, delay, broadcast)
        self._waiters.wait([(key, names[key], key) for key in flow.waits], at)


def _text(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"


def _answered(key: str, task_id: str | None, error: str) -> dict[str, Any]:
    return {"call": key, "task_id": task_id, "error": error, "done_at": time.time()}


def main(name: str, seed: str, rate: str) -> None:
    """Calls until it is told to end."""
    producer = Producer(name, int(seed), float(rate))

    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGTERM, lambda *_: producer.stopped.set())
    signal.signal(signal.SIGINT, lambda *_: producer.over.set())
    producer.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
