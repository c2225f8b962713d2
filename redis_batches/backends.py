"""Lets `app.backend.mark_as_done(request.id, value, request=request)` settle a request whole.

Code written for celery-batches calls the result backend itself. Taken literally that would store a
result and no more: links would not be called, chains and chords would hang. So the three methods
of each backend instance look first whether the id is a request of a batch that runs here.
"""

from __future__ import annotations

from typing import Any

from celery import Celery, states
from celery.app.task import Context
from celery.exceptions import Retry

from redis_batches.batch import Batch, running

_MARK = "_redis_batches_watched"


def watch_app(app: Celery) -> None:
    """Watches every backend instance that the app makes from now on; each thread gets its own."""
    make = app._get_backend
    if getattr(make, _MARK, False):
        return

    def make_watched() -> Any:
        return watch(make())

    setattr(make_watched, _MARK, True)
    app._get_backend = make_watched


def watch(backend: Any) -> Any:
    """Watches one backend instance, once; returns it."""
    if getattr(backend, _MARK, False):
        return backend
    done, failure, retry = (
        backend.mark_as_done,
        backend.mark_as_failure,
        backend.mark_as_retry,
    )

    def mark_as_done(
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,
        state: str = states.SUCCESS,
    ) -> Any:
        if (batch := _batch_of(task_id, request)) is None:
            return done(task_id, result, request, store_result, state)
        if (found := batch.find(task_id)) is not None:
            batch.succeed(found, result, store=store_result)
        return None

    def mark_as_failure(task_id: str, exc: Any, *args: Any, **kwargs: Any) -> Any:
        request = kwargs.get("request", args[1] if len(args) > 1 else None)
        if (batch := _batch_of(task_id, request)) is None:
            return failure(task_id, exc, *args, **kwargs)
        if (found := batch.find(task_id)) is not None:
            batch.fail(found, exc)
        return None

    def mark_as_retry(task_id: str, exc: Any, *args: Any, **kwargs: Any) -> Any:
        request = kwargs.get("request", args[1] if len(args) > 1 else None)
        if (batch := _batch_of(task_id, request)) is None:
            return retry(task_id, exc, *args, **kwargs)
        if (found := batch.find(task_id)) is not None:
            reason = exc if isinstance(exc, Retry) else Retry(exc=exc)
            seconds = reason.when if isinstance(reason.when, (int, float)) else None
            batch.retry(found, countdown=seconds, exc=reason.exc)
        return None

    backend.mark_as_done = mark_as_done
    backend.mark_as_failure = mark_as_failure
    backend.mark_as_retry = mark_as_retry
    setattr(backend, _MARK, True)
    return backend


def _batch_of(task_id: str, request: Any) -> Batch | None:
    """Returns the batch that user code settles a request of; Celery itself passes a Context."""
    return None if isinstance(request, Context) else running.get(task_id)
