"""Ours, theirs, what Redis alone allows, and plain Celery with one task per request."""

from __future__ import annotations

from benchmarks.bench import Bench, Section
from benchmarks.sections import calls, crowd, drains, memory, timing
from benchmarks.values import Column, Values

#: What is repeated in every round, and what is measured once.
STEPS = (
    *(calls.delay, calls.heard, calls.threads, calls.bulk),
    *(drains.batches, drains.plain),
    *(memory.waiting, memory.remembered),
    *(timing.latency, crowd.together),
)
ONCE = (memory.worker, timing.lateness, crowd.flood)


def measure(bench: Bench, values: Values) -> None:
    """After each measurement it is another side's turn."""
    for _ in bench.each_round():
        for step in STEPS:
            step(bench, values)
    for step in ONCE:
        step(bench, values)
    values.compare("ours_to_theirs", "ours", "theirs")
    values.compare("ours_to_plain", "ours", "plain")
    values.compare("of_limit", "ours", "limit", times_as_long=True)


SECTION = Section(
    name="compare",
    title="redis_batches, celery-batches and the limit",
    note=(
        "The limit is redis-py alone: for calls the same EVALSHA commands, byte for byte; for"
        " drains claim, decode and ack (and a script call for the results) in as many processes as"
        " the worker has. Plain Celery runs one task per request. Where a row says nothing else,"
        " the argument of a call has 50 B, a batch 100 requests and the worker 2 processes."
    ),
    columns=(
        Column("ours", "ours"),
        Column("theirs", "celery-batches"),
        Column("ours_to_theirs", "ours is better", "x"),
        Column("limit", "limit"),
        Column("of_limit", "ours takes of its time", "x"),
        Column("plain", "plain Celery"),
        Column("ours_to_plain", "ours is better", "x"),
    ),
    measure=measure,
)
