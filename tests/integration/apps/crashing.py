"""A task whose worker dies at a point that a test chooses, with its whole process group, once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from celery import Celery
from celery.backends.redis import RedisBackend

from redis_batches import SimpleRequest, batched_task
from redis_batches.buffer.lease import Lease
from redis_batches.runs import give_back, report, runner
from redis_batches.runs.reporter import Reporter
from redis_batches.runs.runner import Runner
from tests.support.ledger import record

app = Celery(
    "crashing",
    broker=os.environ.get("TEST_BROKER", "redis://127.0.0.1:1/0"),
    backend=os.environ.get("TEST_BACKEND"),
)
app.conf.update(redis_batches_lease=2, broker_connection_retry_on_startup=True)


@batched_task(flush_every=4, flush_interval=1, app=app)
def double(requests: list[SimpleRequest]) -> list[int]:
    """Returns a result per request; the first is settled before the others."""
    record(requests)
    requests[0].succeed(2 * requests[0].args[0])
    return [2 * request.args[0] for request in requests]


@batched_task(flush_every=4, flush_interval=1, app=app)
def add(requests: list[SimpleRequest]) -> list[int]:
    """Returns a sum for each request: the body of a chord, and a part of a chain."""
    record(requests)
    return [_total(request.args[0]) + sum(request.args[1:]) for request in requests]


def _total(value: Any) -> int:
    return sum(value) if isinstance(value, list) else int(value)


def _dies_first(owner: Any, name: str) -> None:
    """The worker dies instead of calling this method, the first time."""
    original: Callable[..., Any] = getattr(owner, name)

    @wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        mark = Path(os.environ["TEST_FOLDER"]) / "crashed"
        if not mark.exists():
            mark.touch()
            os.killpg(0, signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, call)


#: By where in the life of a batch it happens.
POINTS = {
    "gone on": (report, "success"),
    "stored": (RedisBackend, "on_chord_part_return"),
    "claimed": (Runner, "_decode"),
    "running": (Reporter, "succeed"),
    "returned": (runner, "report_all"),
    "told": (give_back, "end"),
    "given back": (Lease, "ack"),
}
if point := os.environ.get("TEST_CRASH_AT"):
    _dies_first(*POINTS[point])
