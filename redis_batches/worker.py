"""What a worker and beat do besides running batches: they sweep.

Beat sends the task `redis_batches.sweep`; each worker has a sweeper of its own in its event loop.
Any of them is enough, and several do no harm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import Task, bootsteps
from celery.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.utils.log import get_task_logger
from celery.worker.request import Request

from redis_batches.doorbell import ENFORCED, ERRBACK, GOES_ON, MARKER, is_token_of, ring
from redis_batches.errors import BatchesError, StoreError
from redis_batches.following import is_limited, limits_of
from redis_batches.model import Bells, Trigger
from redis_batches.pacing import PacedSweeper
from redis_batches.producer import usual_destination
from redis_batches.runner import RUNNING, Runner
from redis_batches.runtime import runtime_of
from redis_batches.server import check_server
from redis_batches.sweeper import Served, Sweeper

if TYPE_CHECKING:
    from redis_batches.task import Batches

logger = get_task_logger(__name__)

SWEEP = "redis_batches.sweep"
#: Beat's period follows the shortest flush interval, in whole seconds between these.
MIN_PERIOD, MAX_PERIOD = 1, 10
#: What a worker's main process says of a run that it saw end; all else the run raised by itself.
SEEN_DEAD = (TimeLimitExceeded, WorkerLostError, Terminated)


class SweepTask(Task):  # type: ignore[type-arg]
    """Sweeps once for every batch task that any worker of the namespace serves."""

    name = SWEEP
    ignore_result = True

    def run(self) -> None:
        """Sweeps."""
        runtime_of(self.app).registry.open()
        registered = registered_tasks(self.app)
        Sweeper(lambda: registered, ringer(self.app), MAX_PERIOD).tick()

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """Sends the sweep to a queue that a worker of batch tasks consumes.

        Returns None, and sends nothing, while the last one still waits for a worker.
        """
        try:
            if not runtime_of(self.app).registry.knock():
                return None
        except BatchesError as exc:
            logger.warning("no sweep can be sent: %s", exc)
            return None
        options.setdefault("queue", _sweep_queue(self.app))
        return super().apply_async(*args, **options)


class DoorbellRequest(Request):
    """A doorbell in the main process, which sees it when its child dies."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        this: Any = self
        if marker := this._request_dict.get(MARKER):
            runtime = runtime_of(this.app)
            goes_on = not (runtime.limits_runs or is_limited(this.task))
            enforced = "hard" in runtime.enforced_limits
            this._request_dict[MARKER] = {**marker, GOES_ON: goes_on, ENFORCED: enforced}

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> None:
        """Takes the batch back, too, where Celery calls no errback, as for what it requeues."""
        super().on_failure(exc_info, *args, **kwargs)
        exc = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(exc, (WorkerLostError, Terminated)):
            this: Any = self
            take_back(this.app, this._context, exc)


