"""When a run may drain on: take the next batch, too, instead of leaving it to another doorbell.

A round through the broker costs more than a fast batch. But whatever Celery does once per run would
then be done once for several batches: a run drains on only where nothing limits, counts or watches
runs, for a moment, and while more batches wait than doorbells are out.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from celery import Task, signals

#: Seconds after which a run takes no further batch: other tasks, and a shutdown, wait no longer.
MOMENT = 0.1

_SIGNALS = (signals.task_prerun, signals.task_postrun, signals.task_success)
_HOOKS = ("__call__", "before_start", "on_success", "after_return")
_LIMITS = ("time_limit", "soft_time_limit", "max_tasks_per_child", "max_memory_per_child")


def limits_of(worker: Any) -> bool:
    """Whether a worker limits its runs: by time, or by how much a pool process may do."""
    return any(getattr(worker, name, None) for name in _LIMITS)


def is_limited(task: Any) -> bool:
    """Whether a task limits its runs; only the main process knows what remote control changed."""
    return bool(task.rate_limit or task.time_limit or task.soft_time_limit or not task.acks_late)


def has_hooks(task: Any) -> bool:
    """Whether something other than the function is called at each run."""
    own = takewhile(lambda cls: cls is not Task, type(task).__mro__)
    if any(hook in cls.__dict__ for cls in own for hook in _HOOKS):
        return True
    return any(signal.has_listeners(task) for signal in _SIGNALS)
