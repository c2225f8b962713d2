"""How throughput grows with processes, and what one core of Redis carries."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import median

import psutil
import redis

from benchmarks.bench import Bench, Section
from benchmarks.sections.drains import rate_of
from benchmarks.stores import cpu_seconds
from benchmarks.values import Column, Row, Values

LOT = 100_000
PUSHES = {"delay_many()": "fill", ".delay()": "fill_singly"}


@dataclass(frozen=True)
class Moment:
    """Processor time so far.

    Attributes:
        when: On the clock of the runs.
        server: Seconds of the server.
        worker: Seconds of the worker's processes.
    """

    when: float
    server: float
    worker: float

    @classmethod
    def now(cls, client: redis.Redis, pid: int) -> Moment:
        """Looks at the server and at a worker."""
        process = psutil.Process(pid)
        times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
        used = sum(t.user + t.system for t in times)
        return cls(time.monotonic(), cpu_seconds(client), used)


def measure(bench: Bench, values: Values) -> None:
    """Pushes, then drains with more and more processes."""
    with redis.Redis.from_url(bench.server.url) as client:
        for _ in bench.each_round():
            pushed = {name: _push(bench, values, client, name) for name in PUSHES}
            drained = [_drain(bench, values, client, count) for count in bench.sizes.processes]
            for name, cost in pushed.items():
                row = Row(f"what one core of Redis carries, {name} and drain", "requests/s")
                values.add(row, "rate", 1 / (cost + median(drained)))


def _push(bench: Bench, values: Values, client: redis.Redis, name: str) -> float:
    """Returns the server's seconds per request, from the calls to Redis."""
    row = Row(f"push by {name}", "requests/s")
    bench.begin(bench.ours, row.title)
    count = bench.sizes.in_bulk if name == "delay_many()" else 5 * bench.sizes.calls
    before = cpu_seconds(client)
    bench.ours.call(PUSHES[name], "count_page", count)
    cost = (cpu_seconds(client) - before) / count
    values.add(row, "server", cost * LOT)
    return cost


def _drain(bench: Bench, values: Values, client: redis.Redis, processes: int) -> float:
    """Returns the server's seconds per request, from the claims to the acks."""
    side = replace(bench.ours, processes=processes)
    row = Row(f"drain by {processes} {'process' if processes == 1 else 'processes'}", "requests/s")
    bench.begin(side, row.title)
    count = 2 * bench.sizes.drained_by_ours
    side.call("fill", "count_page", count)
    with side.worker() as pid:
        side.runs_of(1)
        before = Moment.now(client, pid)
        runs = side.runs_of(count)
        after = Moment.now(client, pid)
    done = sum(run.size for run in runs if run.started > before.when)
    values.add(row, "rate", rate_of(runs))
    values.add(row, "server", (after.server - before.server) / done * LOT)
    values.add(row, "worker", (after.worker - before.worker) / done * LOT)
    return (after.server - before.server) / done


SECTION = Section(
    name="scaling",
    title="What one core of Redis carries",
    note=(
        "Batches of 100 without results. Server and worker: seconds of processor time for"
        f" {LOT:,} requests. What one core carries is 1 / the server's time of a request, from its"
        " call to its ack, doorbells included: what a server does that does nothing else."
    ),
    columns=(
        Column("rate", "rate"),
        Column("server", f"server, {LOT:,}", " s"),
        Column("worker", f"worker, {LOT:,}", " s"),
    ),
    measure=measure,
)
