"""Kill -9 of a whole worker at each point of a batch's life: every caller is told once."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, chord

from tests.support.ledger import ledger
from tests.support.processes import Cluster
from tests.support.waiting import wait_until

APP = "tests.integration.apps.crashing"
#: Where in the life of a batch its worker dies, and how many requests had begun and were not told.
POINTS = {"claimed": 0, "running": 4, "returned": 3, "told": 0, "given back": 0}


@pytest.mark.parametrize("point", ["gone on", "stored"])
def test_what_hangs_on_a_call_outlives_its_worker(cluster: Cluster, shop: Any, point: str) -> None:
    """It dies after the next step was sent, or after the state was stored: both go on, once."""
    steps = chain(shop.double.s(2), shop.double.s(), shop.add.s(1)).apply_async()
    body = chord([shop.double.s(number) for number in range(3)])(shop.add.s(100))

    first = cluster.worker(concurrency=1, TEST_CRASH_AT=point, ready=False)
    first.wait_for_end()
    cluster.worker(concurrency=1)

    assert steps.get(timeout=30) == 9
    assert body.get(timeout=30) == 106
    for task, count in (shop.double, 5), (shop.add, 2):
        wait_until(lambda t=task, n=count: t.stats()["acked"] == n, description="each ended once")
        assert task.stats()["pushed"] == count


@pytest.mark.parametrize("point", POINTS)
def test_a_batch_outlives_its_worker(cluster: Cluster, shop: Any, point: str) -> None:
    """The rest of it runs on the next worker after the lease; what was told does not run again."""
    results = [shop.double.delay(number) for number in range(4)]
    header = [shop.double.s(number) for number in range(4)]
    body = chord(header)(shop.add.s(100))

    first = cluster.worker(concurrency=1, TEST_CRASH_AT=point, ready=False)
    first.wait_for_end()
    cluster.worker(concurrency=1)

    assert [result.get(timeout=30) for result in results] == [0, 2, 4, 6]
    assert body.get(timeout=30) == 112
    wait_until(lambda: shop.double.stats()["acked"] == 8, description="each was acked once")
    stats = shop.double.stats()
    assert (stats["pushed"], stats["running"], stats["dead"]) == (8, 0, 0)
    runs = [task_id for run in ledger() for task_id in run["ids"]]
    twice = {task_id for task_id in runs if runs.count(task_id) > 1}
    assert len(twice) == POINTS[point]
    wait_until(lambda: shop.add.stats()["acked"] == 1, description="the body ran once")
