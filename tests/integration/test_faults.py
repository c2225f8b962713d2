"""What is left when a part dies: workers, beat, doorbells, the broker."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from math import log2
from typing import Any

import pytest
from celery.exceptions import WorkerLostError

from redis_batches.app import doorbell
from tests.support.ledger import ledger
from tests.support.processes import Cluster
from tests.support.waiting import wait_until

#: A machine under test may be slow: what a bound is exceeded by without saying anything.
SLACK = 5.0


def test_a_killed_workers_batch_runs_again_on_another(cluster: Cluster, shop: Any) -> None:
    """After kill -9 in the middle of a batch the lease ends, and callers get their results."""
    first = cluster.worker(TEST_LEASE="2", concurrency=1)
    results = [shop.stall.delay(number) for number in range(4)]
    wait_until(ledger, description="the batch runs")
    cluster.worker(TEST_LEASE="2", concurrency=1)

    first.kill()
    killed = time.time()

    assert [result.get(timeout=30) for result in results] == ["attempt 2"] * 4
    before, *after = ledger()
    assert sorted(task_id for run in after for task_id in run["ids"]) == sorted(before["ids"])
    assert all(run["fence"] > before["fence"] for run in after)
    assert after[0]["at"] - killed < 2 + 1 + SLACK
    wait_until(lambda: shop.stall.stats()["acked"] == 4, description="each acked once")


def test_a_killed_pool_child_is_noticed_at_once(cluster: Cluster, shop: Any) -> None:
    """The main process saw its child die, so nobody waits for the lease."""
    cluster.worker(TEST_LEASE="600", concurrency=2)
    results = [shop.stall.delay(number) for number in range(4)]
    (run,) = wait_until(ledger, description="the batch runs")

    os.kill(run["pid"], signal.SIGKILL)

    assert [result.get(timeout=30) for result in results] == ["attempt 2"] * 4


def test_workers_keep_the_interval_without_beat(cluster: Cluster, shop: Any) -> None:
    """No batch runs early, and none waits much longer than its interval."""
    cluster.worker()

    for _ in range(5):
        result = shop.fast.delay()
        result.get(timeout=10)

    waits = [run["at"] - min(run["since"]) for run in ledger()]
    assert len(waits) == 5
    assert all(0.05 <= wait < 1 for wait in waits), waits


def test_beat_keeps_the_interval_without_the_workers_sweepers(cluster: Cluster, shop: Any) -> None:
    """Beat registered the sweep by itself; it rings within its period."""
    cluster.worker(TEST_SWEEPER="0")
    cluster.beat(TEST_SWEEPER="0")

    results = [shop.double.delay(number) for number in range(3)]

    assert [result.get(timeout=20) for result in results] == [0, 2, 4]
    (run,) = ledger()
    assert 1.0 <= run["at"] - min(run["since"]) < 1 + 1 + SLACK


@pytest.mark.timeout(200)
def test_nothing_waits_longer_than_the_doorbells_are_lost(cluster: Cluster, shop: Any) -> None:
    """Every doorbell of a minute is lost: full and partial batches run right after it."""
    deaf_until = time.time() + 60
    cluster.worker(TEST_DEAF_UNTIL=str(deaf_until))
    for number in range(25):
        shop.load.delay(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doorbell, "_publish", lambda *_: None)
        for number in range(250):
            shop.load.delay(number)

    def ran() -> int:
        return sum(len(run["ids"]) for run in ledger() if run["at"] >= deaf_until)

    wait_until(ran, 100, description="something runs after the minute")
    wait_until(lambda: shop.load.stats()["acked"] == 275, 30, description="everything ran")
    assert max(run["at"] for run in ledger()) < deaf_until + 10 + SLACK


def test_a_broker_that_is_down_does_not_fail_the_caller(
    cluster: Cluster, shop: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The call is stored; the doorbell's failure is logged, and a sweep rings."""

    def refuse(*_: Any) -> None:
        raise OSError("the broker is down")

    monkeypatch.setattr(doorbell, "_publish", refuse)
    results = [shop.double.delay(number) for number in range(10)]
    monkeypatch.undo()
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)

    assert "the broker is down" in caplog.text
    cluster.worker()
    assert [result.get(timeout=15) for result in results] == [2 * n for n in range(10)]


def test_an_interval_of_zero_batches_by_itself(cluster: Cluster, shop: Any) -> None:
    """While the worker is busy the next batch grows; none is larger than flush_every."""
    cluster.worker(concurrency=1)

    for number in range(200):
        shop.natural.delay(number)

    wait_until(lambda: shop.natural.stats()["acked"] == 200, description="all ran")
    sizes = [len(run["ids"]) for run in ledger()]
    assert sum(sizes) == 200
    assert max(sizes) == 7
    numbers = [args[0] for run in ledger() for args in run["args"]]
    assert numbers == list(range(200))


def test_a_worker_refuses_a_server_that_evicts(cluster: Cluster, shop: Any) -> None:
    """It ends at its start, and says what to set."""
    client = shop.double.app.connection_for_write().default_channel.client
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(AssertionError, match="maxmemory-policy noeviction"):
            cluster.worker()
    finally:
        client.config_set("maxmemory-policy", "noeviction")


def test_reject_on_worker_lost_does_not_wait_for_the_lease(cluster: Cluster, shop: Any) -> None:
    """Celery calls no errback then; the batch goes back all the same."""
    cluster.worker(TEST_LEASE="600")
    results = [shop.rejecting.delay(number) for number in range(4)]
    (run,) = wait_until(ledger, description="the batch runs")

    os.kill(run["pid"], signal.SIGKILL)

    assert [result.get(timeout=40) for result in results] == ["attempt 2"] * 4


def test_a_request_that_kills_every_child_ends_alone(cluster: Cluster, shop: Any) -> None:
    """One in a hundred: it costs a few crashes, and no innocent request its result."""
    cluster.worker(TEST_LEASE="600", concurrency=2)
    values = [*range(50), "poison", *range(51, 100)]
    results = [shop.poisonable.delay(value) for value in values]
    (poison,) = (result for result in results if result is results[50])
    innocent = [result for result in results if result is not poison]

    attempts = [result.get(timeout=90) for result in innocent]

    with pytest.raises(WorkerLostError):
        poison.get(timeout=60)
    runs = ledger()
    crashes = [run for run in runs if poison.id in run["ids"]]
    assert len(crashes) <= log2(100) + 3
    ran = Counter(task_id for run in runs for task_id in run["ids"])
    assert [ran[result.id] for result in innocent] == attempts
    assert max(attempts) <= len(crashes) - 2
    wait_until(lambda: shop.poisonable.stats()["dead"] == 1, description="it is a dead letter")
    assert shop.poisonable.stats()["acked"] == 99
