"""What a worker starts beside running batches: a sweeper, and a ringer.

Each worker has a sweeper of its own, in a thread, so that its event loop waits neither for Redis
nor for the broker. Beat sends a task that sweeps, too. Any of them is enough, and several do no
harm.
"""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import Any
from uuid import uuid4

from celery import bootsteps
from celery.concurrency.solo import TaskPool as SoloPool

from redis_batches.app import chords
from redis_batches.app.doorbell import ERRBACK, post, ring_now
from redis_batches.app.ringer import Cause
from redis_batches.app.state import runtime_of
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.triggers import Bells
from redis_batches.runs.next_batch import limits_of
from redis_batches.upkeep.schedule import PacedSweeper
from redis_batches.upkeep.sweep_thread import SweepThread
from redis_batches.upkeep.sweeper import Sweeper
from redis_batches.worker.doorbell_request import errback
from redis_batches.worker.registration import register, register_late
from redis_batches.worker.served import batch_tasks, own_tasks
from redis_batches.worker.sweep_task import SweepTask, schedule
from redis_batches.worker.time_limits import enforced_limits, warn_of_time_limits


class SweeperStep(bootsteps.StartStopStep):
    """Sweeps beside the worker's event loop, for the batch tasks of its app."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        self._sweeping: SweepThread | None = None
        super().__init__(consumer, **kwargs)

    def start(self, consumer: Any) -> None:
        """Starts at every connection to the broker, also after a lost one."""
        app, runtime = consumer.app, runtime_of(consumer.app)
        registered = register(app)
        runtime.limits_runs = limits_of(consumer.controller)
        runtime.enforced_limits = enforced_limits(consumer.pool)
        if not isinstance(consumer.pool, SoloPool):
            chords.never_wait_here()
        warn_of_time_limits(batch_tasks(app), runtime.enforced_limits)
        runtime.start_ringer(partial(_ring_for_loop, app))
        if not runtime.settings.worker_sweeper:
            return
        tick = paced_sweeper(app, consumer.hostname).tick
        self._sweeping = SweepThread(tick, None if registered else partial(register_late, app))

    def stop(self, consumer: Any) -> None:
        """Stops until the next start."""
        if self._sweeping is not None:
            self._sweeping.stop()
            self._sweeping = None


def install(app: Any, task: type[BatchTask]) -> None:
    """Adds the sweeps to an app and its workers, and keeps beat's period in step."""
    runtime = runtime_of(app)
    if not runtime.installed:
        runtime.installed = True
        app.register_task(SweepTask())
        app._task_from_fun(errback(app), name=ERRBACK, ignore_result=True)
        app.steps["consumer"].add(SweeperStep)
    schedule(app, task.flush_interval)


def paced_sweeper(app: Any, hostname: str) -> PacedSweeper:
    """Returns the sweeper of a worker, whose doorbells are rung by another thread."""
    runtime = runtime_of(app)
    sweeper = Sweeper(
        partial(own_tasks, app),
        partial(post, app),
        runtime.settings.sweep_interval,
        f"{hostname}:{uuid4().hex[:8]}",
        runtime.quiet,
    )
    return PacedSweeper(sweeper, monotonic)


def _ring_for_loop(app: Any, task: str, bells: Bells, cause: Cause) -> None:
    ring_now(app, task, bells, priority=cause.priority, force=cause.force)
