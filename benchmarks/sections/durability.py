"""What a caller pays for a server that writes what it stores to disk."""

from __future__ import annotations

from statistics import median

from benchmarks.bench import Bench, Section
from benchmarks.stores import HOUR_MS, push, store_at, timed
from benchmarks.values import Column, Row, Values
from redis_batches.buffer.store import Store
from redis_batches.core.triggers import Trigger
from redis_batches.testing.server import EmbeddedServer

TRIGGER = Trigger(100, HOUR_MS)
WARM_UP = 20
ONE, MANY = "push of 1", "push of 500, per request"
CONFIGS = {
    "no persistence": {"appendonly": "no"},
    "appendfsync everysec": {"appendonly": "yes", "appendfsync": "everysec"},
    "appendfsync always": {"appendonly": "yes", "appendfsync": "always"},
}


def measure(bench: Bench, values: Values) -> None:
    """One server after the other, in every round."""
    calls = bench.sizes.script_calls
    for _ in bench.each_round():
        names = [*CONFIGS] if bench.round % 2 else [*reversed(CONFIGS)]
        for name in names:
            bench.say(f"round {bench.round} of {bench.rounds}: {name}")
            with EmbeddedServer(config=CONFIGS[name]) as server:
                store = store_at(server)
                _pushes(store, 1, WARM_UP)
                one, many = _pushes(store, 1, calls), _pushes(store, 500, calls // 8) / 500
            values.add(Row(f"{ONE}, {name}", "µs", True), "time", one)
            values.add(Row(f"{MANY}, {name}", "µs", True), "time", many)
    for kind in (ONE, MANY):
        rows = [Row(f"{kind}, {name}", "µs", True) for name in CONFIGS]
        values.relate("of_none", "time", rows)


def _pushes(store: Store, count: int, calls: int) -> float:
    return median(timed(lambda: push(store, TRIGGER, count)) for _ in range(calls))


SECTION = Section(
    name="durability",
    title="What durability costs a caller",
    note="The medians of script calls, as a client sees them, on a server of each setting.",
    columns=(Column("time", "takes"), Column("of_none", "of no persistence", "x")),
    measure=measure,
)
