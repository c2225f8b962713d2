"""The app of both sides: the same calls, options and functions, imported from another library.

The environment names the library, the server, and a file in which each run is noted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from celery import Celery
from celery.signals import before_task_publish

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
#: Of the worker, or of what does its work without Celery.
PROCESSES = int(os.environ.get("BENCHMARK_PROCESSES", "2"))
#: Seconds for which calls are offered, and that a run of `count_soon` takes.
LOAD_SECONDS = float(os.environ.get("BENCHMARK_LOAD_SECONDS", "1"))
RUN_TIME = 0.005

Batches = import_module(LIBRARY).Batches
app = Celery("benchmarks.workload", broker=f"{SERVER}/0", backend=f"{SERVER}/1")
if not OURS:
    # Its documentation asks for this; with the default of 4 a batch of 100 would never be full.
    app.conf.worker_prefetch_multiplier = 0

_runs = os.open(RUNS, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def listen() -> None:
    """Connects a receiver that does nothing to the signal of a call."""
    before_task_publish.connect(_hear)


def _hear(**_: Any) -> None:
    """Hears of a call."""


def note_run(size: int, name: str = "-", waits: Sequence[float] = ()) -> None:
    """Notes a run.

    Args:
        size: Its number of requests.
        name: Whose it is, if several tasks run at once.
        waits: Seconds since the call of each request.
    """
    # A clock that all processes share.
    line = (f"{time.monotonic()}", f"{size}", name, *(f"{wait:.6f}" for wait in waits))
    os.write(_runs, f"{' '.join(line)}\n".encode())


@app.task(base=Batches, flush_every=EVERY, flush_interval=NEVER, ignore_result=True)
def count_page(requests: list[Any]) -> None:
    """Stores no results."""
    note_run(len(requests))


@app.task(base=Batches, flush_every=10, flush_interval=NEVER, ignore_result=True)
def count_hot_page(requests: list[Any]) -> None:
    """Stores no results, in batches that fill up soon."""
    note_run(len(requests))


@app.task(base=Batches, flush_every=EVERY, flush_interval=1, ignore_result=True)
def count_crowd_page(requests: list[Any]) -> None:
    """Stores no results; what is left runs soon, for buffers of several workers may hold it."""
    note_run(len(requests))


def make_late_task(name: str) -> Any:
    """Returns a task that stores no results, and whose batches are never full."""

    def count_late_page(requests: list[Any]) -> None:
        note_run(len(requests), name)

    options: dict[str, Any] = {"base": Batches, "name": name, "ignore_result": True}
    options |= {"flush_every": 1000, "flush_interval": INTERVAL}
    return app.task(**options)(count_late_page)


#: Several, for an interval that is too long to be waited for again and again.
late_pages = [make_late_task(f"count_late_page_{i}") for i in range(10 if INTERVAL > 1 else 1)]


def find_titles(requests: list[Any]) -> list[str]:
    """Returns one result per request."""
    note_run(len(requests))
    return [request.args[0] for request in requests]


if OURS:
    title_page = import_module(LIBRARY).batched_task(
        app=app, name="title_page", flush_every=EVERY, flush_interval=NEVER
    )(find_titles)

    @app.task(base=Batches, flush_every=1000, flush_interval=0, ignore_result=True)
    def count_soon(requests: list[Any]) -> None:
        """Runs what waits as soon as a process is free; an argument is the time of the call."""
        now = time.monotonic()
        note_run(len(requests), waits=[now - request.args[0] for request in requests])
        time.sleep(RUN_TIME)

    @app.task(ignore_result=True)
    def count_plain(page: str) -> None:
        """Plain Celery: one task per request."""
        note_run(1)

    @app.task
    def title_plain(page: str) -> str:
        """Plain Celery, with a result."""
        note_run(1)
        return page

else:

    @app.task(base=Batches, name="title_page", flush_every=EVERY, flush_interval=NEVER)
    def title_page(requests: list[Any]) -> None:
        """Stores one result per request, as the documentation of celery-batches shows it."""
        for request, title in zip(requests, find_titles(requests), strict=True):
            app.backend.mark_as_done(request.id, title, request=request)
