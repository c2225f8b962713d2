"""The batch tasks of a worker, and those of all workers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redis_batches.app.state import runtime_of
from redis_batches.core.batch_task import BatchTask
from redis_batches.upkeep.sweeper import Served


def batch_tasks(app: Any) -> list[BatchTask]:
    """Returns the batch tasks of an app, in the order in which they were made."""
    return [task for task in app.tasks.values() if getattr(task, "waits_in_redis", False)]


def registered_tasks(app: Any) -> list[Served]:
    """Returns every batch task of the namespace, with its options as its workers wrote them."""
    runtime = runtime_of(app)
    triggers = runtime.registry.read()
    return [Served(runtime.sweepers_store(name), trigger) for name, trigger in triggers.items()]


def own_tasks(app: Any) -> Iterable[Served]:
    """Returns the batch tasks of an app, to sweep for."""
    store = runtime_of(app).sweepers_store
    return [Served(store(task.name), task.trigger) for task in batch_tasks(app)]
