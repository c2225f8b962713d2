"""Batch tasks and plain ones for canvases, with what each worker's signals tell."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from celery import Celery, Task, signals

from redis_batches import Batches, SimpleRequest, batched_task
from tests.support.ledger import note, record

app = Celery(
    "canvas",
    broker=os.environ.get("TEST_BROKER", "redis://127.0.0.1:1/0"),
    backend=os.environ.get("TEST_BACKEND"),
)
app.conf.update(
    broker_connection_retry_on_startup=True,
    redis_batches_url=os.environ.get("TEST_STORE"),
    redis_batches_sweep_interval=0.2,
    result_extended=True,
    task_send_sent_event=True,
    worker_send_task_events=True,
)
TRIGGER: dict[str, Any] = {"flush_every": 4, "flush_interval": 0.1, "app": app}


#: For tests that count batches: four calls make one, however slow the machine is.
WHOLE: dict[str, Any] = {"flush_every": 4, "flush_interval": 30, "app": app}


class Wrong(Exception):
    """What these tasks raise."""


# -- Batch tasks


@batched_task(**TRIGGER)
def double(requests: list[SimpleRequest]) -> list[int]:
    """A step."""
    return [2 * request.args[0] for request in requests]


@batched_task(**TRIGGER, ignore_result=True)
def double_ignored(requests: list[SimpleRequest]) -> list[int]:
    """A step whose result is stored nowhere."""
    return [2 * request.args[0] for request in requests]


@batched_task(**TRIGGER)
def total(requests: list[SimpleRequest]) -> list[int]:
    """The body of chords; records its runs."""
    record(requests)
    return [sum(request.args[0]) for request in requests]


@batched_task(**TRIGGER)
def ancestry(requests: list[SimpleRequest]) -> list[Any]:
    """Returns who called each request."""
    names = ("id", "root_id", "parent_id", "group", "stamps")
    return [{name: request.request_dict[name] for name in names} for request in requests]


@batched_task(**TRIGGER)
def fail_odd(requests: list[SimpleRequest]) -> list[Any]:
    """Fails the requests whose number is odd."""
    numbers = [request.args[0] for request in requests]
    return [Wrong(f"odd {number}") if number % 2 else number for number in numbers]


@batched_task(**TRIGGER)
def raising(requests: list[SimpleRequest]) -> None:
    """Raises."""
    raise Wrong("all of it")


@batched_task(**TRIGGER, default_retry_delay=0)
def retry_once(requests: list[SimpleRequest]) -> None:
    """Retries each request once, by itself."""
    for request in requests:
        if request.retries:
            request.succeed(request.args[0])
        else:
            request.retry(countdown=0, exc=Wrong("later"))


@batched_task(**TRIGGER, autoretry_for=(Wrong,), default_retry_delay=0, max_retries=3)
def autoretry(requests: list[SimpleRequest]) -> list[int]:
    """Raises at first."""
    if any(request.retries == 0 for request in requests):
        raise Wrong("at first")
    return [request.args[0] for request in requests]


@batched_task(**TRIGGER, bind=True)
def replacing(self: Task[Any, Any], requests: list[SimpleRequest]) -> None:
    """Tries what Celery lets a single task do."""
    self.replace(double.s(1))


@batched_task(**TRIGGER, bind=True)
def progress(self: Task[Any, Any], requests: list[SimpleRequest]) -> list[Any]:
    """Tells of a state of its own; returns what is stored of it."""
    for request in requests:
        self.update_state(request.id, "PROGRESS", {"at": request.args[0]})
    try:
        self.update_state(state="PROGRESS")
    except TypeError as exc:
        refused = str(exc)
    stored = [app.AsyncResult(request.id) for request in requests]
    return [[result.state, result.info, refused] for result in stored]


class Handled(Batches):
    """Tells when its handlers are called, and for whom."""

    abstract = True

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Before a batch."""
        note("handled", ["before_start", task_id])

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """After a batch that went well."""
        note("handled", ["on_success", task_id])

    def after_return(self, status: str, retval: Any, task_id: str, *_: Any) -> None:
        """After any batch."""
        note("handled", ["after_return", task_id])


well = batched_task(**WHOLE, name="canvas.well")(double.function)
badly = batched_task(**WHOLE, name="canvas.badly")(raising.function)
again = batched_task(
    **WHOLE, name="canvas.again", autoretry_for=(Wrong,), default_retry_delay=0, max_retries=3
)(autoretry.function)


