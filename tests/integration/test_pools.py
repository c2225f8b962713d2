"""A batch that takes longer than its lease, in each of Celery's pools that hold no processes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.ledger import ledger
from tests.support.processes import Cluster
from tests.support.waiting import wait_until


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent", "eventlet"])
def test_a_lease_is_kept_for_as_long_as_the_function_runs(
    cluster: Cluster, shop: Any, pool: str
) -> None:
    """It runs once, though another worker sweeps meanwhile, and each caller gets its result."""
    env = {"TEST_LEASE": "2", "TEST_SLOW": "4"}
    cluster.worker("-P", pool, **env)
    results = [shop.slow.delay(number) for number in range(4)]
    other = cluster.worker(ready=False, **env)

    assert [result.get(timeout=30) for result in results] == ["attempt 1"] * 4
    assert [len(run["ids"]) for run in ledger()] == [4, 4]
    stats = wait_until(lambda: (s := shop.slow.stats())["acked"] and s, description="acked")
    assert (stats["acked"], stats["claimed"], stats["reclaimed"]) == (4, 1, 0)
    assert "was lost" not in cluster.started[0].output()
    other.wait_for("ready.")


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_a_lease_is_kept_though_no_greenlet_runs(cluster: Cluster, shop: Any, pool: str) -> None:
    """The function computes for longer than its lease, while another worker sweeps."""
    env = {"TEST_LEASE": "2", "TEST_SLOW": "6"}
    cluster.worker("-P", pool, **env)
    results = [shop.compute.delay(number) for number in range(4)]
    wait_until(ledger, description="it runs")
    other = cluster.worker(**env)

    assert [result.get(timeout=30) for result in results] == ["attempt 1"] * 4
    assert [len(run["ids"]) for run in ledger()] == [4]
    stats = wait_until(lambda: (s := shop.compute.stats())["acked"] and s, description="acked")
    assert (stats["acked"], stats["claimed"], stats["reclaimed"]) == (4, 1, 0)
    assert "died: it runs again" not in other.output()
    assert "the lease on batch" not in cluster.started[0].output()
