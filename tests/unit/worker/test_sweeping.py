"""The sweeper of a worker, beside its event loop."""

from __future__ import annotations

from typing import Any

import fakeredis
import pytest
from celery import Celery

from redis_batches import SimpleRequest, batched_task
from redis_batches.app.state import runtime_of
from redis_batches.buffer.store import Store
from redis_batches.core.outcomes import Swept
from redis_batches.core.triggers import Trigger
from redis_batches.driver.keys import NamespaceKeys
from redis_batches.upkeep.sweep_thread import SweepThread
from redis_batches.worker.steps import paced_sweeper
from tests.support.waiting import wait_until


def count(requests: list[SimpleRequest]) -> None:
    """Does nothing."""


def test_a_worker_sweeps_each_task_at_its_own_pace(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all of them whenever one is due."""
    for name, interval in ("fast", 0.1), ("slow", 60):
        batched_task(app=app, name=name, flush_every=9, flush_interval=interval)(count)
    app.finalize()
    swept, now = [], 0.0

    def sweep(store: Store, *_: Any, **__: Any) -> Swept:
        swept.append(store.task)
        return Swept(None, (), (), ())

    monkeypatch.setattr(Store, "sweep", sweep)
    monkeypatch.setattr("redis_batches.worker.steps.monotonic", lambda: now)
    sweeper = paced_sweeper(app, "here")
    while now < 10:
        now += sweeper.tick()

    assert swept.count("fast") == pytest.approx(100, abs=3)
    assert swept.count("slow") == pytest.approx(10, abs=2)


def test_a_sweep_that_fails_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it fails with; and what was missed at the start is made good first."""
    done: list[str] = []

    def register() -> bool:
        done.append("register")
        return len(done) > 1

    def tick() -> float:
        done.append("tick")
        if done.count("tick") == 1:
            raise RuntimeError("odd")
        return 0.01

    sweeping = SweepThread(tick, register)
    wait_until(lambda: len(done) >= 6, description="it goes on")
    sweeping.stop()

    assert done[:6] == ["register", "tick", "register", "tick", "tick", "tick"]
    assert "a sweep failed" in caplog.text


def test_beat_sweeps_although_one_entry_of_the_registry_is_odd(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other task of the namespace is swept."""
    server = fakeredis.FakeServer()
    monkeypatch.setattr(
        "redis_batches.buffer.stores.connect", lambda *_: fakeredis.FakeRedis(server=server)
    )
    batched_task(app=app, name="sound", flush_every=9, flush_interval=1)(count)
    app.finalize()
    runtime, swept = runtime_of(app), list[str]()
    runtime.registry.write({"sound": Trigger(9, 1000), "sound too": Trigger(9, 1000)})
    fakeredis.FakeRedis(server=server).hset(
        NamespaceKeys(runtime.settings.namespace).resolve("tasks"), "odd", "{"
    )

    def sweep(store: Store, *_: Any, **__: Any) -> Swept:
        swept.append(store.task)
        return Swept(None, (), (), ())

    monkeypatch.setattr(Store, "sweep", sweep)
    app.tasks["redis_batches.sweep"].run()

    assert sorted(swept) == ["sound", "sound too"]
