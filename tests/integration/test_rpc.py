"""The main job with RabbitMQ as broker and its rpc result backend, which keeps no results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from redis_batches import Batches, SimpleRequest
from tests.support.ledger import ledger
from tests.support.processes import Cluster

APP = "tests.integration.apps.incoming"
DOUBLE = f"{APP}.double"

pytestmark = pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)


@pytest.fixture
def app(cluster: Cluster, broker: str) -> Iterator[Celery]:
    """The caller's app; workers started after it answer by rpc, too."""
    cluster.env["TEST_BACKEND"] = "rpc://"
    made = Celery("caller", broker=broker, backend="rpc://", set_as_current=False)
    made.conf.redis_batches_url = cluster.env["TEST_STORE"]
    yield made
    made.backend.result_consumer.stop()
    made.close()


def double(app: Celery) -> Any:
    """Returns the batch task, as a caller has it."""

    @app.task(base=Batches, flush_every=10, flush_interval=1, name=DOUBLE, shared=False)
    def double(requests: list[SimpleRequest]) -> None:
        """Is called only."""

    return double


def test_each_caller_gets_its_own_result(cluster: Cluster, app: Celery) -> None:
    """In a full batch and in a partial one."""
    cluster.worker()

    task = double(app)
    results = [task.delay(number) for number in range(13)]

    assert [result.get(timeout=20) for result in results] == [2 * n for n in range(13)]
    assert sorted(len(run["ids"]) for run in ledger()) == [3, 10]


def test_each_caller_by_name_gets_its_own_result(cluster: Cluster, app: Celery) -> None:
    """Its message says where it waits for the answer; the request keeps that."""
    cluster.worker()

    results = [app.send_task(DOUBLE, (number,)) for number in range(13)]

    assert [result.get(timeout=20) for result in results] == [2 * n for n in range(13)]
    assert sorted(len(run["ids"]) for run in ledger()) == [3, 10]


def test_a_failure_reaches_its_caller(cluster: Cluster, app: Celery) -> None:
    """As in the redis backend: the exception of the function, for each caller."""
    cluster.worker()

    direct, by_name = double(app).delay(None), app.send_task(DOUBLE, (None,))

    for result in direct, by_name:
        with pytest.raises(TypeError):
            result.get(timeout=20)
