"""What fails between the end of a function and its callers: on real servers and workers."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from celery import chord

from redis_batches.testing.server import EmbeddedServer
from tests.support.ledger import ledger
from tests.support.processes import Cluster
from tests.support.waiting import wait_until

APP = "tests.integration.apps.returning"


@pytest.fixture(scope="module")
def store_server() -> Iterator[EmbeddedServer]:
    """Where requests wait."""
    with EmbeddedServer() as started:
        yield started


@pytest.fixture(scope="module")
def backend_server() -> Iterator[EmbeddedServer]:
    """Where results are."""
    with EmbeddedServer() as started:
        yield started


@pytest.fixture
def apart(
    cluster: Cluster,
    store_server: EmbeddedServer,
    backend_server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """The module of the app, with three servers that are empty."""
    for server, name in (store_server, "TEST_STORE"), (backend_server, "TEST_BACKEND"):
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        cluster.env[name] = server.url
        monkeypatch.setenv(name, server.url)
    return importlib.import_module(APP)


@contextmanager
def out_of_memory(client: redis.Redis) -> Iterator[None]:
    """A server that takes nothing more."""
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1")
    try:
        yield
    finally:
        client.config_set("maxmemory", "0")


@contextmanager
def read_only(client: redis.Redis) -> Iterator[None]:
    """A server that is a replica of none that answers."""
    client.replicaof("127.0.0.1", "1")
    try:
        yield
    finally:
        client.replicaof("NO", "ONE")


def refusals(client: redis.Redis) -> int:
    """Returns how often a server was out of memory."""
    return int(client.info("errorstats").get("errorstat_OOM", {}).get("count", 0))


def let_end(cluster: Cluster) -> None:
    """Lets the functions that wait for it end."""
    (cluster.folder / "may end").touch()


@pytest.mark.parametrize("failure", [out_of_memory, read_only])
def test_a_backend_that_refuses_for_a_moment_fails_no_call(
    cluster: Cluster, apart: Any, backend_server: EmbeddedServer, failure: Any
) -> None:
    """One request retries as the backend refuses: it runs again, and its mates have succeeded."""
    calls = [apart.retry_first.delay(number) for number in range(apart.BATCH)]
    worker = cluster.worker(concurrency=1)
    wait_until((cluster.folder / "waits").exists, description="the function runs")

    with redis.Redis.from_url(backend_server.url) as client, failure(client):
        let_end(cluster)
        worker.wait_for("cannot report an outcome")

    assert [call.get(timeout=30) for call in calls] == list(range(apart.BATCH))
    assert [len(run["ids"]) for run in ledger()] == [apart.BATCH, 1]
    wait_until(lambda: apart.retry_first.stats()["acked"] == apart.BATCH, description="acked")


def test_a_chord_goes_on_when_the_store_has_memory_again(
    cluster: Cluster, apart: Any, store_server: EmbeddedServer
) -> None:
    """Its body is a batch task, which cannot be called as its parts end; then it can."""
    body = chord([apart.part.s(number) for number in range(3)])(apart.add.s())
    cluster.worker(concurrency=3)
    wait_until((cluster.folder / "waits").exists, description="a part runs")

    with redis.Redis.from_url(store_server.url) as client, out_of_memory(client):
        before = refusals(client)
        let_end(cluster)
        wait_until(lambda: refusals(client) >= before + 6, description="it is sent again")

    assert body.get(timeout=30) == 3


def test_a_chord_goes_on_when_its_broker_is_there_again(
    cluster: Cluster, apart: Any, cluster_server: EmbeddedServer
) -> None:
    """Its body is a task of Celery's own, which cannot be called as its parts end; then it can."""
    body = chord([apart.batch_part.s(number) for number in range(3)])(apart.total.s())
    worker = cluster.worker(concurrency=1)
    wait_until((cluster.folder / "waits").exists, description="the parts run")

    cluster_server.kill()
    try:
        let_end(cluster)
        worker.wait_for("a chord goes on as soon as its server answers")
    finally:
        cluster_server.start()
    # A 5.7.0 worker may have ended with its broker: somebody starts it again.
    cluster.worker(concurrency=1)

    assert body.get(timeout=30) == 3


def test_the_run_after_a_cold_shutdown_is_the_second_one(cluster: Cluster, apart: Any) -> None:
    """Whatever ended the one before, `attempt` is the number of the run."""
    call = apart.last_long.delay()
    worker = cluster.worker(concurrency=1)
    wait_until(ledger, description="it runs")
    worker.signal(signal.SIGQUIT)
    worker.wait_for_end()
    cluster.worker(concurrency=1)

    assert call.get(timeout=30) == 2
    assert [run["attempts"] for run in ledger()] == [[1], [2]]


def test_a_function_may_empty_its_list(cluster: Cluster, apart: Any) -> None:
    """What counts is how many requests it was given."""
    calls = [apart.empty.delay(number) for number in range(5)]
    cluster.worker(concurrency=1)

    assert [call.get(timeout=30) for call in calls] == [0, 1, 2, 3, 4]


def test_a_worker_that_stood_still_after_its_claim_runs_nothing(
    cluster: Cluster, apart: Any
) -> None:
    """It was stopped past its lease: another one runs its batch, and only that one."""
    calls = [apart.count.delay() for _ in range(2)]
    late = cluster.worker("-P", "solo", ready=False, TEST_STOP="1", TEST_LEASE="1")
    wait_until((cluster.folder / "stopped").exists, description="it stands still")
    cluster.worker("--without-mingle", concurrency=1, TEST_LEASE="1")

    assert [call.get(timeout=30) for call in calls] == [2, 2]
    late.resume()
    late.wait_for("ended while its function ran")
    assert [run["attempts"] for run in ledger()] == [[2], [2]]
    assert [call.result for call in calls] == [2, 2]
