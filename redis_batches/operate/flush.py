"""Running what waits now, full or not."""

from __future__ import annotations

from redis_batches.app.doorbell import ring
from redis_batches.buffer.store import Store
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.triggers import Bells

#: Doorbells that are rung for one group.
MAX_FORCED = 16


def flush(task: BatchTask, store: Store) -> int:
    """Rings for what waits, due or not; returns how many batches that asks for."""
    asked = 0
    for group, route in store.groups().items():
        waiting = store.waiting(group)
        batches = -(-waiting // task.trigger.flush_every)
        # Each rings for the next, so that a long backlog does not fill the broker.
        some = Bells(group, route, min(batches, MAX_FORCED), 0)
        ring(task.app, task.name, some, force=True)
        asked += batches
    return asked
