"""The app of both sides: the same calls, options and functions, imported from another library.

The environment names the library, the server, and a file in which each run is noted.
"""

from __future__ import annotations

import os
import time
from importlib import import_module
from typing import Any

from celery import Celery

LIBRARY = os.environ["BENCHMARK_LIBRARY"]
SERVER = os.environ["BENCHMARK_SERVER"]
RUNS = os.environ["BENCHMARK_RUNS"]

OURS = LIBRARY == "redis_batches"
PAGE = "http://example.com/page".ljust(int(os.environ.get("BENCHMARK_PAYLOAD", "0")), "/")
#: An interval that no benchmark waits for: only full batches run.
NEVER = 3600
#: Requests of a batch, where a benchmark does not choose another number.
EVERY = int(os.environ.get("BENCHMARK_EVERY", "100"))
INTERVAL = float(os.environ.get("BENCHMARK_INTERVAL", "1"))

Batches = import_module(LIBRARY).Batches
app = Celery("benchmarks.workload", broker=f"{SERVER}/0", backend=f"{SERVER}/1")
if not OURS:
    # Its documentation asks for this; with the default of 4 a batch of 100 would never be full.
    app.conf.worker_prefetch_multiplier = 0

_runs = os.open(RUNS, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note_run(requests: list[Any]) -> None:
    """Notes when a run began, on a clock that all processes share, and how many requests it has."""
    os.write(_runs, f"{time.monotonic()} {len(requests)}\n".encode())


@app.task(base=Batches, flush_every=EVERY, flush_interval=NEVER, ignore_result=True)
def count_page(requests: list[Any]) -> None:
    """Stores no results."""
    note_run(requests)


@app.task(base=Batches, flush_every=10, flush_interval=NEVER, ignore_result=True)
def count_hot_page(requests: list[Any]) -> None:
    """Stores no results, in batches that fill up soon."""
    note_run(requests)


@app.task(base=Batches, flush_every=EVERY, flush_interval=INTERVAL, ignore_result=True)
def count_late_page(requests: list[Any]) -> None:
    """Stores no results; its batches are never full."""
    note_run(requests)


def find_titles(requests: list[Any]) -> list[str]:
    """Returns one result per request."""
    note_run(requests)
    return [request.args[0] for request in requests]


if OURS:
    title_page = import_module(LIBRARY).batched_task(
        app=app, name="title_page", flush_every=EVERY, flush_interval=NEVER
    )(find_titles)
else:

    @app.task(base=Batches, name="title_page", flush_every=EVERY, flush_interval=NEVER)
    def title_page(requests: list[Any]) -> None:
        """Stores one result per request, as the documentation of celery-batches shows it."""
        for request, title in zip(requests, find_titles(requests), strict=True):
            app.backend.mark_as_done(request.id, title, request=request)
