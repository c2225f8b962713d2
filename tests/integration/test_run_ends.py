"""Pools by how a run ends: how often each call ran, and what each caller was told.

A batch holds an odd call, for which the run ends in that way, and an innocent one. Where Celery's
pool survives what a function raises (threads, gevent, eventlet and solo turn a BaseException into
an error of the task, see `celery.concurrency.base.apply_target`), its worker goes on; in prefork
the child may end, and another one takes its place. What the callers are told is the same.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import redis

from tests.support.ledger import ledger
from tests.support.processes import Celery, Cluster
from tests.support.waiting import wait_until

APP = "tests.integration.apps.endings"
POOLS = ("prefork", "threads", "gevent", "eventlet", "solo")
#: By pool, the time limits that it enforces, as Celery's documentation has it.
ENFORCED = {"prefork": ("soft limit", "hard limit"), "gevent": ("hard limit",)}
#: Runs of a request that kills each of its runs: with its mate, then alone.
FATAL = 1 + 3


class End(NamedTuple):
    """What a call comes to.

    Attributes:
        runs: How often the function was called with it.
        told: Its result, or what its caller's `.get()` raises.
    """

    runs: int
    told: str


class Ends(NamedTuple):
    """What a batch of two comes to.

    Attributes:
        odd: The call for which its runs end in some way.
        innocent: The other one.
        reclaimed: How many runs counted as a crash.
        dead: How many dead letters are left.
    """

    odd: End
    innocent: End
    reclaimed: int = 0
    dead: int = 0


WELL = Ends(End(1, "attempt 1"), End(1, "attempt 1"))
LOST = End(1, "WorkerLostError: CancelledError()")
FAILS = End(1, "ValueError: odd")
KILLS = End(FATAL, "WorkerLostError: the worker died 4 times")
#: The run died, or its lease ended: it is the next one that counts.
AGAIN = Ends(End(2, "attempt 2"), End(2, "attempt 2"), reclaimed=1)
CRASHES = Ends(KILLS, End(2, "attempt 2"), reclaimed=FATAL, dead=1)
TABLE = {
    "returns": WELL,
    "raises": Ends(FAILS, FAILS),
    "is cancelled": Ends(LOST, LOST),
    "exits": CRASHES,
    "is interrupted": CRASHES,
    "soft limit": WELL,
    "hard limit": WELL,
    "is killed": AGAIN,
    "computes": WELL,
}
LIMITED = {
    "soft limit": Ends(End(1, "SoftTimeLimitExceeded"), End(1, "SoftTimeLimitExceeded")),
    "hard limit": Ends(End(1, "TimeLimitExceeded"), End(1, "TimeLimitExceeded")),
}


class Row:
    """The worker of one pool, which serves all the cells of its row.

    Args:
        cluster: Where it runs.
        pool: The name of the pool.
    """

    def __init__(self, cluster: Cluster, pool: str) -> None:
        self.pool = pool
        self.tasks = importlib.import_module(APP).TASKS
        self._cluster = cluster
        self.worker = self._start()

    def _start(self) -> Celery:
        args = ("-P", self.pool, "--without-gossip", "--without-mingle", "--without-heartbeat")
        return self._cluster.worker(*args, TEST_POOL=self.pool)

    def wait_for(self, calls: list[Any]) -> None:
        """Waits until calls have ended; a worker that ends takes the next one's place."""

        def ended() -> bool:
            if self.worker.has_ended:
                self.worker = self._start()
            return all(call.ready() for call in calls)

        wait_until(ended, description=f"{calls} end")


@pytest.fixture(scope="module", params=POOLS)
def row(request: pytest.FixtureRequest, lasting_cluster: Cluster) -> Iterator[Row]:
    """A pool with its worker."""
    made = Row(lasting_cluster, request.param)
    yield made
    made.worker.stop()


@pytest.mark.parametrize("way", TABLE)
def test_how_a_run_ends(row: Row, way: str) -> None:
    """Each caller is told what happened to its call, and the innocent one is none the worse."""
    enforced = way in ENFORCED.get(row.pool, ())
    wanted = LIMITED[way] if enforced else TABLE[way]
    task, first = row.tasks[way], row.worker
    before, unanswered = _counts(task), _unacknowledged()
    calls = {name: task.delay(name) for name in ("odd", "innocent")}

    row.wait_for(list(calls.values()))

    for name, end in ("odd", wanted.odd), ("innocent", wanted.innocent):
        assert _told(calls[name]).startswith(end.told)
        assert (name, _runs(calls[name].id)) == (name, end.runs)
    ended = {"acked": 2 - wanted.dead, "dead": wanted.dead, "reclaimed": wanted.reclaimed}
    wait_until(lambda: _grown(task, before) == ended, description=f"{ended} of {way}")
    assert task.stats()["waiting"] == 0
    if row.worker is first:
        # A worker that ended leaves its own behind, until the broker restores them.
        wait_until(lambda: _unacknowledged() <= unanswered, description="doorbells are answered")
    if "limit" in way and not enforced:
        kind = way.partition(" ")[0]
        assert f"{way} has a {kind} time limit of 1 s" in row.worker.output()


@pytest.mark.parametrize("row", ["prefork"], indirect=True)
def test_a_run_that_stands_still_past_its_lease(row: Row) -> None:
    """Another process of the pool runs its batch; when it goes on, nothing of it counts."""
    task = row.tasks["is stopped"]
    calls = [task.delay(name) for name in ("odd", "innocent")]

    row.wait_for(calls)
    told = [_told(call) for call in calls]
    (stopped,) = (run for run in ledger() if calls[0].id in run["ids"] and run["attempts"][0] == 1)
    os.kill(stopped["pid"], signal.SIGCONT)

    assert told == ["attempt 2", "attempt 2"]
    assert [_runs(call.id) for call in calls] == [2, 2]
    row.worker.wait_for("ended while its function ran")
    assert [_told(call) for call in calls] == told
    stats = task.stats()
    assert (stats["acked"], stats["reclaimed"], stats["dead"]) == (2, 1, 0)


def _counts(task: Any) -> dict[str, int]:
    stats = task.stats()
    return {name: stats[name] for name in ("acked", "dead", "reclaimed")}


def _grown(task: Any, before: dict[str, int]) -> dict[str, int]:
    return {name: count - before[name] for name, count in _counts(task).items()}


def _told(call: Any) -> str:
    """Returns the result of a call, or the exception with which it failed."""
    value = call.get(timeout=1, propagate=False)
    return f"{type(value).__name__}: {value}" if isinstance(value, Exception) else str(value)


def _runs(task_id: str) -> int:
    return sum(task_id in run["ids"] for run in ledger())


def _unacknowledged() -> int:
    with redis.Redis.from_url(os.environ["TEST_BROKER"]) as client:
        return int(client.hlen("unacked"))
