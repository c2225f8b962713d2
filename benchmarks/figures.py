"""What is measured: each figure, and the steps of a round that measure them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.side import Side


@dataclass(frozen=True)
class Sizes:
    """How much of everything: requests, or samples of the latency."""

    calls: int
    in_bulk: int
    in_memory: int
    drained_by_ours: int
    drained_by_theirs: int
    samples: int


FULL = Sizes(
    calls=5_000,
    in_bulk=50_000,
    in_memory=20_000,
    drained_by_ours=20_000,
    drained_by_theirs=5_000,
    samples=200,
)
QUICK = Sizes(
    calls=1_000,
    in_bulk=20_000,
    in_memory=2_000,
    drained_by_ours=5_000,
    drained_by_theirs=1_000,
    samples=50,
)


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        key: Its name in the JSON.
        title: What is measured.
        unit: What its values count.
        more_is_better: Whether it is a rate.
        digits: Decimals shown.
    """

    key: str
    title: str
    unit: str
    more_is_better: bool = True
    digits: int = 0


FIGURES = (
    Figure("delay", ".delay(), 1 thread", "calls per second"),
    Figure("delay_results", "same, Redis result backend", "calls per second"),
    Figure("delay_threads", ".delay(), 16 threads", "calls per second"),
    Figure("bulk", "delay_many(), theirs .delay()", "calls per second"),
    Figure("drain", "drain, 2 processes", "requests per second"),
    Figure("drain_results", "same, a result per request", "requests per second"),
    Figure("memory", "memory", "bytes per waiting request", more_is_better=False),
    Figure("latency_p50", "full batch to its run, p50", "ms", more_is_better=False, digits=1),
    Figure("latency_p99", "full batch to its run, p99", "ms", more_is_better=False, digits=1),
)

#: Measures one or several figures of one side, by their keys; `limit.KEY` is the limit of one.
Step = Callable[[Side, Sizes], dict[str, float]]


def delay(side: Side, sizes: Sizes) -> dict[str, float]:
    """Calls from one thread; nobody wants results."""
    return _named("delay", side.call("rate", "count_page", sizes.calls))


def delay_results(side: Side, sizes: Sizes) -> dict[str, float]:
    """Calls from one thread; a Redis result backend is ready for results."""
    return _named("delay_results", side.call("rate", "title_page", sizes.calls))


def delay_threads(side: Side, sizes: Sizes) -> dict[str, float]:
    """Calls from 16 threads."""
    return _named("delay_threads", side.call("threads", "count_page", sizes.calls))


def bulk(side: Side, sizes: Sizes) -> dict[str, float]:
    """Calls from one thread that has them all at once."""
    count = sizes.in_bulk if side.name == "ours" else sizes.calls
    return _named("bulk", side.call("bulk", "count_page", count))


def memory(side: Side, sizes: Sizes) -> dict[str, float]:
    """What the server needs for requests that wait."""
    return {"memory": side.call("memory", "count_page", sizes.in_memory)["bytes"]}


def drain(side: Side, sizes: Sizes) -> dict[str, float]:
    """Runs what waits, without results."""
    return {"drain": _drain_rate(side, sizes, "count_page")}


def drain_results(side: Side, sizes: Sizes) -> dict[str, float]:
    """Runs what waits, and stores one result per request."""
    return {"drain_results": _drain_rate(side, sizes, "title_page")}


def latency(side: Side, sizes: Sizes) -> dict[str, float]:
    """Fills batches one by one for an idle worker."""
    with side.worker():
        measured = side.call("latency", "count_hot_page", sizes.samples)
    return {"latency_p50": 1000 * measured["p50"], "latency_p99": 1000 * measured["p99"]}


STEPS: tuple[Step, ...] = (
    delay,
    delay_results,
    delay_threads,
    bulk,
    memory,
    drain,
    drain_results,
    latency,
)


def drain_rate(side: Side, requests: int, task: str) -> float:
    """Returns requests per second between the first start of a run and the last."""
    side.call("fill", task, requests)
    with side.worker():
        runs = side.runs_of(requests)
    # The last run's own requests are not done when it starts.
    return (requests - runs[-1].size) / (runs[-1].started - runs[0].started)


def _drain_rate(side: Side, sizes: Sizes, task: str) -> float:
    return drain_rate(
        side, sizes.drained_by_ours if side.name == "ours" else sizes.drained_by_theirs, task
    )


def _named(key: str, measured: dict[str, float]) -> dict[str, float]:
    found = {key: measured["rate"]}
    if "limit" in measured:
        found[f"limit.{key}"] = measured["limit"]
    return found
