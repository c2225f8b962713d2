"""How much of everything is measured."""

from __future__ import annotations

from dataclasses import dataclass

#: Of the crowd: processes that call while so many workers run.
PRODUCERS, WORKERS = 4, 2


@dataclass(frozen=True)
class Sizes:
    """Requests of each measurement, where nothing else is said.

    Attributes:
        calls: By `.delay()`, of one side.
        in_bulk: By `delay_many()`.
        in_memory: While memory is measured.
        backlogs: That a worker drains before its own memory is measured.
        drains: Batch size, worker processes and bytes of a call's argument, of each drain.
        compared: Those of `drains` that celery-batches has to do, too.
        drained_by_ours: Requests of a drain; a quarter of that in batches of 10, twice in 1,000.
        drained_by_theirs: Requests.
        samples: Of the latency.
        intervals: Seconds, and samples of each one's lateness.
        together: Requests of four producers: ours, theirs.
        flood: From the first call to the last run.
        waiting: Requests in Redis, while steps are measured.
        groups: Groups in Redis, while steps are measured.
        blocks: Batches of which each script's time is measured.
        script_calls: Of one setting of durability.
        sweep_seconds: While sweepers sweep.
        loads: Calls per second that are offered to a task with `flush_interval=0`.
        load_seconds: For which they are.
        processes: Of the worker, as it grows.
    """

    calls: int
    in_bulk: int
    in_memory: int
    backlogs: tuple[int, ...]
    drains: tuple[tuple[int, int, int], ...]
    compared: tuple[tuple[int, int, int], ...]
    drained_by_ours: int
    drained_by_theirs: int
    samples: int
    intervals: tuple[tuple[float, int], ...]
    together: tuple[int, int]
    flood: int
    waiting: tuple[int, ...]
    groups: tuple[int, ...]
    blocks: int
    script_calls: int
    sweep_seconds: float
    loads: tuple[int, ...]
    load_seconds: float
    processes: tuple[int, ...]


FULL = Sizes(
    calls=3_000,
    in_bulk=50_000,
    in_memory=20_000,
    backlogs=(10_000, 200_000),
    drains=(
        *((every, processes, 50) for every in (10, 100, 1000) for processes in (1, 2)),
        (100, 2, 300),
        (100, 2, 5000),
    ),
    compared=((10, 2, 50), (100, 1, 50), (100, 2, 50), (1000, 2, 50)),
    drained_by_ours=50_000,
    drained_by_theirs=2_000,
    samples=200,
    intervals=((0.05, 100), (0.2, 40), (1.0, 20), (10.0, 2)),
    together=(30_000, 4_000),
    flood=1_000_000,
    waiting=(1_000, 10_000, 100_000, 1_000_000),
    groups=(1, 1_000, 10_000, 100_000),
    blocks=5,
    script_calls=300,
    sweep_seconds=10,
    loads=(10, 100, 1_000, 5_000),
    load_seconds=5,
    processes=(1, 2, 3, 4),
)
QUICK = Sizes(
    calls=500,
    in_bulk=20_000,
    in_memory=2_000,
    backlogs=(10_000, 50_000),
    drains=((10, 2, 50), (100, 1, 50), (100, 2, 50), (1000, 2, 50)),
    compared=((100, 2, 50),),
    drained_by_ours=10_000,
    drained_by_theirs=1_000,
    samples=40,
    intervals=((0.05, 20), (1.0, 4)),
    together=(8_000, 2_000),
    flood=100_000,
    waiting=(1_000, 10_000, 100_000),
    groups=(1, 1_000, 10_000),
    blocks=3,
    script_calls=60,
    sweep_seconds=1.5,
    loads=(100, 2_000),
    load_seconds=2,
    processes=(1, 2),
)
