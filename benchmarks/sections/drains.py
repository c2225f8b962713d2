"""How fast a worker runs what waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.bench import Bench
from benchmarks.side import Run, Side
from benchmarks.values import Row, Values

UNIT = "requests/s"
#: Our task, and the task of plain Celery that does the same.
TASKS = {"": ("count_page", "count_plain"), ", a result each": ("title_page", "title_plain")}


def batches(bench: Bench, values: Values) -> None:
    """Drains in batches."""
    for more, (task, _) in TASKS.items():
        for every, processes, payload in bench.sizes.drains:
            row = _row(every, processes, payload, more)
            chosen = (every, processes, payload)
            for side in bench.turns:
                changed = replace(side, every=every, processes=processes, payload=payload)
                if side is bench.ours:
                    count = requests_of(bench, every, task)
                elif chosen in bench.sizes.compared:
                    count = max(bench.sizes.drained_by_theirs, 4 * every)
                else:
                    continue
                bench.begin(changed, row.title)
                values.add(row, side.name, drain_rate(changed, count, task))
                if side is bench.ours:
                    bench.begin(changed, f"{row.title}, the limit")
                    values.add(row, "limit", changed.call("claims", task, count)["rate"])


def plain(bench: Bench, values: Values) -> None:
    """Drains one task per request, with Celery's default prefetching."""
    for more, (_, task) in TASKS.items():
        for chosen in bench.sizes.drains:
            every, processes, payload = chosen
            if (every, payload) != (100, 50):
                continue
            bench.begin(bench.ours, f"drain{more}, plain Celery")
            side = replace(bench.ours, processes=processes)
            rate = drain_rate(side, bench.sizes.drained_by_theirs, task)
            values.add(_row(*chosen, more), "plain", rate)


def requests_of(bench: Bench, every: int, task: str) -> int:
    """Returns how many requests we drain: whole batches, for about as long whatever their size."""
    share = 1.0 if task == "count_page" else 0.5
    share *= {10: 0.25, 1000: 2.0}.get(every, 1.0)
    return max(round(bench.sizes.drained_by_ours * share / every), 4) * every


def drain_rate(side: Side, requests: int, task: str) -> float:
    """Returns requests per second between the first start of a run and the last."""
    side.call("fill", task, requests)
    with side.worker():
        runs = side.runs_of(requests)
    return rate_of(runs)


def rate_of(runs: Sequence[Run]) -> float:
    """Returns requests per second of some runs, first to last."""
    # The last run's own requests are not done when it starts.
    return sum(run.size for run in runs[:-1]) / (runs[-1].started - runs[0].started)


def _row(every: int, processes: int, payload: int, more: str) -> Row:
    kind = "process" if processes == 1 else "processes"
    size = "" if payload == 50 else f", {payload:,} B"
    return Row(f"drain by {processes} {kind}, batches of {every:,}{size}{more}", UNIT)
