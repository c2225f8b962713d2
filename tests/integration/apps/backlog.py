"""Tasks that record which doorbell each of their batches ran for."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery, current_task

from redis_batches import SimpleRequest, batched_task
from tests.support.ledger import ledger, record

app = Celery(
    "backlog",
    broker=os.environ.get("TEST_BROKER", "redis://127.0.0.1:1/0"),
    backend=os.environ.get("TEST_BACKEND"),
)
app.conf.broker_connection_retry_on_startup = True


def note(requests: list[SimpleRequest]) -> None:
    """Records the batch, and the run that it is a part of."""
    record(requests, run=current_task.request.id)


@batched_task(1, 60, app=app, name="plain", ignore_result=True)
def plain(requests: list[SimpleRequest]) -> None:
    """Limits nothing."""
    note(requests)


@batched_task(1, 60, app=app, name="rated", ignore_result=True, rate_limit="1000/s")
def rated(requests: list[SimpleRequest]) -> None:
    """Has as many runs in a second."""
    note(requests)


@batched_task(1, 60, app=app, name="limited", ignore_result=True, time_limit=30)
def limited(requests: list[SimpleRequest]) -> None:
    """Has a time limit for each run."""
    note(requests)


@batched_task(1, 60, app=app, name="dying", ignore_result=True)
def dying(requests: list[SimpleRequest]) -> None:
    """Kills its pool process once, in a batch that is not the first of its run."""
    mark, this = Path(os.environ["TEST_FOLDER"]) / "died", current_task.request.id
    again = any(run["run"] == this for run in ledger())
    note(requests)
    if again and not mark.exists():
        mark.touch()
        os._exit(1)
