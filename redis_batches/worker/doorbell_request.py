"""A doorbell in a worker's main process, which sees it when the run dies."""

from __future__ import annotations

from typing import Any

from celery.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.utils.log import get_logger
from celery.worker.request import Request

from redis_batches.app.doorbell import DRAIN_ON, ENFORCED, MARKER, is_token_of, read_marker, ring
from redis_batches.app.state import runtime_of
from redis_batches.runs.next_batch import is_limited
from redis_batches.runs.runner import RUNNING, Runner

logger = get_logger(__name__)

#: What a worker's main process says of a run that it saw end; all else the run raised by itself.
SEEN_DEAD = (TimeLimitExceeded, WorkerLostError, Terminated)


class DoorbellRequest(Request):
    """A doorbell in the main process, which sees it when its child dies."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        this: Any = self
        if marker := read_marker(this._request_dict):
            runtime = runtime_of(this.app)
            drain_on = not (runtime.limits_runs or is_limited(this.task))
            enforced = "hard" in runtime.enforced_limits
            this._request_dict[MARKER] = {**marker, DRAIN_ON: drain_on, ENFORCED: enforced}

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> None:
        """Takes the batch back, too, where Celery calls no errback, as for what it requeues."""
        super().on_failure(exc_info, *args, **kwargs)
        exc = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(exc, (WorkerLostError, Terminated)):
            this: Any = self
            take_back(this.app, this._context, exc)


def take_back(app: Any, request: Any, exc: Any) -> None:
    """Deals with the batch of a doorbell whose run Celery saw die.

    What a run raised is not for it: it settled its batch, put it back, or left it to its lease.
    The doorbell's token may be that of a second delivery by then, which runs well.
    """
    # An error that the function got from another task's result may be of these types, too.
    if not isinstance(exc, SEEN_DEAD) or hasattr(request, RUNNING):
        return
    task, marker = app.tasks.get(request.task), read_marker(request)
    if task is None or marker is None:
        return
    store = runtime_of(app).sweeping_store(task.name)
    token = store.find_token(request.id)
    if token is None or not is_token_of(token, request.hostname):
        return
    logger.warning("the run of batch %s of %s ended with %r", token, task.name, exc)
    if isinstance(exc, TimeLimitExceeded):
        Runner(task, store).fail(marker["group"], token, exc)
    else:
        bells = store.reclaim(token, marker["group"], task.trigger, seen_dead=True)
        ring(app, task.name, bells)


def errback(app: Any) -> Any:
    """Returns the function that Celery calls inline when the run of a doorbell ended badly.

    That is in the pool child for an exception, and in the main process for a hard time limit or a
    child that died.
    """

    def on_batch_lost(request: Any, exc: Any, traceback: Any) -> None:
        take_back(app, request, exc)

    return on_batch_lost
