"""Lets `app.backend.mark_as_done(request.id, value, request=request)` settle a request whole.

Code written for celery-batches calls the result backend itself. Taken literally that would store a
result and no more: links would not be called, chains and chords would hang. So the three methods
of each backend instance look first whether the id is a request of a batch that runs here. A Redis
backend does not subscribe to the result of a batch task's call before somebody waits for it. And
the body of a chord is sent patiently; see `redis_batches.app.chords`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

from celery.app.task import Context
from celery.exceptions import Retry

from redis_batches.app.backends import WATCHED, is_watched, listens_late
from redis_batches.app.chords import watch_chords
from redis_batches.runs.request import Settler, SimpleRequest
from redis_batches.runs.running import running


def watch_app(app: Any) -> None:
    """Watches every backend instance that the app makes from now on; each thread gets its own."""
    make = app._get_backend
    if is_watched(make):
        return

    def make_watched() -> Any:
        return watch(make())

    setattr(make_watched, WATCHED, True)
    app._get_backend = make_watched


def watch(backend: Any) -> Any:
    """Watches one backend instance, once; returns it."""
    if not is_watched(backend):
        for name, settle in _SETTLERS.items():
            setattr(backend, name, _watched(getattr(backend, name), settle))
        watch_chords(backend)
        if listens_late(backend):
            backend.on_task_call = _without_batch_tasks(backend.on_task_call)
        setattr(backend, WATCHED, True)
    return backend


def _watched(original: Callable[..., Any], settle: Callable[..., Any]) -> Callable[..., Any]:
    parameters = signature(original)

    @wraps(original)
    def mark(task_id: str, outcome: Any, *args: Any, **kwargs: Any) -> Any:
        given = parameters.bind(task_id, outcome, *args, **kwargs).arguments
        # Celery itself passes a Context.
        if isinstance(given.get("request"), Context) or task_id not in running:
            return original(task_id, outcome, *args, **kwargs)
        settler = running[task_id]
        if (request := settler.batch.find(task_id)) is not None:
            settle(settler, request, outcome, given)
        return None

    return mark


def _without_batch_tasks(original: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a batch task's call go out without a subscription: its result subscribes when asked."""

    @wraps(original)
    def on_task_call(producer: Any, task_id: str) -> Any:
        return None if getattr(producer, "stands_in", False) else original(producer, task_id)

    return on_task_call


def _succeed(settler: Settler, request: SimpleRequest, value: Any, given: dict[str, Any]) -> None:
    settler.succeed(request, value, store=given.get("store_result", True))


def _fail(settler: Settler, request: SimpleRequest, exc: Any, given: dict[str, Any]) -> None:
    settler.fail(request, exc)


def _retry(settler: Settler, request: SimpleRequest, exc: Any, given: dict[str, Any]) -> None:
    if isinstance(exc, Retry):
        settler.decide(request, exc)
    else:
        settler.retry(request, exc=exc)


_SETTLERS = {"mark_as_done": _succeed, "mark_as_failure": _fail, "mark_as_retry": _retry}
