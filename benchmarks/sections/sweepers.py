"""What many workers' sweepers cost the server while nothing is due."""

from __future__ import annotations

import heapq
import time
from itertools import product
from typing import Any

from benchmarks.bench import Bench, Section
from benchmarks.stores import GROUP, HOUR_MS, cpu_seconds, outgoing
from benchmarks.values import Column, Row, Values
from redis_batches.buffer.store import Store
from redis_batches.core.settings import Settings
from redis_batches.core.triggers import Bells, Trigger
from redis_batches.driver.connection import connect
from redis_batches.testing.server import EmbeddedServer
from redis_batches.upkeep.schedule import PacedSweeper
from redis_batches.upkeep.sweeper import Served, Sweeper

#: Flush interval in ms, tasks, sweepers.
CASES = (*product((1000, 50), (1, 10), (1, 100)), (1000, 100, 1))


def measure(bench: Bench, values: Values) -> None:
    """One sweeper, as a worker has it, and then a hundred: once, for it is a mean over seconds."""
    for interval_ms, tasks, count in CASES:
        row = _row(count, tasks, interval_ms)
        bench.say(row.title)
        bench.ours.reset()
        for column, value in _sweep(bench, count, tasks, interval_ms).items():
            values.add(row, column, value)


def _row(count: int, tasks: int, interval_ms: int) -> Row:
    sweepers = "1 sweeper" if count == 1 else f"{count} sweepers"
    served = "1 task" if tasks == 1 else f"{tasks} tasks"
    return Row(f"{sweepers}, {served} with flush_interval={interval_ms / 1000:g}", "per second")


def _sweep(bench: Bench, count: int, tasks: int, interval_ms: int) -> dict[str, float]:
    """Returns what the server does per second, while one request of each task waits for its eta."""
    client = connect(bench.server.url, 5, 0)
    sweepers = [_sweeper(bench.server, number, tasks, interval_ms) for number in range(count)]
    # Their first ticks look for more, and spread over the time that they stand by.
    _tick_for(sweepers, 1.2)
    cpu, commands, began = cpu_seconds(client), _commands(client), time.monotonic()
    own = time.process_time()
    late = _tick_for(sweepers, bench.sizes.sweep_seconds)
    elapsed = time.monotonic() - began
    return {
        "commands": (_commands(client) - commands) / elapsed,
        "cpu": 100 * (cpu_seconds(client) - cpu) / elapsed,
        "own": 100 * (time.process_time() - own) / elapsed / count,
        "late": 1000 * late,
    }


def _sweeper(server: EmbeddedServer, number: int, tasks: int, interval_ms: int) -> PacedSweeper:
    """Returns a sweeper with a connection and settings as a worker has them."""
    client, settings = connect(server.url, 5, 0), Settings()
    trigger = Trigger(100, interval_ms)
    stores = [Store(client, settings, f"task_{i}") for i in range(tasks)]
    if number == 0:
        for store in stores:
            # It is looked at, and not due before the benchmarks end.
            eta_ms = round(time.time() * 1000) + HOUR_MS
            store.push(GROUP, trigger, [outgoing(1)[0]._replace(eta_ms=eta_ms)])
    served = [Served(store, trigger) for store in stores]
    name = f"worker-{number}"
    sweeper = Sweeper(lambda: served, _ring, settings.sweep_interval, name)
    return PacedSweeper(sweeper, time.monotonic)


def _ring(task: str, bells: Bells) -> None:
    """Nothing is due, so nobody must be told."""
    if bells.count:
        raise RuntimeError(f"{task} was due")


def _tick_for(sweepers: list[PacedSweeper], seconds: float) -> float:
    """Ticks each when it wants to; returns the most seconds that one was late."""
    began, late = time.monotonic(), 0.0
    due = [(began + i / len(sweepers), i) for i in range(len(sweepers))]
    heapq.heapify(due)
    while due[0][0] < began + seconds:
        when, index = heapq.heappop(due)
        now = time.monotonic()
        if when > now:
            time.sleep(when - now)
        else:
            late = max(late, now - when)
        wait = sweepers[index].tick()
        heapq.heappush(due, (time.monotonic() + wait, index))
    if (rest := began + seconds - time.monotonic()) > 0:
        time.sleep(rest)
    return late


def _commands(client: Any) -> int:
    info: Any = client.info("stats")
    return int(info["total_commands_processed"])


SECTION = Section(
    name="sweepers",
    title="What sweepers cost while nothing is due",
    note=(
        "As many sweepers as workers have, each with a connection of its own, at the pace that they"
        " choose; of each task one leads, and the others look in once a second. The commands are"
        " those that scripts run, too. One process plays all of them: a tick is late when it is"
        " still busy with another sweeper's."
    ),
    columns=(
        Column("commands", "commands"),
        Column("cpu", "server, of a core", " %"),
        Column("own", "each sweeper, of a core", " %"),
        Column("late", "a tick late by at most", " ms"),
    ),
    measure=measure,
)
