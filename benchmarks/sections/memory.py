"""What requests need in Redis, and a worker with a long backlog."""

from __future__ import annotations

import psutil

from benchmarks.bench import Bench
from benchmarks.values import Row, Values

WAITING = Row("memory of a waiting request", "B in Redis", less_is_better=True)
REMEMBERED = Row("memory of a finished request, while remembered", "B in Redis", True)


def waiting(bench: Bench, values: Values) -> None:
    """What the server needs for requests that wait."""
    for side in bench.turns:
        bench.begin(side, WAITING.title)
        found = side.call("memory", "count_page", bench.sizes.in_memory)
        values.add(WAITING, side.name, found["bytes"])


def remembered(bench: Bench, values: Values) -> None:
    """What the server needs for two minutes to know a call that comes twice; theirs knows none."""
    bench.begin(bench.ours, REMEMBERED.title)
    found = bench.ours.call("remembered", "count_page", bench.sizes.in_memory)
    values.add(REMEMBERED, "ours", found["bytes"])


def worker(bench: Bench, values: Values) -> None:
    """What the worker's processes need after a backlog, short or long; theirs does the short."""
    for index, count in enumerate(bench.sizes.backlogs):
        row = Row(f"memory of a worker that drained {count:,}", "MB of its processes", True)
        for side in bench.turns:
            if index and side is not bench.ours:
                continue
            bench.begin(side, row.title)
            side.call("fill", "count_page", count)
            with side.worker() as pid:
                side.runs_of(count)
                values.add(row, side.name, proportional_set(pid) / 1e6)


def proportional_set(pid: int) -> float:
    """Returns the bytes of a process and its children; what they share is counted once."""
    process = psutil.Process(pid)
    family = (process, *process.children(recursive=True))
    full = [member.memory_full_info() for member in family]
    return float(sum(getattr(info, "pss", info.uss) for info in full))
