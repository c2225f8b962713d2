"""Tasks whose calls are revoked: while they wait, are delayed, or run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery

from redis_batches import SimpleRequest, batched_task
from tests.support.ledger import record

app = Celery(
    "revoking",
    broker=os.environ.get("TEST_BROKER", "redis://127.0.0.1:1/0"),
    backend=os.environ.get("TEST_BACKEND"),
)
app.conf.update(
    broker_connection_retry_on_startup=True,
    redis_batches_sweep_interval=0.2,
    redis_batches_lease=float(os.environ.get("TEST_LEASE", "30")),
)


def wait_for(name: str) -> None:
    """Waits until a test made a file."""
    path = Path(os.environ["TEST_FOLDER"], name)
    while not path.exists():
        time.sleep(0.01)


@batched_task(flush_every=1000, flush_interval=3600, app=app)
def waiting(requests: list[SimpleRequest]) -> list[Any]:
    """Its calls wait until a test flushes them."""
    record(requests)
    return [request.args[0] for request in requests]


@batched_task(flush_every=1, flush_interval=0, app=app)
def quick(requests: list[SimpleRequest]) -> list[Any]:
    """Its calls run at once."""
    record(requests)
    return [request.args[0] for request in requests]


@batched_task(flush_every=1, flush_interval=0, app=app)
def retried(requests: list[SimpleRequest]) -> None:
    """Retries every request, in an hour."""
    record(requests)
    for request in requests:
        request.retry(countdown=3600)


@batched_task(flush_every=2, flush_interval=0.2, app=app)
def held(requests: list[SimpleRequest]) -> list[Any]:
    """Runs until a test lets it go on; then each request does what its argument says."""
    record(requests)
    wait_for("go on")
    for request in requests:
        if request.args[0] == "retry" and request.attempt == 1:
            request.retry(countdown=3600)
        if request.args[0] == "call again" and request.attempt == 1:
            held.apply_async(("done",), task_id=request.id, countdown=3600)
    return [request.args[0] for request in requests]


@app.task
def plain() -> str:
    """A plain task, which this package leaves to Celery."""
    return "ran"


@app.task
def total(numbers: list[int]) -> int:
    """The body of a chord."""
    return sum(numbers)
