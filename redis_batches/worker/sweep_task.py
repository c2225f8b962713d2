"""Beat's task, which sweeps for every batch task of the namespace: any worker runs it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from celery import Task
from celery.utils.log import get_logger

from redis_batches.app.doorbell import ring
from redis_batches.app.route import usual_destination
from redis_batches.app.state import runtime_of
from redis_batches.core.errors import BatchesError
from redis_batches.upkeep.sweeper import Sweeper
from redis_batches.worker.served import batch_tasks, registered_tasks

logger = get_logger(__name__)

SWEEP = "redis_batches.sweep"
#: Beat's period follows the shortest flush interval, in whole seconds between these.
MIN_PERIOD, MAX_PERIOD = 1, 10


class SweepTask(Task):  # type: ignore[type-arg]
    """Sweeps once for every batch task that any worker of the namespace serves."""

    name = SWEEP
    ignore_result = True

    def run(self) -> None:
        """Sweeps."""
        runtime_of(self.app).registry.answered()
        registered = registered_tasks(self.app)
        quiet = runtime_of(self.app).quiet
        Sweeper(lambda: registered, partial(ring, self.app), MAX_PERIOD, quiet=quiet).tick()

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """Sends the sweep to a queue that a worker of batch tasks consumes.

        Returns None, and sends nothing, while the last one still waits for a worker.
        """
        try:
            if not runtime_of(self.app).registry.may_send():
                return None
        except BatchesError as exc:
            if runtime_of(self.app).quiet.may_say("beat"):
                logger.warning("no sweep can be sent: %s", exc)
            return None
        options.setdefault("queue", _sweep_queue(self.app))
        return super().apply_async(*args, **options)


def schedule(app: Any, flush_interval: float) -> None:
    """Has beat send the task, as often as the shortest flush interval of the app asks for."""
    runtime = runtime_of(app)
    runtime.shortest = min(runtime.shortest, flush_interval)
    period = min(max(math.floor(runtime.shortest), MIN_PERIOD), MAX_PERIOD)
    app.add_periodic_task(period, app.signature(SWEEP), name=SWEEP)


def _sweep_queue(app: Any) -> Any:
    """Returns the queue that somebody who knows the sweep task consumes."""
    configured = runtime_of(app).settings.sweep_queue
    if configured:
        return configured
    for task in batch_tasks(app):
        found = usual_destination(task).get("queue")
        if found:
            return found
    return app.conf.task_default_queue
