"""How soon a batch that is due begins to run."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.bench import Bench
from benchmarks.values import Row, Values


def latency(bench: Bench, values: Values) -> None:
    """Fills batches one by one for an idle worker."""
    for side in bench.turns:
        bench.begin(side, "latency")
        with side.worker():
            found = side.call("latency", "count_hot_page", bench.sizes.samples)
        for name in ("p50", "p99"):
            row = Row(f"the call that fills a batch to its run, {name}", "ms", True)
            values.add(row, side.name, 1000 * found[name])


def lateness(bench: Bench, values: Values) -> None:
    """Calls once and waits for the flush interval to end."""
    for interval, samples in bench.sizes.intervals:
        for side in bench.turns:
            changed = replace(side, interval=interval)
            bench.begin(changed, f"lateness of {interval:g} s")
            with changed.worker():
                found = changed.call("lateness", "late_pages", samples)
            for name in ("p50", "p99", "least"):
                # Theirs may come early: then it waited for less than was asked for.
                title = f"run after a flush_interval of {interval:g} s, {name}"
                row = Row(title, "ms late", less_is_better=True, has_ratio=False)
                values.add(row, side.name, 1000 * found[name])
