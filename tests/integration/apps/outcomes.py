"""Tasks that settle their requests in every way there is."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject

from redis_batches import Batches, SimpleRequest, batched_task
from tests.support.ledger import ledger, record

app = Celery(
    "outcomes",
    broker=os.environ.get("TEST_BROKER", "redis://127.0.0.1:1/0"),
    backend=os.environ.get("TEST_BACKEND"),
)
app.conf.update(broker_connection_retry_on_startup=True, redis_batches_sweep_interval=0.2)
TRIGGER: dict[str, Any] = {"flush_every": 4, "flush_interval": 0.2}


class Wrong(Exception):
    """What these tasks raise."""


@batched_task(**TRIGGER, app=app)
def by_dict(requests: list[SimpleRequest]) -> dict[str, Any]:
    """Returns results by id; one is missing, one is an exception."""
    results: dict[str, Any] = {}
    for request in requests:
        if request.args[0] == 1:
            results[request.id] = Wrong("one")
        elif request.args[0] != 2:
            results[request.id] = request.args[0]
    return results


@batched_task(**TRIGGER, app=app)
def nothing(requests: list[SimpleRequest]) -> None:
    """Returns nothing."""


@batched_task(**TRIGGER, app=app)
def too_few(requests: list[SimpleRequest]) -> list[int]:
    """Returns a result too few."""
    return [0] * (len(requests) - 1)


@batched_task(**TRIGGER, app=app)
def a_count(requests: list[SimpleRequest]) -> int:
    """Returns what says nothing about a request."""
    return len(requests)


@batched_task(**TRIGGER, app=app)
def unserializable(requests: list[SimpleRequest]) -> list[Any]:
    """Returns one result that JSON cannot hold."""
    return [object() if request.args[0] == 1 else request.args[0] for request in requests]


@batched_task(**TRIGGER, app=app)
def one_by_one(requests: list[SimpleRequest]) -> None:
    """Settles each request itself, then raises."""
    requests[0].succeed("first")
    requests[1].fail(Wrong("second"))
    requests[2].succeed("third")
    requests[2].succeed("too late")
    raise Wrong("the rest")


@app.task(base=Batches, **TRIGGER)
def by_backend(requests: list[SimpleRequest]) -> str:
    """Settles through the result backend, as old code does, also what was not supported."""
    app.backend.mark_as_done(requests[0].id, "first", request=requests[0])
    app.backend.mark_as_failure(requests[1].id, Wrong("second"), request=requests[1])
    if requests[2].attempt == 1:
        app.backend.mark_as_retry(requests[2].id, Wrong("third"), request=requests[2])
    return "only for signals"


@app.task(base=Batches, **TRIGGER)
def raising(requests: list[SimpleRequest]) -> None:
    """Raises."""
    raise Wrong("all of it")


@batched_task(**TRIGGER, app=app, autoretry_for=(Wrong,), max_retries=2, default_retry_delay=0)
def auto(requests: list[SimpleRequest]) -> list[str]:
    """Fails twice, or for ever."""
    record(requests)
    if requests[0].args[0] == "never" or requests[0].retries < 2:
        raise Wrong(f"retries {requests[0].retries}")
    return [f"retries {request.retries}" for request in requests]


@batched_task(**TRIGGER, app=app, bind=True, max_retries=1)
def by_self(self: Any, requests: list[SimpleRequest]) -> list[Any]:
    """Decides one request, then retries the others."""
    record(requests)
    if requests[0].retries == 0:
        requests[0].succeed("at first")
        raise self.retry(countdown=0.1, exc=Wrong("later"))
    return ["later"] * len(requests)


@batched_task(**TRIGGER, app=app, max_retries=1)
def one_retries(requests: list[SimpleRequest]) -> None:
    """Retries a single request until it has no tries left."""
    record(requests)
    for request in requests:
        if request.args[0] == "again":
            request.retry(countdown=0, exc=Wrong(f"retries {request.retries}"))


@batched_task(**TRIGGER, app=app)
def ignoring(requests: list[SimpleRequest]) -> None:
    """Ignores what it has not settled."""
    requests[0].succeed("kept")
    raise Ignore


@batched_task(**TRIGGER, app=app)
def rejecting(requests: list[SimpleRequest]) -> None:
    """Rejects its requests: once back into the queue, or for good."""
    record(requests)
    if requests[0].args[0] == "for good":
        raise Reject("no", requeue=False)
    if len([run for run in ledger() if run["ids"] == [r.id for r in requests]]) == 1:
        raise Reject("not now", requeue=True)


@batched_task(**TRIGGER, app=app, time_limit=1)
def too_long(requests: list[SimpleRequest]) -> None:
    """Runs into its hard time limit."""
    import time

    requests[0].succeed("in time")
    time.sleep(30)


@batched_task(**TRIGGER, app=app, acks_late=False)
def at_most_once(requests: list[SimpleRequest]) -> None:
    """Kills its worker's child."""
    record(requests)
    os._exit(9)


@batched_task(flush_every=8, flush_interval=0.2, app=app)
def poisoned(requests: list[SimpleRequest]) -> list[str]:
    """Dies of one of its requests."""
    record(requests)
    if any(request.args[0] == "poison" for request in requests):
        os._exit(9)
    return ["well"] * len(requests)


@batched_task(**TRIGGER, app=app)
def nested(requests: list[SimpleRequest]) -> list[Any]:
    """Calls other tasks from inside a batch."""
    return [add.delay(request.args[0], 1).id for request in requests]


@app.task
def add(a: int, b: int) -> int:
    """A plain task, for chains and chords."""
    return a + b


@app.task
def total(numbers: list[int]) -> int:
    """The body of a chord."""
    return sum(numbers)


@app.task
def note_error(request: Any, exc: Any, traceback: Any) -> None:
    """An errback."""
    from pathlib import Path

    Path(os.environ["TEST_FOLDER"], "errors").write_text(f"{request.id} {exc!r}")


@batched_task(**TRIGGER, app=app)
def double(requests: list[SimpleRequest]) -> list[int]:
    """A batch step for chains and chords."""
    return [2 * request.args[0] for request in requests]


@app.task(base=Batches, **TRIGGER)
def double_by_backend(requests: list[SimpleRequest]) -> None:
    """The same, as old code does it, and without `request=`."""
    for request in requests:
        app.backend.mark_as_done(request.id, 2 * request.args[0])
