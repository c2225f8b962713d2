"""Workers that are stopped, paused, or whose doorbells are delivered twice."""

from __future__ import annotations

import re
import signal
from collections import Counter
from typing import Any

import pytest

from tests.support.ledger import ledger
from tests.support.processes import Cluster
from tests.support.waiting import wait_until

#: No test waits for it: what goes back at once does not wait for its lease.
LONG_LEASE = "600"


def start_slow_batch(shop: Any) -> list[Any]:
    """Calls the slow task, and waits until its batch runs."""
    results = [shop.slow.delay(number) for number in range(4)]
    wait_until(ledger, description="the batch runs")
    return results


def test_a_warm_shutdown_ends_the_batch_first(cluster: Cluster, shop: Any) -> None:
    """SIGTERM: what runs is finished and its results are stored."""
    worker = cluster.worker(TEST_LEASE=LONG_LEASE)
    results = start_slow_batch(shop)

    worker.stop()

    assert [result.get(timeout=1) for result in results] == ["attempt 1"] * 4
    assert shop.slow.stats()["running"] == 0


@pytest.mark.parametrize("soft", ["0", "1"], ids=["cold", "soft"])
def test_a_cold_shutdown_puts_the_batch_back_at_once(
    cluster: Cluster, shop: Any, soft: str
) -> None:
    """SIGQUIT: another worker runs it, without waiting for the lease."""
    first = cluster.worker(TEST_LEASE=LONG_LEASE, TEST_SLOW="60", TEST_SOFT_SHUTDOWN=soft)
    results = start_slow_batch(shop)

    first.signal(signal.SIGQUIT)
    cluster.worker(TEST_LEASE=LONG_LEASE)

    assert [result.get(timeout=30)[:7] for result in results] == ["attempt"] * 4
    assert sum(run.get("ended", False) for run in ledger()) == 1


def test_a_paused_worker_that_wakes_changes_nothing(cluster: Cluster, shop: Any) -> None:
    """Past its lease another worker runs the batch; the late run is refused."""
    first = cluster.worker(concurrency=1, TEST_LEASE="1.5")
    results = start_slow_batch(shop)
    first.pause()
    cluster.worker(concurrency=1, TEST_LEASE="1.5")
    assert [result.get(timeout=30) for result in results] == ["attempt 2"] * 4

    first.resume()

    first.wait_for("the lease on batch")
    assert [result.get(timeout=1) for result in results] == ["attempt 2"] * 4
    stats = shop.slow.stats()
    assert (stats["pushed"], stats["acked"], stats["running"]) == (4, 4, 0)


def test_a_doorbell_delivered_twice_runs_nothing_twice(cluster: Cluster, shop: Any) -> None:
    """The broker redelivers what takes long: the second delivery does nothing."""
    workers = [cluster.worker(TEST_SLOW="8")]
    results = start_slow_batch(shop)
    workers.append(cluster.worker(TEST_SLOW="8"))

    options = {"visibility_timeout": 0}
    with shop.app.connection_for_write(transport_options=options) as connection:
        connection.default_channel.qos.restore_visible()

    def deliveries() -> int:
        output = "".join(worker.output() for worker in workers)
        received = re.findall(r"shop\.slow\[(\S+)\] received", output)
        return max(Counter(received).values())

    wait_until(lambda: deliveries() > 1, description="the doorbell is delivered again")
    assert [result.get(timeout=60) for result in results] == ["attempt 1"] * 4
    assert [run.get("ended", False) for run in ledger()] == [False, True]
