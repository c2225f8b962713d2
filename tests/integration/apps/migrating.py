"""A program of a user of celery-batches, of which only the import line changes.

It runs in either environment, so it imports nothing that only one of them has.
"""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from celery import Celery

# from celery_batches import Batches, or: from redis_batches import Batches
Batches = import_module(os.environ["TEST_LIBRARY"]).Batches

app = Celery("migrating", broker=os.environ["TEST_BROKER"], backend=os.environ["TEST_BACKEND"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    redis_batches_url=os.environ.get("TEST_STORE"),
    worker_prefetch_multiplier=0,
)
#: The old worker buffers what it gets, and never flushes.
EVERY, INTERVAL = (10_000, 3600) if os.environ.get("TEST_BUFFERS") else (100, 1)


@app.task(base=Batches, flush_every=EVERY, flush_interval=INTERVAL)
def lengths(requests: list[Any]) -> None:
    """Stores the length of each text."""
    line = json.dumps([[request.id, request.args[0]] for request in requests])
    with (Path(os.environ["TEST_FOLDER"]) / "runs").open("a") as file:
        file.write(line + "\n")
    for request in requests:
        app.backend.mark_as_done(request.id, len(request.args[0]), request=request)


@app.task
def add_one(number: int) -> int:
    """Is linked to some calls."""
    return number + 1


def call(first: int, count: int) -> None:
    """Calls the task; prints the id of each call, or of what is linked to it."""
    for number in range(first, first + count):
        options: dict[str, Any] = {"countdown": 0.5} if number % 7 == 0 else {}
        if number % 5 == 0:
            print(lengths.apply_async(("x" * number,), link=add_one.s(), **options).id)
        else:
            print(lengths.apply_async(("x" * number,), **options).id)
