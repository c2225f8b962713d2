"""`python -m benchmarks.server`: what durability costs a caller, and what a long backlog costs.

All of it goes through this package's own store on servers of its own: no worker, no broker.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any
from uuid import uuid4

from benchmarks.worker import show
from redis_batches.config import Settings
from redis_batches.connection import connect
from redis_batches.embedded import EmbeddedServer
from redis_batches.lease import Lease
from redis_batches.model import Group, Outgoing, Trigger
from redis_batches.store import Store

GROUP = Group.of({"queue": "celery"})
TRIGGER = Trigger(100, 3_600_000)
BODY = b'1\n[[],{"url":"http://example.com/0123456789"}]'
DURABILITY = {
    "no persistence": {"appendonly": "no"},
    "appendfsync everysec": {"appendonly": "yes", "appendfsync": "everysec"},
    "appendfsync always": {"appendonly": "yes", "appendfsync": "always"},
}
#: Script calls of one measurement.
CALLS = 300


def main() -> None:
    """Measures and prints one table after the other."""
    parser = argparse.ArgumentParser("benchmarks.server", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement (default: 3)")
    parser.add_argument("--most", type=int, default=1_000_000, help="requests of the long backlog")
    options = parser.parse_args()
    show("durability", durability_rows(options.rounds))
    show("growth", growth_rows(options.most))


def durability_rows(rounds: int) -> Iterator[tuple[str, ...]]:
    """Yields what a push takes with each setting: of one call, and of 500 at once, per call."""
    yield "server", "delay() (us)", "of no persistence", "delay_many (us per call)", "of it"
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in DURABILITY}
    for _ in range(rounds):
        for name, config in DURABILITY.items():
            with EmbeddedServer(config=config) as server:
                store = store_at(server)
                found[name][0].append(timed(lambda store=store: push(store, 1)))
                found[name][1].append(timed(lambda store=store: push(store, 500), 40) / 500)
    single, many = (median(column) for column in found["no persistence"])
    for name, columns in found.items():
        one, bulk = (median(column) for column in columns)
        yield name, f"{one:.0f}", f"{one / single:.2f}", f"{bulk:.1f}", f"{bulk / many:.2f}"


def growth_rows(most: int) -> Iterator[tuple[str, ...]]:
    """Yields medians of each step with few and with many requests, or groups, in Redis."""
    yield "in Redis", "push (us)", "claim of 100 (us)", "ack of 100 (us)", "sweep (us)"
    with EmbeddedServer() as server:
        for waiting in (1000, 10_000, 100_000, most):
            store = store_at(server)
            fill(store, waiting)
            yield (f"{waiting:,} requests wait", *steps(store))
            store.client.flushall()
        for groups in (1, 1000, 10_000, 100_000):
            store = store_at(server)
            for number in range(groups):
                push(store, 1, Group.of({"queue": f"queue-{number}"}))
            fill(store, 1000)
            yield (f"{groups:,} groups wait", *steps(store))
            store.client.flushall()


def steps(store: Store) -> Iterator[str]:
    """Yields the median of each step, over batches that are pushed again."""
    yield f"{timed(lambda: push(store, 1)):.0f}"
    claims, acks = [], []
    for _ in range(30):
        push(store, 100)
        leases: list[Lease] = []
        claims.append(timed(lambda leases=leases: leases.append(claim(store)), 1))
        acks.append(timed(leases[0].ack, 1))
    yield f"{median(claims):.0f}"
    yield f"{median(acks):.0f}"
    yield f"{timed(lambda: store.sweep(TRIGGER.interval_ms), 100):.0f}"


def claim(store: Store) -> Lease:
    """Claims a full batch."""
    lease = store.claim(GROUP.id, TRIGGER)
    assert isinstance(lease, Lease), lease
    return lease


def store_at(server: EmbeddedServer) -> Store:
    """Returns a store with the connection that callers have."""
    client = connect(server.url, 5, 0)
    client.ping()
    settings = Settings(max_pending=10_000_000)
    return Store(client, settings, "shop.click")


def fill(store: Store, count: int) -> None:
    """Stores requests, 500 at a time."""
    for _ in range(count // 500):
        push(store, 500)


def push(store: Store, count: int, group: Group = GROUP) -> None:
    """Stores new requests in one script call."""
    calls = [Outgoing(str(uuid4()), "", None, BODY) for _ in range(count)]
    store.push(group, TRIGGER, calls)


def timed(step: Callable[[], Any], times: int = CALLS) -> float:
    """Returns the median time of a step in microseconds, as a client sees it."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        step()
        found.append(time.perf_counter() - began)
    return median(found) * 1e6


if __name__ == "__main__":
    main()
