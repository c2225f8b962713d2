"""How fast a process can call: `.delay()` and `delay_many()`."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.bench import Bench
from benchmarks.side import Side
from benchmarks.values import Row, Values

UNIT = "calls/s"
PAYLOADS = {50: "50 B", 300: "300 B", 5000: "5 KB"}
#: Our task, and the task of plain Celery that does the same.
TASKS = {"": ("count_page", "count_plain"), ", Redis result backend": ("title_page", "title_plain")}


def delay(bench: Bench, values: Values) -> None:
    """`.delay()` from one thread."""
    for more, (task, plain) in TASKS.items():
        for payload, size in PAYLOADS.items():
            row = Row(f".delay() of {size}{more}", UNIT)
            for side in bench.turns:
                _measure(bench, values, row, "rate", replace(side, payload=payload), task)
            if payload == 50:
                bench.begin(bench.ours, f"{row.title}, plain Celery")
                found = bench.ours.call("rate", plain, bench.sizes.calls)
                values.add(row, "plain", found["rate"])


def heard(bench: Bench, values: Values) -> None:
    """`.delay()` while a signal has a receiver, so that every call takes Celery's general path."""
    row = Row(".delay() of 50 B, a signal has a receiver", UNIT)
    for side in bench.turns:
        _measure(bench, values, row, "heard", side, "count_page")


def threads(bench: Bench, values: Values) -> None:
    """`.delay()` from 16 threads of a process."""
    row = Row(".delay(), 16 threads together", UNIT)
    for side in bench.turns:
        count = bench.sizes.calls * (4 if side is bench.ours else 1)
        _measure(bench, values, row, "threads", side, "count_page", count)


def bulk(bench: Bench, values: Values) -> None:
    """`delay_many()`, beside what celery-batches has for it: `.delay()`."""
    row = Row("delay_many(), theirs .delay()", UNIT)
    for side in bench.turns:
        count = bench.sizes.in_bulk if side is bench.ours else bench.sizes.calls
        _measure(bench, values, row, "bulk", side, "count_page", count)


def _measure(
    bench: Bench, values: Values, row: Row, how: str, side: Side, task: str, count: int = 0
) -> None:
    bench.begin(side, row.title)
    found = side.call(how, task, count or bench.sizes.calls)
    values.add(row, side.name, found["rate"])
    if "limit" in found:
        values.add(row, "limit", found["limit"])
