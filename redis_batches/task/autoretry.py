"""Celery's `autoretry_for` and what belongs to it, for each request of a batch."""

from __future__ import annotations

from typing import Any

from celery.exceptions import Ignore, Retry
from celery.utils.time import get_exponential_backoff_interval


def autoretry_plan(task: Any, exc: BaseException, retries: int) -> dict[str, Any] | None:
    """Returns how an exception is retried, as options of `retry`, if the task's options do so.

    Args:
        task: The batch task.
        exc: What a run raised.
        retries: How often the request was retried before.
    """
    covered = tuple(getattr(task, "autoretry_for", ()))
    excluded = tuple(getattr(task, "dont_autoretry_for", ()))
    if not isinstance(exc, Exception) or not isinstance(exc, covered):
        return None
    if isinstance(exc, (*excluded, Ignore, Retry)):
        return None
    plan: dict[str, Any] = dict(getattr(task, "retry_kwargs", {}))
    plan.pop("throw", None)
    backoff = float(getattr(task, "retry_backoff", False))
    if backoff:
        plan["countdown"] = get_exponential_backoff_interval(
            factor=int(max(1.0, backoff)),
            retries=retries,
            maximum=int(getattr(task, "retry_backoff_max", 600)),
            full_jitter=getattr(task, "retry_jitter", True),
        )
    return plan
