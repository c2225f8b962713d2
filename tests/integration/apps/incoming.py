"""Tasks that are called by messages which programs without this package send."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Exchange, Queue

from redis_batches import SimpleRequest, batched_task
from redis_batches.buffer.store import Store
from tests.support.ledger import record

app = Celery(
    "incoming",
    broker=os.environ.get("TEST_BROKER", "redis://127.0.0.1:1/0"),
    backend=os.environ.get("TEST_BACKEND"),
)
app.conf.update(
    redis_batches_url=os.environ.get("TEST_STORE"),
    redis_batches_lease=3,
    redis_batches_max_pending=int(os.environ.get("TEST_MAX_PENDING", "1000")),
    redis_batches_max_payload=2000,
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    worker_eta_task_limit=int(os.environ.get("TEST_EXTRA", "0")) or None,
)
app.conf.task_queues = [
    Queue("celery"),
    Queue("clicks", Exchange("events", type="topic"), routing_key="click.*"),
]


@batched_task(flush_every=10, flush_interval=1, app=app)
def double(requests: list[SimpleRequest]) -> list[int]:
    """Returns a result per request."""
    record(requests)
    return [2 * request.args[0] for request in requests]


@batched_task(flush_every=10, flush_interval=3600, app=app)
def full(requests: list[SimpleRequest]) -> list[int]:
    """Runs in full batches only."""
    record(requests)
    return [2 * request.args[0] for request in requests]


@batched_task(flush_every=10, flush_interval=0.5, app=app)
def tell(requests: list[SimpleRequest]) -> list[dict[str, Any]]:
    """Returns what it sees of each request."""
    record(requests)
    if requests[0].args[0] == "slowly":
        time.sleep(2)
    names = ("args", "kwargs", "reply_to", "correlation_id", "enqueued_at")
    return [
        {
            **{name: getattr(request, name) for name in names},
            "headers": {
                name: request.request_dict.get(name)
                for name in ("shop", "stamps", "parent_id", "compression", "origin", "retries")
            },
            "priority": request.delivery_info["priority"],
            "app_id": request.request_dict["properties"].get("app_id"),
            "now": time.time(),
        }
        for request in requests
    ]


@batched_task(flush_every=50, flush_interval=0.5, app=app)
def echo(requests: list[SimpleRequest]) -> list[Any]:
    """Returns the arguments of each request, whatever they are."""
    return [request.args for request in requests]


@app.task
def add(a: int, b: int) -> int:
    """A task that is not a batch task."""
    return a + b


@app.task
def total(numbers: list[int]) -> int:
    """The body of a chord."""
    return sum(numbers)


if os.environ.get("TEST_STOP_BEFORE_ACK"):
    push = Store.push

    def push_and_stop(self: Store, *args: Any) -> Any:
        """Stops the worker's main process when it has stored a call, before its message's ack."""
        pushed = push(self, *args)
        (Path(os.environ["TEST_FOLDER"]) / "stopped").touch()
        os.kill(os.getpid(), signal.SIGSTOP)
        return pushed

    Store.push = push_and_stop  # type: ignore[method-assign]
