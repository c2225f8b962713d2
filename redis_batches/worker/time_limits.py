"""Which time limits a worker's pool enforces, and which ones nobody does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery.utils.log import get_logger

from redis_batches.core.batch_task import BatchTask

logger = get_logger(__name__)


def enforced_limits(pool: Any) -> frozenset[str]:
    """Returns which time limits a worker's pool enforces: "hard", "soft", both or none."""
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(pool).__mro__}
    if "celery.concurrency.prefork.TaskPool" in kinds:
        return frozenset(("hard", "soft"))
    return frozenset(("hard",) if "celery.concurrency.gevent.TaskPool" in kinds else ())


def warn_of_time_limits(tasks: Iterable[BatchTask], enforced: frozenset[str]) -> None:
    """Says which time limits nobody enforces here: their runs end when their functions return."""
    for task in tasks:
        limits = {"hard": task.time_limit, "soft": task.soft_time_limit}
        ignored = {name: limits[name] for name in limits if limits[name] and name not in enforced}
        for name, seconds in ignored.items():
            logger.warning(
                "%s has a %s time limit of %s s, which this worker's pool does not enforce: "
                "its batches run until their function returns; use the prefork pool",
                task.name,
                name,
                seconds,
            )
