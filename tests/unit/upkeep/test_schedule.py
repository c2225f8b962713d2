"""When a worker sweeps for which task."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from redis_batches.upkeep.schedule import PHASES, PacedSweeper


class Tasks:
    """Tasks with what each sweep says it waits for, and a clock."""

    interval = 1.0

    def __init__(self, **waits: float) -> None:
        self.waits = waits
        self.now = 100.0
        self.swept: list[str] = []
        self.moments: list[float] = []
        self.asked = 0

    def served(self) -> list[Any]:
        """Returns the tasks."""
        self.asked += 1
        return [SimpleNamespace(store=SimpleNamespace(task=name)) for name in self.waits]

    def look_after(self, served: Any) -> float:
        """Notes that a task was swept, which takes a moment."""
        self.swept.append(served.store.task)
        self.moments.append(self.now)
        self.now += 0.0001
        return self.waits[served.store.task]

    def until(self, sweeper: PacedSweeper, end: float) -> int:
        """Ticks whenever the sweeper wants to, as a worker does; returns how often."""
        ticks = 0
        while self.now < end:
            self.now += sweeper.tick()
            ticks += 1
        return ticks


def test_each_task_is_swept_at_its_own_pace() -> None:
    """What is due does not wait until all others were looked at."""
    tasks = Tasks(fast=0.05, slow=1.0)
    tasks.until(PacedSweeper(tasks, lambda: tasks.now), 110)  # type: ignore[arg-type]

    assert tasks.swept.count("fast") == pytest.approx(200, abs=3)
    assert tasks.swept.count("slow") == pytest.approx(10, abs=1)


def test_a_task_is_swept_when_something_is_due() -> None:
    """At that moment, and not before."""
    tasks = Tasks(task=0.3)
    sweeper = PacedSweeper(tasks, lambda: tasks.now)  # type: ignore[arg-type]
    tasks.until(sweeper, 110)
    gaps = [later - earlier for earlier, later in pairwise(tasks.moments)]

    assert gaps[1:] == pytest.approx([0.3] * len(gaps[1:]), abs=0.002)


def test_many_tasks_share_few_wake_ups() -> None:
    """They are not all swept in one tick, and not each in one of its own."""
    tasks = Tasks(**{str(number): 1.0 for number in range(100)})
    sweeper = PacedSweeper(tasks, lambda: tasks.now)  # type: ignore[arg-type]
    tasks.until(sweeper, 102)
    tasks.swept.clear()
    largest = 0
    while tasks.now < 112:
        before = len(tasks.swept)
        tasks.now += sweeper.tick()
        largest = max(largest, len(tasks.swept) - before)

    assert len(tasks.swept) == pytest.approx(1000, abs=100)
    assert largest < 50
    assert tasks.until(sweeper, tasks.now + 10) <= 10 * (2 * PHASES + 1)


def test_tasks_come_and_go() -> None:
    """A module that is imported late may bring one."""
    tasks = Tasks(first=0.05)
    sweeper = PacedSweeper(tasks, lambda: tasks.now)  # type: ignore[arg-type]
    tasks.until(sweeper, 101)
    tasks.waits = {"second": 0.5}
    tasks.until(sweeper, 102.1)
    tasks.swept.clear()
    ticks = tasks.until(sweeper, 112)

    assert set(tasks.swept) == {"second"}
    assert ticks < 70


def test_without_tasks_it_looks_for_some() -> None:
    """Once per interval."""
    tasks = Tasks()
    assert tasks.until(PacedSweeper(tasks, lambda: tasks.now), 110) == pytest.approx(10, abs=1)  # type: ignore[arg-type]
    assert tasks.asked == pytest.approx(10, abs=1)
