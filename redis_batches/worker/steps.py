"""What a worker and beat do besides running batches: they sweep.

Beat sends the task `redis_batches.sweep`; each worker has a sweeper of its own, in a thread, so
that its event loop waits neither for Redis nor for the broker. Any of them is enough, and several
do no harm.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import Any
from uuid import uuid4

from celery import Task, bootsteps
from celery.concurrency.solo import TaskPool as SoloPool
from celery.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.utils.log import get_logger
from celery.worker.request import Request

from redis_batches.app import chords
from redis_batches.app.doorbell import (
    ENFORCED,
    ERRBACK,
    GOES_ON,
    MARKER,
    is_token_of,
    post,
    read_marker,
    ring,
    ring_now,
)
from redis_batches.app.ringer import Cause
from redis_batches.app.state import runtime_of
from redis_batches.calls.send import usual_destination
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.errors import BatchesError, StoreError, UnsupportedServer
from redis_batches.core.model import Bells
from redis_batches.runs.next_batch import is_limited, limits_of
from redis_batches.runs.runner import RUNNING, Runner
from redis_batches.upkeep import threads
from redis_batches.upkeep.schedule import PacedSweeper
from redis_batches.upkeep.sweeper import Served, Sweeper

logger = get_logger(__name__)

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
        quiet = runtime_of(self.app).quiet
        Sweeper(lambda: registered, partial(ring, self.app), MAX_PERIOD, quiet=quiet).tick()

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """Sends the sweep to a queue that a worker of batch tasks consumes.

        Returns None, and sends nothing, while the last one still waits for a worker.
        """
        try:
            if not runtime_of(self.app).registry.knock():
                return None
        except BatchesError as exc:
            if runtime_of(self.app).quiet.may_say("beat"):
                logger.warning("no sweep can be sent: %s", exc)
            return None
        options.setdefault("queue", _sweep_queue(self.app))
        return super().apply_async(*args, **options)


class DoorbellRequest(Request):
    """A doorbell in the main process, which sees it when its child dies."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        this: Any = self
        if marker := read_marker(this._request_dict):
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
    """Sweeps beside the worker's event loop, for the batch tasks of its app."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        self._sweeping: Sweeping | None = None
        super().__init__(consumer, **kwargs)

    def start(self, consumer: Any) -> None:
        """Starts at every connection to the broker, also after a lost one."""
        app, runtime = consumer.app, runtime_of(consumer.app)
        greeted = _greet(app)
        runtime.limits_runs = limits_of(consumer.controller)
        runtime.enforced_limits = enforced_limits(consumer.pool)
        if not isinstance(consumer.pool, SoloPool):
            chords.never_wait_here()
        warn_of_time_limits(batch_tasks(app), runtime.enforced_limits)
        runtime.start_ringer(partial(_ring_for_loop, app))
        if not runtime.settings.worker_sweeper:
            return
        tick = paced_sweeper(app, consumer.hostname).tick
        self._sweeping = Sweeping(tick, None if greeted else partial(_greet_late, app))

    def stop(self, consumer: Any) -> None:
        """Stops until the next start."""
        if self._sweeping is not None:
            self._sweeping.stop()
            self._sweeping = None


class Sweeping:
    """A thread that sweeps until it is told to stop, and then ends when it can.

    Args:
        tick: Sweeps; returns seconds until the next tick.
        greet: What could not be done at the worker's start, if anything: done first, until it
            returns True.
    """

    def __init__(self, tick: Callable[[], float], greet: Callable[[], bool] | None = None) -> None:
        self._tick, self._greet = tick, greet
        self._guard = threads.Unforked()
        self._stopped = threading.Event()
        thread = threading.Thread(target=self._run, name="redis_batches-sweeper", daemon=True)
        thread.start()

    def stop(self) -> None:
        """Ends the thread, after the command that it may be waiting for."""
        self._stopped.set()

    def _run(self) -> None:
        wait = 0.0
        while not self._stopped.wait(wait):
            try:
                with self._guard:
                    wait = self._look()
            except Exception:
                logger.exception("a sweep failed; the next one is in a second")
                wait = MIN_PERIOD

    def _look(self) -> float:
        if self._greet is not None and self._greet():
            self._greet = None
        return self._tick()


def install(app: Any, task: type[BatchTask]) -> None:
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


def paced_sweeper(app: Any, hostname: str) -> PacedSweeper:
    """Returns the sweeper of a worker, whose doorbells are rung by another thread."""
    runtime = runtime_of(app)
    sweeper = Sweeper(
        partial(_own_tasks, app),
        partial(post, app),
        runtime.settings.sweep_interval,
        f"{hostname}:{uuid4().hex[:8]}",
        runtime.quiet,
    )
    return PacedSweeper(sweeper, monotonic)


def batch_tasks(app: Any) -> list[BatchTask]:
    """Returns the batch tasks of an app, in the order in which they were made."""
    return [task for task in app.tasks.values() if getattr(task, "waits_in_redis", False)]


def registered_tasks(app: Any) -> list[Served]:
    """Returns every batch task of the namespace, with its options as its workers wrote them."""
    runtime = runtime_of(app)
    triggers = runtime.registry.read()
    return [Served(runtime.sweepers_store(name), trigger) for name, trigger in triggers.items()]


def _own_tasks(app: Any) -> Iterable[Served]:
    store = runtime_of(app).sweepers_store
    return [Served(store(task.name), task.trigger) for task in batch_tasks(app)]


def _ring_for_loop(app: Any, task: str, bells: Bells, cause: Cause) -> None:
    ring_now(app, task, bells, priority=cause.priority, force=cause.force)


def _greet(app: Any) -> bool:
    """Looks at the server, and writes down what this worker serves for any sweeper.

    Returns:
        Whether Redis could be reached.

    Raises:
        UnsupportedServer: Requests would be lost there, so the worker must not start.
    """
    runtime = runtime_of(app)
    try:
        runtime.check_server()
        runtime.registry.open()
        runtime.registry.write({task.name: task.trigger for task in batch_tasks(app)})
    except StoreError as exc:
        if runtime.quiet.may_say("greet"):
            logger.warning("cannot register the batch tasks yet: %s", exc)
        return False
    return True


def _greet_late(app: Any) -> bool:
    """Greets a server that could not be reached at the worker's start."""
    try:
        return _greet(app)
    except UnsupportedServer as exc:
        logger.critical("this worker must not go on: %s", exc)
        return True


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
