"""The batch tasks of a run, and the outcome that each call of one must have.

`square`, `count`, `fetch`, `limited` and `settle` are called alone, with `(call, number, trouble)`:
the id under which the producer wrote the call down, what the result is the square of, and what goes
wrong. `add`, `gather` and `note` are what canvases are made of; see `tests.chaos.flows`.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from typing import Any

from celery import Celery

from redis_batches import SimpleRequest, batched_task
from tests.chaos.ledger import Outcome, Recorded

FLUSH_EVERY = 50
LEASE = 2.0
SWEEP_INTERVAL = 1.0
TIME_LIMIT = 1.5
NAMESPACE = "chaos"
#: Flush intervals by the short name of the task.
INTERVALS = {
    **{"square": 0.5, "count": 1.0, "fetch": 0.5, "limited": 0.5},
    **{"settle": 0.5, "add": 0.2, "gather": 0.2},
}
#: Troubles of a first run: its own result is an error; its whole batch raises; it never returns.
ALONE, BATCH, HANG = "alone", "batch", "hang"
#: Troubles of every run: it is refused; the first two tries fail; all tries fail.
REFUSED, TWICE, ALWAYS = "refused", "twice", "always"
MAX_RETRIES = 3
#: The queue of the task that is no batch task; see `tests.chaos.plain`.
PLAIN_QUEUE = "plain"
#: Names the process of the run, without which no other process shall be left.
PARENT_VARIABLE = "CHAOS_PARENT"

app = Celery(
    "chaos",
    broker=os.environ.get("CHAOS_BROKER", "redis://127.0.0.1:1/0"),
    backend=os.environ.get("CHAOS_BACKEND"),
    set_as_current=False,
)
app.conf.update(
    redis_batches_url=os.environ.get("CHAOS_STORE"),
    redis_batches_namespace=NAMESPACE,
    redis_batches_lease=LEASE,
    redis_batches_sweep_interval=SWEEP_INTERVAL,
    broker_connection_retry_on_startup=True,
    task_routes={"tests.chaos.tasks.note": {"queue": PLAIN_QUEUE}},
)


class Refused(Exception):
    """What a call fails with that shall fail."""


class Again(Exception):
    """What a call retries with, and fails with in the end."""


@batched_task(FLUSH_EVERY, INTERVALS["square"], app=app)
def square(requests: list[SimpleRequest]) -> list[int]:
    """Settles half of its requests before it works, the others when it returns."""
    with Recorded(requests):
        for request in requests[: len(requests) // 2]:
            request.succeed(result_of(request))
        work()
    return [result_of(request) for request in requests]


@batched_task(FLUSH_EVERY, INTERVALS["count"], app=app, ignore_result=True)
def count(requests: list[SimpleRequest]) -> None:
    """Stores no result: that a call ran, only the ledger knows."""
    with Recorded(requests):
        work()


@batched_task(
    FLUSH_EVERY,
    INTERVALS["fetch"],
    app=app,
    autoretry_for=(ConnectionError,),
    retry_kwargs={"countdown": 0.3},
    max_retries=None,
)
def fetch(requests: list[SimpleRequest]) -> list[int | Exception]:
    """Fails now and then, one request or the whole batch, and is retried until it succeeds."""
    with Recorded(requests):
        work()
        if any(in_trouble(request, BATCH) for request in requests):
            raise ConnectionError("the whole batch failed")
    return [failure_of(request) or result_of(request) for request in requests]


@batched_task(FLUSH_EVERY, INTERVALS["settle"], app=app, max_retries=MAX_RETRIES)
def settle(requests: list[SimpleRequest]) -> None:
    """Settles its requests one by one: results, failures, retries."""
    with Recorded(requests):
        work()
        for request in requests:
            trouble = request.args[2]
            if trouble == REFUSED:
                request.fail(Refused("on purpose"))
            elif trouble == ALWAYS or (trouble == TWICE and request.retries < 2):
                request.retry(countdown=0.2, exc=Again(f"after {request.retries} retries"))
            else:
                request.succeed(result_of(request))


@batched_task(
    FLUSH_EVERY,
    INTERVALS["add"],
    app=app,
    autoretry_for=(ConnectionError,),
    retry_kwargs={"countdown": 0.2},
    max_retries=None,
)
def add(requests: list[SimpleRequest]) -> list[int | Exception]:
    """Adds numbers: those of a call, and before them what the step before it returned."""
    with Recorded(requests):
        work()
    return [failure_of(request) or sum(request.args) for request in requests]


@batched_task(FLUSH_EVERY, INTERVALS["gather"], app=app)
def gather(requests: list[SimpleRequest]) -> list[Any]:
    """Returns what it was called with: a chord's results, or the result of the step before it."""
    with Recorded(requests):
        work()
    return [request.args[0] for request in requests]


@app.task
def note(value: Any, call: str) -> Any:
    """Returns what it was called with; no batch task."""
    return value


@batched_task(FLUSH_EVERY, INTERVALS["limited"], app=app, time_limit=TIME_LIMIT)
def limited(requests: list[SimpleRequest]) -> list[int]:
    """Hangs now and then, until its time limit ends it and fails the batch."""
    with Recorded(requests):
        work()
        if any(in_trouble(request, HANG) for request in requests):
            time.sleep(60)
    return [result_of(request) for request in requests]


def work() -> None:
    """Takes long enough to be killed in the middle of it."""
    time.sleep(random.uniform(0.05, 0.4))


def result_of(request: SimpleRequest) -> int:
    """Returns what the caller of a request shall get."""
    return int(request.args[1]) ** 2


def trouble_of(request: SimpleRequest) -> str:
    """Returns what goes wrong with a request."""
    return str(request.kwargs["trouble"] if request.kwargs else request.args[2])


def in_trouble(request: SimpleRequest, trouble: str) -> bool:
    """Whether this run of a request does something wrong."""
    return trouble_of(request) == trouble and request.attempt == 1


def failure_of(request: SimpleRequest) -> Exception | None:
    """Returns the exception that takes the place of a result, if any."""
    if in_trouble(request, ALONE):
        return ConnectionError("one failed")
    return Refused("on purpose") if trouble_of(request) == REFUSED else None


def outcomes_of(task: str, number: int, trouble: str) -> list[Outcome]:
    """Returns how a call may end, of a task that is called alone: none if nobody is told.

    Args:
        task: The task's short name.
        number: The call's argument.
        trouble: What goes wrong.
    """
    if task == "count":
        return []
    if trouble == REFUSED:
        return [("FAILURE", "Refused")]
    if trouble == ALWAYS:
        return [("FAILURE", "Again")]
    # A batch that hangs fails all of its requests.
    more: list[Outcome] = [("FAILURE", "TimeLimitExceeded")] if task == "limited" else []
    return [("SUCCESS", number**2), *more]


def end_with(parent: int) -> None:
    """Ends this process and its children as soon as its parent is gone, even by kill -9."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if os.environ.get(PARENT_VARIABLE):
    end_with(int(os.environ[PARENT_VARIABLE]))
