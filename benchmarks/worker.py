"""`python -m benchmarks.worker`: what `python -m benchmarks` leaves out of the worker's side.

How fast a backlog drains by size of the batches and number of processes, how late an interval ends,
and for how long each script keeps the server from everybody else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import redis
from rich.console import Console
from rich.table import Table

from benchmarks.figures import drain_rate
from benchmarks.peer import peer_python
from benchmarks.side import Side
from redis_batches.config import Settings
from redis_batches.embedded import EmbeddedServer
from redis_batches.lease import Lease
from redis_batches.model import Group, Outcome, Outgoing, Trigger, Verb
from redis_batches.store import Store

GROUP, LARGE, PAYLOAD = Group("{}"), 1000, 1000


def main() -> None:
    """Measures and prints one table after the other."""
    parser = argparse.ArgumentParser("benchmarks.worker", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement (default: 3)")
    parser.add_argument("--only", choices=("drain", "lateness", "blocks"), help="one table")
    options = parser.parse_args()
    with EmbeddedServer() as server, tempfile.TemporaryDirectory() as name:
        ours = Side("ours", "redis_batches", Path(sys.executable), server, Path(name))
        theirs = Side("theirs", "celery_batches", peer_python(), server, Path(name))
        for title, rows in (
            ("drain", drain_rows(ours, theirs, options.rounds)),
            ("lateness", lateness_rows(ours, theirs)),
            ("blocks", block_rows(server)),
        ):
            if options.only in (None, title):
                show(title, rows)


def show(title: str, rows: Iterator[tuple[str, ...]]) -> None:
    """Prints a table; its first row has the headings."""
    table = Table(*next(rows), title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def drain_rows(ours: Side, theirs: Side, rounds: int) -> Iterator[tuple[str, ...]]:
    """Yields requests per second without and with results."""
    yield "batches of", "processes", "payload", "side", "no results", "a result each"
    cases = [(every, processes, 23) for every in (10, 100, 1000) for processes in (1, 2)]
    for every, processes, payload in (*cases, (100, 2, 300), (100, 2, 5000)):
        for side in (ours, theirs):
            if side is theirs and (every, payload) != (100, 23):
                continue
            changed = replace(side, every=every, processes=processes, payload=payload)
            count = 200 * every if side is ours else 2000
            count = min(max(count, 5000), 30_000) if side is ours else count
            rates = [
                f"{median(drained(changed, task, count) for _ in range(rounds)):,.0f}"
                for task in ("count_page", "title_page")
            ]
            yield str(every), str(processes), f"{payload} B", side.name, *rates


def drained(side: Side, task: str, count: int) -> float:
    """Returns requests per second while a worker drains a backlog."""
    side.reset()
    return drain_rate(side, count, task)


def lateness_rows(ours: Side, theirs: Side) -> Iterator[tuple[str, ...]]:
    """Yields milliseconds after the flush interval."""
    yield "interval", "side", "p50 ms", "p99 ms", "least ms"
    for interval, samples in ((0.05, 100), (0.2, 60), (1, 30), (10, 4)):
        for side in (ours, theirs):
            changed = replace(side, every=LARGE, interval=interval)
            changed.reset()
            with changed.worker():
                found = changed.call("lateness", "count_late_page", samples)
            figures = (f"{1000 * found[key]:.1f}" for key in ("p50", "p99", "least"))
            yield f"{interval} s", side.name, *figures


def block_rows(server: EmbeddedServer) -> Iterator[tuple[str, ...]]:
    """Yields for how long scripts use the server, which serves nobody else meanwhile."""
    yield f"script, at {LARGE:,} requests of {PAYLOAD:,} B", "median ms", "most ms"
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        found: dict[str, list[float]] = {}
        for _ in range(15):
            block(Store(client, Settings(), "t"), found)
    for name, times in found.items():
        yield name, f"{median(times):.1f}", f"{max(times):.1f}"


def block(store: Store, found: dict[str, list[float]]) -> None:
    """Takes a batch through its life, twice, and notes what each script takes."""
    trigger, envelope = Trigger(LARGE, 1000), b'1\n[["' + b"x" * PAYLOAD + b'"],{}]'

    def measured(name: str, work: Callable[[], Any]) -> Any:
        before = used(store)
        result = work()
        found.setdefault(name, []).append(used(store) - before)
        return result

    def claim() -> Lease:
        for _ in range(0, LARGE, 500):
            calls = [Outgoing(str(uuid4()), "", None, envelope) for _ in range(500)]
            measured("push of 500", lambda calls=calls: store.push(GROUP, trigger, calls))
        lease = measured("claim", lambda: store.claim(GROUP.id, trigger, force=True))
        assert len(lease.requests) == LARGE
        return lease  # type: ignore[no-any-return]

    measured("ack of all", claim().ack)
    lease = claim()
    ids = [request.id for request in lease.requests]
    late = [Outcome(task_id, Verb.RETRY, 0, "an error") for task_id in ids[:500]]
    measured("release of 500", lambda: lease.release(late))
    measured(
        "reclaim of 500", lambda: store.reclaim(lease.token, GROUP.id, trigger, seen_dead=True)
    )
    while isinstance(rest := store.claim(GROUP.id, trigger, force=True), Lease):
        rest.ack()
    lease = claim()
    measured("reclaim", lambda: store.reclaim(lease.token, GROUP.id, trigger, seen_dead=True))
    measured("sweep", lambda: store.sweep(trigger.interval_ms))
    while isinstance(rest := store.claim(GROUP.id, trigger, force=True), Lease):
        rest.ack()


def used(store: Store) -> float:
    """Returns the milliseconds that the server's main thread has used."""
    info: Any = store.client.info("cpu")
    return 1000.0 * (info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"])


if __name__ == "__main__":
    main()
