"""A deep backlog on real workers: runs go on with the next batch, and are as safe as the first."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.support.ledger import ledger
from tests.support.processes import Cluster
from tests.support.waiting import wait_until

APP = "tests.integration.apps.backlog"
CALLS = 100


def batches_by_run(task: Any, cluster: Cluster, *options: str) -> Counter[str]:
    """Fills a backlog, drains it, and returns the number of batches of each run."""
    for number in range(CALLS):
        task.delay(number)
    cluster.worker(*options, concurrency=1)
    wait_until(lambda: task.stats()["acked"] == CALLS, 60, description="all are acked")
    return Counter(run["run"] for run in ledger())


def test_a_run_goes_on_with_a_deep_backlog(cluster: Cluster, shop: Any) -> None:
    """Each call runs once, in fewer runs than batches."""
    runs = batches_by_run(shop.plain, cluster)

    assert len(runs) < CALLS
    assert sorted(run["args"][0][0] for run in ledger()) == list(range(CALLS))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rated", ()),
        ("limited", ()),
        ("plain", ("--time-limit", "30")),
        ("plain", ("--max-tasks-per-child", "1000")),
    ],
)
def test_a_run_that_is_limited_has_one_batch(
    cluster: Cluster, shop: Any, name: str, options: tuple[str, ...]
) -> None:
    """A limit of runs is one of batches."""
    runs = batches_by_run(getattr(shop, name), cluster, *options)

    assert len(runs) == CALLS


def test_a_crash_in_a_later_batch_is_seen_at_once(cluster: Cluster, shop: Any) -> None:
    """Its request runs again long before the lease of 30 seconds ends, and no other does."""
    for number in range(CALLS):
        shop.dying.delay(number)
    cluster.worker(concurrency=1)

    wait_until(lambda: shop.dying.stats()["acked"] == CALLS, 20, description="all are acked")

    ran = Counter(run["args"][0][0] for run in ledger())
    assert (len(ran), sum(ran.values())) == (CALLS, CALLS + 1)
    assert shop.dying.stats()["reclaimed"] == 1
