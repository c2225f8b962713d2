"""One bad request among many, and an outage, which is nobody's fault: what each costs.

    python -m tests.properties.poison

prints a table. The task is real, its worker is this process, and its clock is injected.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import log2
from typing import Any

import pytest
from celery.exceptions import Ignore, Retry, WorkerLostError

from redis_batches import SimpleRequest
from redis_batches.runs.runner import Runner
from redis_batches.testing.clock import Clock
from redis_batches.testing.worker import InProcess, in_process
from redis_batches.upkeep.sweeper import Served, Sweeper
from tests.support import raw

SIZES = (10, 100, 1000)
SECOND = 1000
#: What a poison request is called with.
POISON = "poison"


class Wrong(Exception):
    """What a function raises; the task retries it."""


class Killed(SystemExit):
    """What stands for the death of the process: nothing of the run goes on."""


@dataclass(frozen=True)
class Cost:
    """What one poison request among `size` did.

    Attributes:
        size: Requests of the first batch.
        failures: Batches that died or failed.
        batches: Batches that ran.
        innocents_lost: Innocent requests that failed.
        most_runs: How often an innocent request ran, at most.
        runs: How often innocent requests ran, all together.
        poison: The state of the poison request.
    """

    size: int
    failures: int
    batches: int
    innocents_lost: int
    most_runs: int
    runs: int
    poison: str


@dataclass(frozen=True)
class Drain:
    """What became of the calls of an outage.

    Attributes:
        calls: How many were made in it.
        splits: Split levels of what waited when it ended.
        sizes: Sizes of the batches that ran after it.
        seconds: How long that took.
        lost: Calls that failed.
    """

    calls: int
    splits: set[int]
    sizes: list[int]
    seconds: float
    lost: int


class Bench:
    """A task in this process, and what drives it.

    Args:
        here: The task.
        flush_every: Its option.
    """

    def __init__(self, here: InProcess) -> None:
        self.here = here
        self.task = here.task
        self.clock = Clock()
        self.store = here.task.inspector._store
        self.store._redis.clock = self.clock
        served = [Served(self.store, self.task.trigger)]
        self._sweeper = Sweeper(lambda: served, self._ring, 1.0)
        self._answers = 0

    def _ring(self, task: str, bells: Any) -> None:
        self.here.bells += [bells] * bells.count

    def call(self, value: Any, **options: Any) -> Any:
        """Calls the task."""
        return self.task.apply_async((value,), **options)

    def answer_all(self) -> None:
        """Lets workers answer every doorbell; one that dies is seen to die."""
        while self.here.bells:
            group = self.here.bells[-1].group
            self._answers += 1
            self.clock.advance(1)
            try:
                with suppress(Ignore, Retry, Wrong):
                    self.here.answer()
            except WorkerLostError:
                token = self.store.find_token(f"bell-{self._answers}")
                trigger = self.task.trigger
                self._ring("", self.store.reclaim(token, group, trigger, seen_dead=True))

    def sweep(self, seconds: float) -> None:
        """Lets time pass, and sweeps."""
        self.clock.advance(round(seconds * SECOND))
        self._sweeper.tick()

    def drain(self, seconds: int = 3600) -> int:
        """Lets everything run; returns the seconds that it took."""
        for passed in range(seconds):
            self.answer_all()
            stats = self.task.stats()
            if not stats["waiting"] + stats["running"]:
                return passed
            self.sweep(1)
        raise AssertionError(f"not drained: {self.task.stats()}")


@contextmanager
def bench(function: Any, flush_every: int, **options: Any) -> Iterator[Bench]:
    """Makes a task whose process may die at any line of its function."""
    break_off = Runner._break_off

    def unless_dead(self: Runner, reporter: Any, lease: Any, exc: BaseException) -> None:
        if not isinstance(exc, Killed):
            break_off(self, reporter, lease, exc)

    with pytest.MonkeyPatch.context() as patch, in_process(function, flush_every, **options) as h:
        patch.setattr(Runner, "_break_off", unless_dead)
        yield Bench(h)


def measure(size: int, place: int, *, kills: bool, max_retries: int | None = None) -> Cost:
    """Runs a batch with one poison request, until every request has its outcome.

    Args:
        size: Requests of the batch.
        place: Which of them is poison.
        kills: Whether it kills its worker; else it makes the batch fail.
        max_retries: Of the task.
    """
    runs: Counter[str] = Counter()
    batches: list[bool] = []

    def function(requests: list[SimpleRequest]) -> None:
        values = [request.args[0] for request in requests]
        if values == ["healthy"]:
            return
        batches.append(POISON in values)
        runs.update(request.id for request in requests)
        if POISON in values:
            raise Killed if kills else Wrong

    options = {"autoretry_for": (Wrong,), "default_retry_delay": 5, "max_retries": max_retries}
    with bench(function, size, **options) as it:
        results = [it.call(POISON if number == place else number) for number in range(size)]
        it.answer_all()
        for _ in range(100):
            if not it.task.stats()["waiting"]:
                break
            if not kills:
                # Another batch of the task goes well: it is no outage.
                it.call("healthy", queue="other")
                it.sweep(10)
                it.answer_all()
            it.sweep(1)
            it.answer_all()
        innocent = [result for result in results if result is not results[place]]
        return Cost(
            size=size,
            failures=sum(batches),
            batches=len(batches),
            innocents_lost=sum(result.state != "SUCCESS" for result in innocent),
            most_runs=max(runs[result.id] for result in innocent),
            runs=sum(runs[result.id] for result in innocent),
            poison=results[place].state,
        )


def outage(flush_every: int = 20, a_second: int = 20, **options: Any) -> Drain:
    """Lets every batch of a minute fail while calls go on; returns what became of them.

    Args:
        flush_every: Of the task.
        a_second: Calls per second.
        options: Of the task; how it retries.
    """
    down, sizes = [False], list[int]()

    def function(requests: list[SimpleRequest]) -> None:
        if down[0]:
            raise Wrong
        sizes.append(len(requests))

    with bench(function, flush_every, autoretry_for=(Wrong,), **options) as it:
        results = []
        for second in range(65):
            down[0] = second >= 5
            results += [it.call(second) for _ in range(a_second)]
            it.answer_all()
            it.sweep(1)
        it.answer_all()
        down[0] = False
        before, store = len(sizes), it.store
        records = raw.client(store).hvals(raw.key(store, "attempts"))
        seconds = it.drain()
        return Drain(
            calls=60 * a_second,
            splits={int(record.split(b":")[3]) for record in records},
            sizes=sizes[before:],
            seconds=seconds,
            lost=sum(result.state != "SUCCESS" for result in results),
        )


def main() -> None:
    """Prints what poison requests and outages cost."""
    logging.disable(logging.CRITICAL)
    print("kind    n     place  failures  bound  innocents lost  batches  runs of innocents (most)")
    for kills in (True, False):
        for size in SIZES:
            for place in (0, size // 2, size - 1):
                cost = measure(size, place, kills=kills)
                print(
                    f"{'kills' if kills else 'raises':6}  {size:4}  {place:5}  {cost.failures:8}  "
                    f"{log2(size) + 3:5.1f}  {cost.innocents_lost:14}  {cost.batches:7}  "
                    f"{cost.runs} ({cost.most_runs})"
                )
    for options in ({"default_retry_delay": 10}, {"retry_backoff": 2}):
        drain = outage(max_retries=None, **options)
        print(
            f"outage of a minute, {options}: {drain.calls} calls, {drain.lost} lost, split levels "
            f"{sorted(drain.splits)}, then {len(drain.sizes)} batches of {min(drain.sizes)} to "
            f"{max(drain.sizes)} in {drain.seconds} s"
        )


if __name__ == "__main__":
    main()
