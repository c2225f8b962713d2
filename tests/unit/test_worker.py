"""The sweeper of a worker, in its event loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from redis_batches import SimpleRequest, batched_task
from redis_batches.model import Swept
from redis_batches.store import Store
from redis_batches.worker import SweeperStep


def count(requests: list[SimpleRequest]) -> None:
    """Does nothing."""


class Timer:
    """Keeps what a worker has planned; the time passes when a test says so."""

    def __init__(self) -> None:
        self.planned: tuple[float, Any, tuple[Any, ...]] | None = None
        self.now = 0.0

    def call_after(self, seconds: float, fun: Any, args: tuple[Any, ...]) -> Any:
        """Plans a call."""
        self.planned = seconds, fun, args
        return SimpleNamespace(cancel=lambda: None)

    def go_on(self) -> None:
        """Lets the time pass until the next call."""
        assert self.planned is not None
        seconds, fun, args = self.planned
        self.now += seconds
        fun(*args)


def test_a_worker_sweeps_each_task_at_its_own_pace(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all of them whenever one is due."""
    for name, interval in ("fast", 0.1), ("slow", 60):
        batched_task(app=app, name=name, flush_every=9, flush_interval=interval)(count)
    app.finalize()
    swept, timer = [], Timer()

    def sweep(store: Store, *_: Any, **__: Any) -> Swept:
        swept.append(store.task)
        return Swept(None, (), (), ())

    monkeypatch.setattr(Store, "sweep", sweep)
    monkeypatch.setattr("redis_batches.worker.check_server", lambda _: None)
    monkeypatch.setattr("redis_batches.worker.monotonic", lambda: timer.now)
    consumer: Any = SimpleNamespace(
        app=app,
        hostname="here",
        timer=timer,
        controller=SimpleNamespace(consumer=None),
        pool=None,
    )
    step = SweeperStep(consumer)
    step.start(consumer)
    while timer.now < 10:
        timer.go_on()
    step.stop(consumer)

    assert swept.count("fast") == pytest.approx(100, abs=3)
    assert swept.count("slow") == pytest.approx(10, abs=2)
