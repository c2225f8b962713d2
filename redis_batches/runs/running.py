"""The requests that run in this process, by their ids.

Whoever names a request, in whatever thread, finds who settles it: code that calls the result
backend itself, and the function that calls its task again with the id of one of its requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from redis_batches.runs.request import RunningBatch, Settler, SimpleRequest

_T = TypeVar("_T")

running: dict[str, Settler] = {}


def call(settler: Settler, function: Callable[[list[SimpleRequest]], _T]) -> _T:
    """Calls a batch function with the requests of a run, in a list of its own.

    Args:
        settler: Who settles them.
        function: The user's batch function.
    """
    batch = settler.batch
    batch.called = True
    requests = batch.requests
    seen = RunningBatch(settler.lease, max((r.attempt for r in requests), default=1))
    for request in requests:
        request.attach(seen, settler)
    with found_by(settler, [request.id for request in requests]):
        return function(list(requests))


@contextmanager
def found_by(settler: Settler, ids: Sequence[str]) -> Iterator[None]:
    """Lets whoever names one of some requests find who settles them."""
    before = {task_id: running.get(task_id) for task_id in ids}
    running.update(dict.fromkeys(ids, settler))
    try:
        yield
    finally:
        for task_id, other in before.items():
            # A newer run of the request, in another thread, may be found by now.
            if running.get(task_id) is not settler:
                continue
            if other is None:
                del running[task_id]
            else:
                running[task_id] = other