@batched_task(**WHOLE, base=Handled, bind=True, track_started=True)
def handled(self: Task[Any, Any], requests: list[SimpleRequest]) -> list[Any]:
    """Returns the state of each request while it runs, and the batch's own id."""
    return [[app.AsyncResult(request.id).state, self.request.id] for request in requests]


@batched_task(**TRIGGER)
def calling(requests: list[SimpleRequest]) -> list[Any]:
    """Calls a task for each request."""
    return [who.delay().id for _ in requests]


# -- As code for celery-batches settles


def settling(name: str, settle: Callable[[SimpleRequest], Any]) -> Any:
    """Makes a task of the drop-in class that settles each request."""

    def function(requests: list[SimpleRequest]) -> None:
        for request in requests:
            settle(request)

    return app.task(
        base=Batches, flush_every=4, flush_interval=0.1, name=f"canvas.{name}", max_retries=1
    )(function)


def in_thread(settle: Callable[[SimpleRequest], Any]) -> Callable[[SimpleRequest], None]:
    """Settles in a thread of its own, which has a backend of its own."""

    def run(request: SimpleRequest) -> None:
        thread = threading.Thread(target=settle, args=(request,))
        thread.start()
        thread.join()

    return run


def done(request: SimpleRequest) -> None:
    """As documented."""
    app.backend.mark_as_done(request.id, 2 * request.args[0], request=request)


def done_by_id(request: SimpleRequest) -> None:
    """Without `request=`."""
    app.backend.mark_as_done(request.id, 2 * request.args[0])


def failure(request: SimpleRequest) -> None:
    """What celery-batches does not support."""
    app.backend.mark_as_failure(request.id, Wrong("marked"), request=request)


def failure_by_id(request: SimpleRequest) -> None:
    """Without `request=`."""
    app.backend.mark_as_failure(request.id, Wrong("marked"))


def retry(request: SimpleRequest) -> None:
    """What celery-batches does not support either."""
    if request.retries:
        done(request)
    else:
        app.backend.mark_as_retry(request.id, Wrong("later"), request=request)


def retry_by_id(request: SimpleRequest) -> None:
    """Without `request=`."""
    if request.retries:
        done_by_id(request)
    else:
        app.backend.mark_as_retry(request.id, Wrong("later"))


SETTLERS: dict[str, Any] = {
    settle.__name__: settling(settle.__name__, settle)
    for settle in (done, done_by_id, failure, failure_by_id, retry, retry_by_id)
}
SETTLERS |= {
    f"{name}_in_thread": settling(f"{name}_in_thread", in_thread(globals()[name]))
    for name in tuple(SETTLERS)
}
for settler in SETTLERS.values():
    settler.default_retry_delay = 0


# -- Plain tasks


@app.task
def plus(a: int, b: int) -> int:
    """A step."""
    return a + b


@app.task
def plain_total(numbers: list[int]) -> int:
    """The body of chords."""
    return sum(numbers)


@app.task(bind=True)
def who(self: Task[Any, Any]) -> list[Any]:
    """Returns who called it."""
    return [self.request.root_id, self.request.parent_id]


@app.task
def old_errback(task_id: str) -> None:
    """Takes an id."""
    note("old", [task_id])


@app.task
def new_errback(request: Any, exc: Exception, traceback: str) -> None:
    """Is called where the call failed."""
    note("new", [request.id, str(exc), bool(traceback)])


@batched_task(**TRIGGER)
def batch_errback(requests: list[SimpleRequest]) -> None:
    """Takes ids, as a batch."""
    note("batch", [request.args[0] for request in requests])


@app.task
def hear(value: Any, tag: str) -> None:
    """Is linked to others."""
    note("heard", [tag, value])


@batched_task(**TRIGGER)
def batch_hear(requests: list[SimpleRequest]) -> None:
    """The same as a batch."""
    for request in requests:
        note("heard", [request.args[1], request.args[0]])


# -- What signals tell


def _tell(name: str) -> None:
    def receive(sender: Any = None, **sent: Any) -> None:
        if getattr(sender, "name", sender) in (well.name, badly.name, again.name):
            request = sent.get("request")
            note("signal", [name, sender.name, sent.get("task_id") or (request and request.id)])

    getattr(signals, f"task_{name}").connect(receive, weak=False)


if os.environ.get("TEST_SIGNALS"):
    for signal in ("received", "prerun", "postrun", "success", "failure", "retry", "revoked"):
        _tell(signal)
