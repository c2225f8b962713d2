"""The process of one side that calls its tasks, and prints what it measured as JSON.

    python -m benchmarks.caller MEASUREMENT TASK COUNT

It runs in either environment, so it imports nothing that only one of them has.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from statistics import median, quantiles
from threading import Barrier, Thread
from typing import Any

import redis

from benchmarks import workload
from benchmarks.bare import BareCalls

WARM_UP = 100
THREADS = 16
#: Calls in a row, and bare commands in a row, while both take turns; about one doorbell each.
TURN = 100
#: Seconds after which a worker that runs nothing is idle, and that a run may take to begin.
PAUSE, PATIENCE = 0.01, 30


def make_calls(task: Any, count: int) -> None:
    """Calls a task many times with the same arguments."""
    for _ in range(count):
        task.delay(workload.PAGE)


def fill(task: Any, count: int) -> dict[str, float]:
    """Leaves exactly `count` calls waiting."""
    make_calls(task, count)
    return {}


def rate(task: Any, count: int) -> dict[str, float]:
    """Measures calls per second of one thread, and for ours the limit, taking turns."""
    make_calls(task, WARM_UP)
    bare = None
    if workload.OURS:
        bare = BareCalls(f"{workload.SERVER}/0", lambda: make_calls(task, count))
    in_calls, in_bare = [], []
    for _ in range(count // TURN):
        in_calls.append(seconds(lambda: make_calls(task, TURN)))
        if bare is not None:
            in_bare.append(seconds(lambda: bare.send(TURN)))
    # The median turn: what else runs on the machine disturbs some of them.
    measured = {"rate": TURN / median(in_calls)}
    return measured if bare is None else {**measured, "limit": TURN / median(in_bare)}


def bulk(task: Any, count: int) -> dict[str, float]:
    """Measures calls per second of one thread that has them all; theirs makes them one by one."""
    make_calls(task, WARM_UP)
    if not workload.OURS:
        return {"rate": count / seconds(lambda: make_calls(task, count))}
    calls = [(workload.PAGE,)] * count
    return {"rate": count / seconds(lambda: task.delay_many(calls))}


def threads(task: Any, count: int) -> dict[str, float]:
    """Measures calls per second of 16 threads together."""
    barrier = Barrier(THREADS + 1)

    def work() -> None:
        make_calls(task, WARM_UP // THREADS)
        barrier.wait()
        make_calls(task, count // THREADS)

    pool = [Thread(target=work) for _ in range(THREADS)]
    for thread in pool:
        thread.start()
    barrier.wait()

    def join() -> None:
        for thread in pool:
            thread.join()

    return {"rate": count // THREADS * THREADS / seconds(join)}


def memory(task: Any, count: int) -> dict[str, float]:
    """Measures the server's bytes per waiting request."""
    make_calls(task, WARM_UP)
    client = redis.Redis.from_url(workload.SERVER)
    before = used_memory(client)
    make_calls(task, count)
    return {"bytes": (used_memory(client) - before) / count}


def latency(task: Any, count: int) -> dict[str, float]:
    """Measures seconds from the call that fills a batch to the start of its run."""
    waits = []
    with open(workload.RUNS) as runs:
        for _ in range(WARM_UP // task.flush_every + count):
            make_calls(task, task.flush_every - 1)
            time.sleep(PAUSE)
            called = time.monotonic()
            make_calls(task, 1)
            started, size = next_run(runs)
            if size != task.flush_every:
                raise RuntimeError(f"a batch of {size} requests ran")
            waits.append(started - called)
    percentiles = quantiles(waits[-count:], n=100)
    return {"p50": percentiles[49], "p99": percentiles[98]}


def lateness(task: Any, count: int) -> dict[str, float]:
    """Measures seconds by which batches run later than their flush interval after the call."""
    late = []
    with open(workload.RUNS) as runs:
        for number in range(count + 1):
            time.sleep(PAUSE * (1 + number % 7))
            called = time.monotonic()
            make_calls(task, 1)
            late.append(next_run(runs)[0] - called - task.flush_interval)
    # The first run finds a worker that is still starting.
    percentiles = quantiles(late[1:], n=100)
    return {"p50": percentiles[49], "p99": percentiles[98], "least": min(late[1:])}


def next_run(runs: Any) -> tuple[float, int]:
    """Waits for the next line of the file in which runs are noted."""
    deadline = time.monotonic() + PATIENCE
    while not (line := runs.readline()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no batch ran within {PATIENCE} s")
        time.sleep(0.001)
    started, size = line.split()
    return float(started), int(size)


def used_memory(client: redis.Redis) -> int:
    """Returns the bytes that the server has allocated."""
    client.memory_purge()
    info: Any = client.info("memory")
    return int(info["used_memory"])


def seconds(work: Callable[[], object]) -> float:
    """Returns how long a piece of work takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


MEASUREMENTS = {
    measure.__name__: measure for measure in (fill, rate, bulk, threads, memory, latency, lateness)
}

if __name__ == "__main__":
    measurement, task_name, count_text = sys.argv[1:]
    print(json.dumps(MEASUREMENTS[measurement](getattr(workload, task_name), int(count_text))))
