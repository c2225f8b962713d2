"""An app whose broker, result backend and store are three servers, so that one can be down."""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from redis_batches import SimpleRequest, batched_task
from tests.support.ledger import record

app = Celery(
    "apart",
    broker=os.environ.get("TEST_BROKER", "redis://127.0.0.1:1/0"),
    backend=os.environ.get("TEST_BACKEND"),
)
app.conf.update(
    redis_batches_url=os.environ.get("TEST_STORE"),
    redis_batches_lease=3,
    broker_connection_retry_on_startup=True,
)


@batched_task(flush_every=5, flush_interval=0.2, app=app, ignore_result=True)
def note(requests: list[SimpleRequest]) -> None:
    """Stores no result."""
    record(requests)


@batched_task(flush_every=5, flush_interval=0.2, app=app)
def wait_for_go(requests: list[SimpleRequest]) -> list[int]:
    """Returns when the test says so."""
    record(requests)
    while not (Path(os.environ["TEST_FOLDER"]) / "go").exists():
        time.sleep(0.05)
    return [request.args[0] for request in requests]


@batched_task(flush_every=5, flush_interval=0.2, app=app, soft_time_limit=1)
def too_slow(requests: list[SimpleRequest]) -> list[int]:
    """Settles one request in time; with `catch` it sees the limit itself."""
    record(requests)
    requests[0].succeed(requests[0].args[0])
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        if not requests[0].kwargs.get("catch"):
            raise
    return [-1] * len(requests)
