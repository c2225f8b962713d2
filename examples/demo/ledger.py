"""What the tasks write down: each run with the ids of its calls, and the clicks of each page.

It is the demo's evidence, written by the functions that ran and not by the library under test.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache

import redis

from redis_batches import SimpleRequest

#: Names the database of the ledger.
URL_VARIABLE = "DEMO_LEDGER_URL"
_RUNS, _CLICKS = "runs", "clicks"


@dataclass(frozen=True)
class Run:
    """One run of a batch function.

    Attributes:
        task: The function's own name.
        worker: Node name of the worker, without the host.
        ids: The calls that it got.
        full: Whether these are as many as make a batch due; if not, the interval did.
        waited: Seconds that the oldest of them had waited.
        at: When it ran (Unix time).
    """

    task: str
    worker: str
    ids: list[str]
    full: bool
    waited: float
    at: float


def record(requests: Sequence[SimpleRequest], flush_every: int) -> None:
    """Writes down that these calls have been executed, now and in this worker."""
    first, now = requests[0], time.time()
    since = [request.enqueued_at.timestamp() for request in requests if request.enqueued_at]
    run = Run(
        task=first.name.rpartition(".")[2],
        worker=str(first.hostname).partition("@")[0],
        ids=[request.id for request in requests],
        full=len(requests) == flush_every,
        waited=now - min(since, default=now),
        at=now,
    )
    _database().rpush(_RUNS, json.dumps(asdict(run)))


def add_clicks(clicks: Mapping[str, int]) -> None:
    """Adds to the clicks of each page."""
    with _database().pipeline() as pipe:
        for page, count in clicks.items():
            pipe.hincrby(_CLICKS, page, count)
        pipe.execute()


def read_runs(start: int) -> list[Run]:
    """Returns the runs written down so far, without the first `start` ones."""
    return [Run(**json.loads(line)) for line in _database().lrange(_RUNS, start, -1)]


def read_clicks() -> Counter[str]:
    """Returns the clicks of each page."""
    found = _database().hgetall(_CLICKS)
    return Counter({str(page): int(count) for page, count in found.items()})


def shares(runs: Iterable[Run]) -> dict[str, int]:
    """Returns how many calls each worker executed."""
    counts: Counter[str] = Counter()
    for run in runs:
        counts[run.worker] += len(run.ids)
    return dict(sorted(counts.items()))


@cache
def _database() -> redis.Redis:
    return redis.Redis.from_url(os.environ[URL_VARIABLE], decode_responses=True)