class SweeperStep(bootsteps.StartStopStep):
    """Sweeps in the worker's event loop, for the batch tasks of its app."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        self._entry: Any = None
        self._sweeper: PacedSweeper | None = None
        super().__init__(consumer, **kwargs)

    def start(self, consumer: Any) -> None:
        """Starts at every connection to the broker, also after a lost one."""
        settings = runtime_of(consumer.app).settings
        _greet(consumer.app)
        runtime = runtime_of(consumer.app)
        runtime.limits_runs = limits_of(consumer.controller)
        runtime.enforced_limits = enforced_limits(consumer.pool)
        warn_of_time_limits(batch_tasks(consumer.app), runtime.enforced_limits)
        if not settings.worker_sweeper:
            return
        name = f"{consumer.hostname}:{uuid4().hex[:8]}"
        served = partial(_own_tasks, consumer.app)
        sweeper = Sweeper(served, ringer(consumer.app), settings.sweep_interval, name)
        self._sweeper = PacedSweeper(sweeper, monotonic)
        self._schedule(consumer, 0.0)

    def stop(self, consumer: Any) -> None:
        """Stops until the next start."""
        self._sweeper = None
        if self._entry is not None:
            # Under gevent a dead greenlet is falsy, so `if entry` would leave a timer running.
            getattr(self._entry, "entry", self._entry).cancel()
            self._entry = None

    def _schedule(self, consumer: Any, seconds: float) -> None:
        self._entry = consumer.timer.call_after(seconds, self._tick, (consumer, self._sweeper))

    def _tick(self, consumer: Any, sweeper: PacedSweeper) -> None:
        if sweeper is not self._sweeper:
            return
        try:
            wait = sweeper.tick()
        except Exception:
            logger.exception("a sweep failed; the next one is in a second")
            wait = MIN_PERIOD
        if sweeper is self._sweeper:
            self._schedule(consumer, wait)


def install(app: Any, task: type[Batches]) -> None:
    """Adds the sweeps to an app and its workers, and keeps beat's period in step."""
    runtime = runtime_of(app)
    if not runtime.installed:
        runtime.installed = True
        app.register_task(SweepTask())
        app._task_from_fun(errback(app), name=ERRBACK, ignore_result=True)
        app.steps["consumer"].add(SweeperStep)
    runtime.shortest = min(runtime.shortest, task.flush_interval)
    period = min(max(math.floor(runtime.shortest), MIN_PERIOD), MAX_PERIOD)
    app.add_periodic_task(period, app.signature(SWEEP), name=SWEEP)


def enforced_limits(pool: Any) -> frozenset[str]:
    """Returns which time limits a worker's pool enforces: "hard", "soft", both or none."""
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(pool).__mro__}
    if "celery.concurrency.prefork.TaskPool" in kinds:
        return frozenset(("hard", "soft"))
    return frozenset(("hard",) if "celery.concurrency.gevent.TaskPool" in kinds else ())


def warn_of_time_limits(tasks: Iterable[Batches], enforced: frozenset[str]) -> None:
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


def take_back(app: Any, request: Any, exc: Any) -> None:
    """Deals with the batch of a doorbell whose run Celery saw die.

    What a run raised is not for it: it settled its batch, put it back, or left it to its lease.
    The doorbell's token may be that of a second delivery by then, which runs well.
    """
    # An error that the function got from another task's result may be of these types, too.
    if not isinstance(exc, SEEN_DEAD) or hasattr(request, RUNNING):
        return
    task, marker = app.tasks.get(request.task), request.get(MARKER)
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


def ringer(app: Any) -> Any:
    """Returns what a sweeper rings with."""

    def ring_for(task: str, bells: Bells) -> None:
        ring(app, task, bells)

    return ring_for


def batch_tasks(app: Any) -> list[Batches]:
    """Returns the batch tasks of an app, in the order in which they were made."""
    return [task for task in app.tasks.values() if getattr(task, "waits_in_redis", False)]


def registered_tasks(app: Any) -> list[Served]:
    """Returns every batch task of the namespace, with its options as its workers wrote them."""
    runtime = runtime_of(app)
    return [
        Served(runtime.store(name), Trigger(options["flush_every"], options["interval_ms"]))
        for name, options in runtime.registry.read().items()
    ]


def _own_tasks(app: Any) -> Iterable[Served]:
    store = runtime_of(app).sweeping_store
    return [Served(store(task.name), task.trigger) for task in batch_tasks(app)]


def _greet(app: Any) -> None:
    """Looks at the server, and writes down what this worker serves for any sweeper.

    Raises:
        UnsupportedServer: Requests would be lost there, so the worker must not start.
    """
    runtime = runtime_of(app)
    try:
        check_server(runtime.client)
        runtime.registry.open()
        for task in batch_tasks(app):
            trigger = task.trigger
            runtime.registry.write(
                task.name,
                {"flush_every": trigger.flush_every, "interval_ms": trigger.interval_ms},
            )
    except StoreError as exc:
        logger.warning("cannot register the batch tasks: %s", exc)


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
