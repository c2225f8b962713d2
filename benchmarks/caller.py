"""The process of one side that calls its tasks, and prints what it measured as JSON.

    python -m benchmarks.caller MEASUREMENT TASK COUNT

It runs in either environment, so it imports nothing that only one of them has.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import time
from collections.abc import Callable
from statistics import median, quantiles
from threading import Barrier, Thread
from typing import Any

import redis

from benchmarks import workload
from benchmarks.bare import BareCalls
from benchmarks.sizes import PRODUCERS, WORKERS

WARM_UP = 100
THREADS = 16
#: Calls in a row, and bare commands in a row, while both take turns; about one doorbell each.
TURN = 100
#: The same for calls that one knows all at once.
BULK_TURN = 5000
#: Seconds after which a worker that runs nothing is idle, and that a run may take to begin.
PAUSE, PATIENCE = 0.01, 30


def make_calls(task: Any, count: int) -> None:
    """Calls a task many times with the same arguments."""
    for _ in range(count):
        task.delay(workload.PAGE)


def make_calls_at_once(task: Any, count: int) -> None:
    """Does the same by `delay_many`, where there is one."""
    if not hasattr(task, "delay_many"):
        make_calls(task, count)
        return
    for begin in range(0, count, 50_000):
        task.delay_many([(workload.PAGE,)] * min(50_000, count - begin))


def fill(task: Any, count: int) -> dict[str, float]:
    """Leaves exactly `count` calls waiting."""
    make_calls_at_once(task, count)
    return {}


def fill_singly(task: Any, count: int) -> dict[str, float]:
    """Does the same by `.delay()`."""
    make_calls(task, count)
    return {}


def rate(task: Any, count: int) -> dict[str, float]:
    """Measures calls per second of one thread, and for ours the limit, taking turns."""
    return in_turns(task, make_calls, count, TURN)


def heard(task: Any, count: int) -> dict[str, float]:
    """Measures the same while a signal has a receiver, as most tools that trace calls have."""
    workload.listen()
    return rate(task, count)


def bulk(task: Any, count: int) -> dict[str, float]:
    """Measures calls per second of one thread that has them all; theirs makes them one by one."""
    return in_turns(task, make_calls_at_once, count, BULK_TURN if workload.OURS else TURN)


def in_turns(
    task: Any, call: Callable[[Any, int], None], count: int, turn: int
) -> dict[str, float]:
    """Measures a way to make calls, and the bare commands that it comes down to."""
    make_calls(task, WARM_UP)
    bare = None
    if hasattr(task, "delay_many"):
        bare = BareCalls(f"{workload.SERVER}/0", lambda: call(task, count))
        commands = bare.count * turn // count
    in_calls, in_bare = [], []
    for _ in range(count // turn):
        in_calls.append(seconds(lambda: call(task, turn)))
        if bare is not None:
            in_bare.append(seconds(lambda: bare.send(commands)))
    # The median turn: what else runs on the machine disturbs some of them.
    measured = {"rate": turn / median(in_calls)}
    return measured if bare is None else {**measured, "limit": turn / median(in_bare)}


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


def remembered(task: Any, count: int) -> dict[str, float]:
    """Measures the server's bytes per finished request, while it is remembered."""
    from benchmarks.claims import Claims

    make_calls(task, WARM_UP)
    Claims(task).take_all()
    client = redis.Redis.from_url(workload.SERVER)
    before = used_memory(client)
    make_calls_at_once(task, count)
    if Claims(task).take_all() != count:
        raise RuntimeError(f"not all of {count} requests were claimed")
    return {"bytes": (used_memory(client) - before) / count}


def claims(task: Any, count: int) -> dict[str, float]:
    """Measures requests per second of processes that claim, decode and ack, and do nothing else."""
    from benchmarks.claims import claim_in_processes

    make_calls_at_once(task, count)
    return {"rate": claim_in_processes(task, count, workload.PROCESSES)}


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


def lateness(tasks: Any, count: int) -> dict[str, float]:
    """Measures seconds by which batches run later than their flush interval after the call."""
    wait_for_workers(1)
    found: list[list[float]] = [[] for _ in tasks]

    def work(task: Any, late: list[float]) -> None:
        with open(workload.RUNS) as runs:
            for _ in range(count + 1):
                # At any moment of the timers' periods.
                time.sleep(random.uniform(PAUSE, max(7 * PAUSE, task.flush_interval / 5)))
                called = time.monotonic()
                make_calls(task, 1)
                late.append(next_run(runs, task.name, 0.02)[0] - called - task.flush_interval)

    pool = [Thread(target=work, args=pair) for pair in zip(tasks, found, strict=True)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    # The first run of each is a warm-up.
    late = [value for one in found for value in one[1:]]
    if len(late) != count * len(tasks):
        raise RuntimeError("some batches did not run")
    percentiles = quantiles(late, n=100, method="inclusive")
    return {"p50": percentiles[49], "p99": percentiles[98], "least": min(late)}


def together(task: Any, count: int) -> dict[str, float]:
    """Makes calls in four processes; says when the first one began."""
    wait_for_workers(WORKERS)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(PRODUCERS + 1)

    def work() -> None:
        barrier.wait()
        make_calls(task, count // PRODUCERS)

    pool = [context.Process(target=work) for _ in range(PRODUCERS)]
    for process in pool:
        process.start()
    barrier.wait()
    began = time.monotonic()
    for process in pool:
        process.join()
        if process.exitcode:
            raise RuntimeError("a producer failed")
    return {"began": began}


def flood(task: Any, count: int) -> dict[str, float]:
    """Makes calls as fast as one process can, while a worker runs; says when it began."""
    wait_for_workers(1)
    began = time.monotonic()
    make_calls_at_once(task, count)
    return {"began": began, "called": time.monotonic()}


def offer(task: Any, count: int) -> dict[str, float]:
    """Makes `count` calls a second, with the time of each; returns how many it managed."""
    wait_for_workers(1)
    number = round(count * workload.LOAD_SECONDS)
    task.delay(time.monotonic())
    time.sleep(PAUSE)
    began = time.monotonic()
    for i in range(number):
        if (wait := began + i / count - time.monotonic()) > 0:
            time.sleep(wait)
        task.delay(time.monotonic())
    return {"calls": number + 1, "rate": number / (time.monotonic() - began)}


def wait_for_workers(count: int) -> None:
    """Waits until workers answer."""
    deadline = time.monotonic() + PATIENCE
    while len(workload.app.control.ping(timeout=0.5, limit=count) or ()) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{count} workers did not start within {PATIENCE} s")


def next_run(runs: Any, name: str = "-", pause: float = 0.001) -> tuple[float, int]:
    """Waits for the next line of a task in the file in which runs are noted.

    The worker notes the time, so it does not matter how soon the line is read.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        while not (line := runs.readline()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no batch ran within {PATIENCE} s")
            time.sleep(pause)
        started, size, whose, *_ = line.split()
        if whose == name:
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
    measure.__name__: measure
    for measure in (
        *(fill, fill_singly, rate, heard, bulk, threads, memory, remembered, claims),
        *(latency, lateness, together, flood, offer),
    )
}

if __name__ == "__main__":
    measurement, task_name, count_text = sys.argv[1:]
    print(json.dumps(MEASUREMENTS[measurement](getattr(workload, task_name), int(count_text))))
