"""Tasks that record each of their runs, for tests with real workers."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery

from redis_batches import Batches, SimpleRequest, batched_task, doorbell

app = Celery(
    "shop",
    broker=os.environ.get("TEST_BROKER", "redis://127.0.0.1:1/0"),
    backend=os.environ.get("TEST_BACKEND"),
)
app.conf.update(
    redis_batches_lease=float(os.environ.get("TEST_LEASE", "30")),
    redis_batches_worker_sweeper=os.environ.get("TEST_SWEEPER", "1") == "1",
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)


def record(requests: list[SimpleRequest], **more: Any) -> None:
    """Appends one line per run of a batch to a file that tests read."""
    batch = requests[0].batch
    line = {
        "ids": [request.id for request in requests],
        "args": [list(request.args) for request in requests],
        "attempts": [request.attempt for request in requests],
        "since": [request.enqueued_at and request.enqueued_at.timestamp() for request in requests],
        "at": time.time(),
        "pid": os.getpid(),
        "fence": batch.fence if batch else None,
        "token": batch.token if batch else None,
        **more,
    }
    path = Path(os.environ["TEST_FOLDER"]) / "ledger"
    data = (json.dumps(line) + "\n").encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, data)
    finally:
        os.close(handle)


def ledger() -> list[dict[str, Any]]:
    """Returns what was recorded so far, a line per run."""
    path = Path(os.environ["TEST_FOLDER"]) / "ledger"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@batched_task(flush_every=10, flush_interval=1, app=app)
def double(requests: list[SimpleRequest]) -> list[int]:
    """Returns a result per request."""
    record(requests)
    return [2 * request.args[0] for request in requests]


@app.task(base=Batches, flush_every=10, flush_interval=1)
def note(requests: list[SimpleRequest]) -> None:
    """Stores nothing."""
    record(requests)


@batched_task(flush_every=4, flush_interval=0.5, app=app)
def stall(requests: list[SimpleRequest]) -> list[str]:
    """Never returns at its first attempt: somebody has to kill the worker."""
    record(requests)
    while requests[0].attempt == 1:
        time.sleep(0.05)
    return [f"attempt {request.attempt}" for request in requests]


@batched_task(flush_every=10, flush_interval=0.05, app=app)
def fast(requests: list[SimpleRequest]) -> None:
    """Waits for a twentieth of a second only."""
    record(requests)


@batched_task(flush_every=7, flush_interval=0, app=app, ignore_result=True)
def natural(requests: list[SimpleRequest]) -> None:
    """Takes what waits as soon as a worker is free."""
    record(requests)
    time.sleep(0.02)


@batched_task(flush_every=100, flush_interval=1, app=app, ignore_result=True)
def load(requests: list[SimpleRequest]) -> None:
    """Is called by several producers at once."""
    record(requests)


if deaf_until := float(os.environ.get("TEST_DEAF_UNTIL", "0")):
    publish = doorbell._publish

    def lose(*args: Any) -> None:
        """Loses every doorbell until a time."""
        if time.time() >= deaf_until:
            publish(*args)

    doorbell._publish = lose
