"""`flush_interval=0`: batches grow with the load by themselves."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean, quantiles

from benchmarks.bench import Bench, Section
from benchmarks.values import Column, Row, Values


def measure(bench: Bench, values: Values) -> None:
    """Offers more and more calls per second to one worker."""
    side = replace(bench.ours, load_seconds=bench.sizes.load_seconds)
    for _ in bench.each_round():
        for load in bench.sizes.loads:
            row = Row(f"{load:,} calls/s offered", "flush_interval=0")
            bench.begin(side, row.title)
            with side.worker():
                found = side.call("offer", "count_soon", load)
                # The first run finds processes that are still starting.
                runs = side.runs_of(int(found["calls"]))[1:]
            waits = quantiles([wait for run in runs for wait in run.waits], n=100)
            values.add(row, "rate", found["rate"])
            values.add(row, "size", mean(run.size for run in runs))
            values.add(row, "p50", 1000 * waits[49])
            values.add(row, "p99", 1000 * waits[98])


SECTION = Section(
    name="natural",
    title="flush_interval=0: batches grow with the load",
    note=(
        "A worker with 2 processes, a function that takes 5 ms, and one thread that calls at fixed"
        " times. A wait is from the call to the start of its run."
    ),
    columns=(
        Column("rate", "calls/s made"),
        Column("size", "requests of a batch, mean"),
        Column("p50", "wait p50", " ms"),
        Column("p99", "wait p99", " ms"),
    ),
    measure=measure,
)
