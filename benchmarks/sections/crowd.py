"""Producers and workers at the same time."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from benchmarks.bench import Bench
from benchmarks.sizes import WORKERS
from benchmarks.values import Row, Values


def together(bench: Bench, values: Values) -> None:
    """Four producers call `.delay()`, and two workers run, all at once."""
    row = Row("4 producers and 2 workers at once, end to end", "requests/s")
    for side, count in zip(bench.sides, bench.sizes.together, strict=True):
        one = replace(side, processes=1)
        bench.begin(one, row.title)
        with ExitStack() as stack:
            for number in range(WORKERS):
                stack.enter_context(one.worker(number + 1))
            began = one.call("together", "count_crowd_page", count)["began"]
            runs = one.runs_of(count)
        # What is left in the end waits for its flush interval, which is no work.
        full = [run for run in runs if run.size == one.every]
        done = sum(run.size for run in full)
        values.add(row, side.name, done / (full[-1].started - began))


def flood(bench: Bench, values: Values) -> None:
    """One producer calls `delay_many()` while a worker drains, and every request is counted."""
    side, count = bench.ours, bench.sizes.flood
    title = f"{count:,} requests end to end, delay_many() and a worker at once"
    bench.begin(side, title)
    with side.worker():
        found = side.call("flood", "count_page", count)
        runs = side.runs_of(count)
    ran = sum(run.size for run in runs)
    if ran != count:
        raise RuntimeError(f"{ran:,} requests ran, {count:,} were called")
    seconds = runs[-1].started - found["began"]
    values.add(Row(title, "s", less_is_better=True), "ours", seconds)
    values.add(Row(f"{title}, the rate", "requests/s"), "ours", count / seconds)
    values.add(
        Row(f"{title}, the calls alone", "s", True), "ours", found["called"] - found["began"]
    )
