"""Tasks around which the result backend, the store or the worker itself fails on the way back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from celery import Celery

from redis_batches import SimpleRequest, batched_task
from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from tests.support.ledger import record

app = Celery(
    "returning",
    broker=os.environ.get("TEST_BROKER", "redis://127.0.0.1:1/0"),
    backend=os.environ.get("TEST_BACKEND"),
)
app.conf.update(
    redis_batches_url=os.environ.get("TEST_STORE"),
    redis_batches_lease=float(os.environ.get("TEST_LEASE", "10")),
    redis_batches_sweep_interval=0.2,
    broker_connection_retry_on_startup=True,
    result_backend_transport_options={"retry_policy": {"max_retries": 1}},
)
BATCH = 20


@batched_task(flush_every=BATCH, flush_interval=0.2, app=app, max_retries=3)
def retry_first(requests: list[SimpleRequest]) -> list[int]:
    """Lets the first request run again, when it may, and returns a result for each."""
    record(requests)
    wait_for_permission()
    if requests[0].attempt == 1:
        requests[0].retry(countdown=0)
    return [request.args[0] for request in requests]


@batched_task(flush_every=BATCH, flush_interval=0.2, app=app)
def empty(requests: list[SimpleRequest]) -> list[int]:
    """Takes its requests out of the list that it was given."""
    record(requests)
    found = []
    while requests:
        found.append(requests.pop(0).args[0])
    return found


@batched_task(flush_every=BATCH, flush_interval=0.2, app=app)
def add(requests: list[SimpleRequest]) -> list[int]:
    """Sums: the body of a chord."""
    record(requests)
    return [sum(request.args[0]) for request in requests]


@batched_task(flush_every=1, flush_interval=0, app=app)
def last_long(requests: list[SimpleRequest]) -> list[int]:
    """Says its attempt; the first run goes on until its worker ends."""
    record(requests)
    if requests[0].attempt == 1:
        while True:
            signal.pause()
    return [request.attempt for request in requests]


@batched_task(flush_every=2, flush_interval=0.2, app=app)
def count(requests: list[SimpleRequest]) -> list[int]:
    """Says its attempts."""
    record(requests)
    return [request.attempt for request in requests]


@batched_task(flush_every=BATCH, flush_interval=0.2, app=app)
def batch_part(requests: list[SimpleRequest]) -> list[int]:
    """Parts of chords."""
    wait_for_permission()
    return [request.args[0] for request in requests]


@app.task
def total(numbers: list[int]) -> int:
    """The body of a chord, in a task of Celery's own."""
    return sum(numbers)


@app.task
def part(number: int) -> int:
    """A part of a chord, in a task of Celery's own."""
    wait_for_permission()
    return number


def wait_for_permission() -> None:
    """Waits until the test lets a function end."""
    from tests.support.waiting import wait_until

    folder = Path(os.environ["TEST_FOLDER"])
    (folder / "waits").touch()
    wait_until((folder / "may end").exists, description="the test lets it end")


def _stop_after(claim: Callable[..., Any]) -> Callable[..., Any]:
    """The process stands still when it has claimed its first batch of `count`."""

    @wraps(claim)
    def stop(store: Store, *args: Any, **kwargs: Any) -> Any:
        claimed = claim(store, *args, **kwargs)
        mark = Path(os.environ["TEST_FOLDER"]) / "stopped"
        if store.task == count.name and isinstance(claimed, Lease) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return claimed

    return stop


if os.environ.get("TEST_STOP") == "1":
    Store.claim = _stop_after(Store.claim)
