"""Tasks that record each of their runs, for tests with real workers."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from celery import Celery

from redis_batches import Batches, SimpleRequest, batched_task
from redis_batches.app import doorbell
from tests.support.ledger import record

app = Celery(
    "shop",
    broker=os.environ.get("TEST_BROKER", "redis://127.0.0.1:1/0"),
    backend=os.environ.get("TEST_BACKEND"),
)
app.conf.update(
    redis_batches_url=os.environ.get("TEST_STORE"),
    redis_batches_lease=float(os.environ.get("TEST_LEASE", "30")),
    redis_batches_worker_sweeper=os.environ.get("TEST_SWEEPER", "1") == "1",
    worker_prefetch_multiplier=1,
    worker_soft_shutdown_timeout=float(os.environ.get("TEST_SOFT_SHUTDOWN", "0")),
    broker_connection_retry_on_startup=True,
)


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


@batched_task(flush_every=4, flush_interval=0.5, app=app, reject_on_worker_lost=True)
def rejecting(requests: list[SimpleRequest]) -> list[str]:
    """As `stall`, with Celery's option."""
    return stall.function(requests)


@batched_task(flush_every=100, flush_interval=0.5, app=app)
def poisonable(requests: list[SimpleRequest]) -> list[int]:
    """Dies of one of its requests."""
    record(requests)
    if any(request.args[0] == "poison" for request in requests):
        os.kill(os.getpid(), signal.SIGKILL)
    return [request.attempt for request in requests]


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


@batched_task(flush_every=4, flush_interval=0.5, app=app)
def slow(requests: list[SimpleRequest]) -> list[str]:
    """Takes some seconds, at its first attempt only."""
    record(requests)
    if requests[0].attempt == 1:
        time.sleep(float(os.environ.get("TEST_SLOW", "3")))
    record(requests, ended=True)
    return [f"attempt {request.attempt}" for request in requests]


@batched_task(flush_every=4, flush_interval=0.5, app=app)
def compute(requests: list[SimpleRequest]) -> list[str]:
    """Computes for some seconds without a pause, so that no greenlet of its process runs."""
    record(requests)
    until = time.monotonic() + float(os.environ.get("TEST_SLOW", "3"))
    while time.monotonic() < until:
        sum(range(1000))
    return [f"attempt {request.attempt}" for request in requests]


if deaf_until := float(os.environ.get("TEST_DEAF_UNTIL", "0")):
    publish = doorbell._publish

    def lose(*args: Any) -> None:
        """Loses every doorbell until a time."""
        if time.time() >= deaf_until:
            publish(*args)

    doorbell._publish = lose
