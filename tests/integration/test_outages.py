"""One server is down while the others go on; and workers that end by Celery's own limits."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from types import ModuleType

import pytest
import redis
from celery.exceptions import SoftTimeLimitExceeded

from redis_batches import StoreError
from redis_batches.testing.server import EmbeddedServer
from tests.support.ledger import ledger
from tests.support.processes import Cluster
from tests.support.waiting import wait_until

APP = "tests.integration.apps.apart"


@pytest.fixture(scope="module")
def store_server() -> Iterator[EmbeddedServer]:
    """Where requests wait."""
    with EmbeddedServer(appendonly=True) as started:
        yield started


@pytest.fixture(scope="module")
def backend_server() -> Iterator[EmbeddedServer]:
    """Where results are."""
    with EmbeddedServer(appendonly=True) as started:
        yield started


@pytest.fixture
def apart(
    cluster: Cluster,
    store_server: EmbeddedServer,
    backend_server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[ModuleType]:
    """The module of the app, with three servers that are up and empty."""
    for server, name in (store_server, "TEST_STORE"), (backend_server, "TEST_BACKEND"):
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        cluster.env[name] = server.url
        monkeypatch.setenv(name, server.url)
    yield importlib.import_module(APP)
    for server in (store_server, backend_server):
        server.start()


def test_calls_are_accepted_while_the_broker_is_down(
    cluster: Cluster, apart: ModuleType, cluster_server: EmbeddedServer
) -> None:
    """They wait in Redis; when it is back a sweep rings, and each runs once."""
    cluster.worker()
    cluster_server.kill()
    try:
        before = time.monotonic()
        results = [apart.note.delay(number) for number in range(12)]
        assert time.monotonic() - before < 60
        assert apart.note.stats()["waiting"] == 12
    finally:
        cluster_server.start()
    # A 5.7.0 worker may have ended with its broker: somebody starts it again.
    cluster.worker()

    wait_until(lambda: apart.note.stats()["acked"] == 12, description="everything ran")
    ran = [task_id for run in ledger() for task_id in run["ids"]]
    assert sorted(ran) == sorted(result.id for result in results)


def test_results_are_told_when_the_backend_is_back(
    cluster: Cluster, apart: ModuleType, backend_server: EmbeddedServer
) -> None:
    """A run ends while nobody can be told; nothing runs again, nobody waits for ever."""
    cluster.worker(concurrency=1)
    results = [apart.wait_for_go.delay(number) for number in range(5)]
    wait_until(ledger, description="the batch runs")
    backend_server.kill()
    (go := cluster.folder / "go").touch()
    worker = cluster.started[0]
    worker.wait_for("cannot report an outcome")
    backend_server.start()

    wait_until(lambda: apart.wait_for_go.stats()["acked"] == 5, description="each was acked")
    assert [result.get(timeout=10) for result in results] == [0, 1, 2, 3, 4]
    assert len(ledger()) == 1
    go.unlink()


def test_a_store_that_is_down_is_waited_for_by_workers(
    cluster: Cluster, apart: ModuleType, store_server: EmbeddedServer
) -> None:
    """The batch that runs is settled when it is back, or runs again; calls raise meanwhile."""
    cluster.worker(concurrency=1)
    results = [apart.wait_for_go.delay(number) for number in range(5)]
    wait_until(ledger, description="the batch runs")
    store_server.kill()
    with pytest.raises(StoreError, match="could not be reached to push"):
        apart.note.delay(0)
    (cluster.folder / "go").touch()
    store_server.start()

    assert [result.get(timeout=30) for result in results] == [0, 1, 2, 3, 4]
    wait_until(lambda: apart.wait_for_go.stats()["acked"] == 5, description="each was acked")
    assert apart.wait_for_go.stats()["running"] == 0


@pytest.mark.parametrize("catch", [False, True], ids=["raised", "caught"])
def test_a_soft_time_limit_is_the_functions_to_see(
    cluster: Cluster, apart: ModuleType, catch: bool
) -> None:
    """What was settled before stays; the rest fails with it, unless the function goes on."""
    cluster.worker(concurrency=1)
    results = [apart.too_slow.delay(number, catch=catch) for number in range(3)]

    if catch:
        assert [result.get(timeout=20) for result in results] == [0, -1, -1]
    else:
        assert results[0].get(timeout=20) == 0
        for result in results[1:]:
            with pytest.raises(SoftTimeLimitExceeded):
                result.get(timeout=20)
    assert len(ledger()) == 1


def test_pool_processes_that_end_after_a_batch_lose_nothing(
    cluster: Cluster, apart: ModuleType
) -> None:
    """`--max-tasks-per-child=1`: each batch has a process of its own."""
    cluster.worker("--max-tasks-per-child", "1", concurrency=1)

    for number in range(25):
        apart.note.delay(number)

    wait_until(lambda: apart.note.stats()["acked"] == 25, 60, description="everything ran")
    runs = ledger()
    assert sum(len(run["ids"]) for run in runs) == 25
    assert len({run["pid"] for run in runs}) == len(runs) >= 5
