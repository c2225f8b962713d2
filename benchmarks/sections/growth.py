"""What each step costs with few and with many requests, or groups, in Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

from benchmarks.bench import Bench, Section
from benchmarks.stores import GROUP, HOUR_MS, fill, leased, push, store_at, timed
from benchmarks.values import Column, Row, Values
from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.requests import Group
from redis_batches.core.triggers import Trigger
from redis_batches.testing.server import EmbeddedServer

EVERY = 100
TRIGGER = Trigger(EVERY, HOUR_MS)
KINDS = ("requests", "groups")
STEPS = ("push of 1", f"claim of {EVERY}", f"ack of {EVERY}", "sweep")
#: Of each step in a turn, before it is the next server's turn.
PUSHES, BATCHES, SWEEPS, TURNS = 40, 8, 15, 15


@dataclass(frozen=True)
class Place:
    """A server with something in it.

    Attributes:
        kind: What it has more or less of: "requests" or "groups".
        count: How many.
        store: Of the task.
    """

    kind: str
    count: int
    store: Store

    def row(self, step: str) -> Row:
        """Returns the row of a step."""
        kind = self.kind.removesuffix("s") if self.count == 1 else self.kind
        return Row(f"{step}, {self.count:,} {kind} wait", "µs", less_is_better=True)


def measure(bench: Bench, values: Values) -> None:
    """The servers take short turns, so that no noise of the machine looks like growth."""
    with ExitStack() as stack:
        places = [*_places(bench, stack)]
        for _ in bench.each_round():
            bench.say(f"round {bench.round} of {bench.rounds}: growth")
            found: dict[tuple[str, str, int], _Times] = {}
            for _ in range(TURNS):
                for place in places:
                    for step, times in _turn(place.store).items():
                        key = (step, place.kind, place.count)
                        found.setdefault(key, _Times()).add(times)
            for kind, step in product(KINDS, STEPS):
                for place in places:
                    if place.kind == kind:
                        times = found[step, kind, place.count]
                        values.add(place.row(step), "client", median(times.client))
                        values.add(place.row(step), "server", times.server / times.calls)
    for kind, step in product(KINDS, STEPS):
        rows = [place.row(step) for place in places if place.kind == kind]
        values.relate("client_growth", "client", rows)
        values.relate("server_growth", "server", rows)


class _Times:
    """Microseconds of script calls: of each as the client sees it, of all as the server does."""

    def __init__(self) -> None:
        self.client: list[float] = []
        self.server = 0.0
        self.calls = 0

    def add(self, other: _Times) -> None:
        self.client += other.client
        self.server += other.server
        self.calls += other.calls


def _places(bench: Bench, stack: ExitStack) -> Iterator[Place]:
    for kind, counts in zip(KINDS, (bench.sizes.waiting, bench.sizes.groups), strict=True):
        for count in counts:
            bench.say(f"storing {count:,} {kind}")
            store = store_at(stack.enter_context(EmbeddedServer()))
            # What a turn takes is stored again by it.
            fill(store, TRIGGER, count if kind == "requests" else EVERY * 10)
            if kind == "groups":
                for number in range(count - 1):
                    push(store, TRIGGER, 1, Group.of({"queue": f"queue-{number}"}))
            # Servers learn the scripts at their first call.
            _turn(store)
            yield Place(kind, count, store)


def _turn(store: Store) -> dict[str, _Times]:
    """Takes each step some times; ends with as many requests as there were."""
    leases: list[Lease] = []
    found = {STEPS[0]: _timed(store, lambda: push(store, TRIGGER, 1), PUSHES)}
    fill(store, TRIGGER, BATCHES * EVERY - PUSHES)
    claim = STEPS[1]
    found[claim] = _timed(
        store, lambda: leases.append(leased(store.claim(GROUP.id, TRIGGER))), BATCHES
    )
    found[STEPS[2]] = _timed(store, lambda: leases.pop().ack(), BATCHES)
    found[STEPS[3]] = _timed(store, lambda: store.sweep(TRIGGER), SWEEPS)
    return found


def _timed(store: Store, step: Callable[[], Any], count: int) -> _Times:
    times = _Times()
    usec, calls = _script_time(store)
    times.client = [timed(step) for _ in range(count)]
    usec_after, calls_after = _script_time(store)
    times.server, times.calls = usec_after - usec, calls_after - calls
    return times


def _script_time(store: Store) -> tuple[float, int]:
    """Returns microseconds and calls of all scripts so far."""
    stats: Any = store._redis.client.info("commandstats")
    found = [stats.get(f"cmdstat_{name}", {}) for name in ("evalsha", "eval")]
    return sum(f.get("usec", 0) for f in found), sum(f.get("calls", 0) for f in found)


SECTION = Section(
    name="growth",
    title="What a long backlog and many groups cost",
    note=(
        "Each step on a server of its own that holds so much, taking turns. Times of the client are"
        " medians per round, those of the server are its own count per script call; growth is"
        " measured by the smallest."
    ),
    columns=(
        Column("client", "client waits"),
        Column("client_growth", "growth", "x"),
        Column("server", "server busy"),
        Column("server_growth", "growth", "x"),
    ),
    measure=measure,
)
