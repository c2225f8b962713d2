"""A plain task beside many batch tasks; what publishes may have a way to the broker of its own."""

from __future__ import annotations

import os

from celery import Celery

from redis_batches import SimpleRequest, batched_task
from tests.support.ledger import note, record

broker = os.environ.get("TEST_BROKER", "redis://127.0.0.1:1/0")
app = Celery("many", broker=broker)
app.conf.update(
    broker_read_url=broker,
    broker_write_url=os.environ.get("TEST_WRITE_BROKER", broker),
    redis_batches_url=os.environ.get("TEST_STORE"),
    redis_batches_namespace="many",
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
)


@app.task(ignore_result=True)
def plain(number: int) -> None:
    """Is no batch task."""
    note("plain", number)


def collect(requests: list[SimpleRequest]) -> None:
    """Records a batch."""
    record(requests)


many = [
    batched_task(flush_every=5, flush_interval=0.2, app=app, name=f"many.{number}")(collect)
    for number in range(21)
]
