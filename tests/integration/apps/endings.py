"""Tasks whose runs end in every way in which a run can end: one odd call, and one that is not.

Each batch holds both. What is odd happens in every run of the odd call, but for what kills a
process: that happens once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery

from redis_batches import SimpleRequest, batched_task
from tests.support.ledger import record

app = Celery(
    "endings",
    broker=os.environ.get("TEST_BROKER", "redis://127.0.0.1:1/0"),
    backend=os.environ.get("TEST_BACKEND"),
)
app.conf.update(
    redis_batches_lease=1.5,
    redis_batches_sweep_interval=0.2,
    broker_connection_retry_on_startup=True,
    # Enforced or not, each run ends within so many seconds.
    worker_send_task_events=False,
)
#: Seconds of a run that a time limit of one second ends, where somebody enforces it.
LONG = 2.5


def _raise() -> None:
    raise ValueError("odd")


def _cancel() -> None:
    raise asyncio.CancelledError


def _interrupt() -> None:
    raise KeyboardInterrupt


def _take_long() -> None:
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        time.sleep(0.05)


def _compute() -> None:
    """Takes longer than the lease, and lets no greenlet go on meanwhile."""
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        pass


def _once(name: str) -> bool:
    mark = Path(os.environ["TEST_FOLDER"]) / f"{name}-{os.environ['TEST_POOL']}"
    done = mark.exists()
    mark.touch()
    return not done


def _die() -> None:
    if _once("died"):
        os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    if _once("stopped"):
        os.kill(os.getpid(), signal.SIGSTOP)


def _make(name: str, end: Callable[[], Any], **options: Any) -> Any:
    """Makes a task of which one call ends its runs."""

    def function(requests: list[SimpleRequest]) -> list[str]:
        record(requests, task=name, pool=os.environ["TEST_POOL"])
        if any(request.args[0] == "odd" for request in requests):
            end()
        return [f"attempt {request.attempt}" for request in requests]

    task = batched_task(2, 0.05, app=app, name=name, max_retries=1, **options)
    return task(function)


TASKS = {
    name: _make(name, end, **options)
    for name, end, options in (
        ("returns", lambda: None, {}),
        ("raises", _raise, {}),
        ("is cancelled", _cancel, {}),
        ("exits", lambda: sys.exit(3), {}),
        ("is interrupted", _interrupt, {}),
        ("soft limit", _take_long, {"soft_time_limit": 1}),
        ("hard limit", _take_long, {"time_limit": 1}),
        ("is killed", _die, {}),
        ("computes", _compute, {}),
        ("is stopped", _stop, {}),
    )
}
