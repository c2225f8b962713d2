"""The batch tasks of a run: one with results, one without, one that retries, one with a time limit.

Every call has the arguments `(call, number, trouble)`: the id under which its producer wrote it
down, what the result is the square of, and what the first try of it does wrong.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time

from celery import Celery

from redis_batches import SimpleRequest, batched_task
from tests.chaos.ledger import Recorded

FLUSH_EVERY = 50
LEASE = 2.0
SWEEP_INTERVAL = 1.0
TIME_LIMIT = 1.5
NAMESPACE = "chaos"
#: Flush intervals by the short name of the task.
INTERVALS = {"square": 0.5, "count": 1.0, "fetch": 0.5, "limited": 0.5}
#: Troubles of a call: its own result is an error; its whole batch raises; it never returns.
ALONE, BATCH, HANG = "alone", "batch", "hang"
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
)


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
    return [
        ConnectionError("one failed") if in_trouble(request, ALONE) else result_of(request)
        for request in requests
    ]


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


def in_trouble(request: SimpleRequest, trouble: str) -> bool:
    """Whether this run of a request does something wrong."""
    return bool(request.args[2] == trouble and request.attempt == 1)


def end_with(parent: int) -> None:
    """Ends this process and its children as soon as its parent is gone, even by kill -9."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if os.environ.get(PARENT_VARIABLE):
    end_with(int(os.environ[PARENT_VARIABLE]))
