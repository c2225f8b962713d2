"""Canvases with RabbitMQ as broker: results by rpc, and in Redis for chords, which rpc lacks."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery, Signature, chain, chord

from redis_batches import Batches, SimpleRequest
from tests.support.ledger import noted
from tests.support.processes import Cluster
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import wait_until

APP = "tests.integration.apps.canvas"
DONE = "canvas.done"
BATCHES = [
    *(f"{APP}.{name}" for name in ("double", "total", "autoretry", "fail_odd", "raising")),
    DONE,
]

#: Makes the call of a task: its name and arguments.
Call = Callable[..., "Signature[Any]"]


def called_only(requests: list[SimpleRequest]) -> None:
    """Runs in the worker."""


@contextmanager
def serving(cluster: Cluster, broker: str, backend: str) -> Iterator[Call]:
    """Runs one worker with this result backend; its caller has the batch tasks alone."""
    store = cluster.env["TEST_BROKER"]
    worker = cluster.worker(TEST_BROKER=broker, TEST_BACKEND=backend, TEST_STORE=store)
    app = Celery("caller", broker=broker, backend=backend, set_as_current=False)
    app.conf.redis_batches_url = store
    # It has the tasks of the worker's module already, if another test loaded that here.
    app.finalize()
    for name in set(BATCHES) - app.tasks.keys():
        options = {"flush_every": 4, "flush_interval": 0.1, "name": name, "shared": False}
        app.task(base=Batches, **options)(called_only)

    def call(name: str, *args: Any) -> Signature[Any]:
        return app.signature(name if "." in name else f"{APP}.{name}", args)

    try:
        yield call
    finally:
        gc.collect()  # Results stop waiting while the backend is there.
        app.backend.result_consumer.stop()
        app.close()
        worker.stop()


@pytest.fixture(scope="module")
def call(
    request: pytest.FixtureRequest, lasting_cluster: Cluster, rabbitmq: RabbitMQ
) -> Iterator[Call]:
    """One worker for all tests with a result backend."""
    rabbitmq.purge("celery")
    backend = "rpc://" if request.param == "rpc" else lasting_cluster.env["TEST_BACKEND"]
    with serving(lasting_cluster, rabbitmq.url, backend) as made:
        yield made


by_rpc = pytest.mark.parametrize("call", ["rpc"], indirect=True)
in_redis = pytest.mark.parametrize("call", ["redis"], indirect=True)


@by_rpc
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_batch_step_in_a_chain_answers_by_rpc(call: Call, place: int) -> None:
    """First, in the middle and last."""
    steps = [call("plus", 1), call("plus", 1), call("plus", 1)]
    steps[place] = call("double")
    steps[0].args = (*steps[0].args, 1)

    assert chain(*steps).apply_async().get(timeout=20) == (4, 5, 6)[place]


@by_rpc
def test_a_failing_batch_step_fails_its_chain_by_rpc(call: Call) -> None:
    """The caller that waits for the last step hears of it."""
    result = chain(call("fail_odd", 1), call("plus", 1), call("double")).apply_async()

    with pytest.raises(Exception, match="odd 1"):
        result.get(timeout=20)


@by_rpc
def test_links_and_errbacks_are_called_with_rpc(call: Call) -> None:
    """Old-style errbacks get the id, new-style ones (request, exc, traceback)."""
    errbacks = [call("old_errback"), call("new_errback")]
    links = [call("hear", "plain"), call("batch_hear", "batch")]
    well, badly = (
        call(*batch).apply_async(link=links, link_error=errbacks)
        for batch in (("double", 1), ("raising",))
    )

    assert well.get(timeout=20) == 2
    with pytest.raises(Exception, match="all of it"):
        badly.get(timeout=20)
    expected = [["batch", 2], ["plain", 2]]
    wait_until(lambda: sorted(noted("heard")) == expected, description="both links")
    wait_until(lambda: [badly.id] in noted("old"), description="the old-style errback")
    told = [badly.id, "all of it", True]
    wait_until(lambda: told in noted("new"), description="the new-style errback")
    assert [well.id] not in noted("old")


@by_rpc
@pytest.mark.parametrize(("name", "expected"), [("autoretry", 7), (DONE, 14)])
def test_a_retry_and_mark_as_done_answer_by_rpc(call: Call, name: str, expected: int) -> None:
    """The result of the second try; what code for celery-batches gives the backend."""
    assert call(name, 7).apply_async().get(timeout=20) == expected


@by_rpc
def test_rpc_has_no_chords(call: Call) -> None:
    """Celery refuses them, of batch parts as of plain ones."""
    with pytest.raises(NotImplementedError, match="chord"):
        chord([call("double", 1)], call("total")).apply_async()


@in_redis
def test_a_chord_of_batch_parts_has_its_body_run_once(call: Call) -> None:
    """A mixed header, and a body that is a batch step."""
    header = [call("double", 1), call("double", 2), call("autoretry", 3), call("plus", 1, 1)]

    result = chord(header, call("total")).apply_async()

    assert result.get(timeout=20) == 11
    assert sum(result.id in run["ids"] for run in noted("ledger")) == 1


@in_redis
def test_a_failing_part_fails_its_chord(call: Call) -> None:
    """Its body does not run, its errback does."""
    header = [call("fail_odd", number) for number in range(3)]
    body = call("total").on_error(call("new_errback"))

    result = chord(header, body).apply_async()

    with pytest.raises(Exception, match="odd 1"):
        result.get(timeout=20)
    wait_until(lambda: [e for e in noted("new") if e[0] == result.id], description="its errback")
    assert not any(result.id in run["ids"] for run in noted("ledger"))
