"""Batch tasks that tell how they were called."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, Task

from redis_batches import SimpleRequest, batched_task
from tests.support.ledger import note, record

app = Celery(
    "calling",
    broker=os.environ.get("TEST_BROKER", "redis://127.0.0.1:1/0"),
    backend=os.environ.get("TEST_BACKEND"),
)
app.conf.update(
    broker_connection_retry_on_startup=True,
    redis_batches_sweep_interval=0.2,
    accept_content=["json", "pickle"],
    result_serializer="json",
    timezone="Asia/Tokyo",
)


@batched_task(flush_every=3, flush_interval=0.2, app=app)
def tell(requests: list[SimpleRequest]) -> list[Any]:
    """Returns what each request says of its call."""
    record(requests)
    names = ("shadow", "ignore_result", "stamps", "reply_to", "properties", "mine")
    return [
        {
            "name": request.name,
            "args": repr(request.args),
            "kwargs": repr(request.kwargs),
            "delivery_info": request.delivery_info,
            **{name: request.request_dict.get(name) for name in names},
        }
        for request in requests
    ]


@batched_task(flush_every=3, flush_interval=0.2, app=app, ignore_result=True)
def silent(requests: list[SimpleRequest]) -> list[Any]:
    """Stores no result, unless the call wants one."""
    return [request.args[0] for request in requests]


@app.task(bind=True)
def calls(self: Task[Any, Any], add_to_parent: bool) -> str:
    """Calls a batch task from inside a plain one."""
    return str(tell.apply_async((1,), add_to_parent=add_to_parent).id)


@app.task(bind=True)
def replaced(self: Task[Any, Any]) -> Any:
    """Lets a batch take the place of a plain task."""
    return self.replace(silent.s(7).set(ignore_result=False))


@app.task
def linked(value: Any) -> None:
    """Is linked."""
    note("linked", value)
