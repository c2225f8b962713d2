"""The main job on real parts: calls, full and partial batches, results."""

from __future__ import annotations

from typing import Any

from tests.support.ledger import ledger
from tests.support.processes import Cluster
from tests.support.waiting import wait_until


def test_a_full_batch_runs_and_each_caller_gets_its_own_result(cluster: Cluster, shop: Any) -> None:
    """Ten calls make a batch at once; each result belongs to its call."""
    cluster.worker()

    results = [shop.double.delay(number) for number in range(10)]

    assert [result.get(timeout=10) for result in results] == [2 * n for n in range(10)]
    assert [len(run["ids"]) for run in ledger()] == [10]


def test_a_partial_batch_runs_after_the_interval(cluster: Cluster, shop: Any) -> None:
    """Fewer calls than a batch wait for flush_interval, and no longer than a sweep more."""
    cluster.worker()

    results = [shop.double.delay(number) for number in range(3)]

    assert [result.get(timeout=10) for result in results] == [0, 2, 4]
    (run,) = ledger()
    waited = run["at"] - min(run["since"])
    assert len(run["ids"]) == 3
    assert waited >= 1.0


def test_calls_made_while_no_worker_runs_are_kept(cluster: Cluster, shop: Any) -> None:
    """Workers that start later find what waits."""
    results = [shop.double.delay(number) for number in range(25)]
    assert shop.double.stats()["waiting"] == 25

    cluster.worker()

    assert [result.get(timeout=10) for result in results] == [2 * n for n in range(25)]
    wait_until(lambda: shop.double.stats()["acked"] == 25, description="all acked")
    assert shop.double.stats()["waiting"] == 0
