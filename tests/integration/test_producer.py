"""Callers of a real server: results that listen late, forks, and greenlets that share a call."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from celery import Celery, group
from celery.exceptions import TimeoutError
from celery.result import GroupResult, ResultSet, denied_join_result

from redis_batches import batched_task
from redis_batches.app.state import runtime_of
from tests.support import raw
from tests.support.waiting import wait_until

GREENLETS = Path(__file__).parent / "apps" / "greenlets.py"


def function(requests: list[Any]) -> None:
    """A batch function."""


def make_app(url: str, namespace: str, **options: str) -> Celery:
    """An app whose requests wait in a namespace of the test's own."""
    app = Celery("calls", broker=url, backend=url, set_as_current=False, **options)
    # Else Celery uses a command that redis-py warns of.
    app.conf.update(redis_batches_namespace=namespace, result_expires=None)
    return app


@pytest.fixture
def app(shared_url: str, namespace: str) -> Iterator[Celery]:
    """An app with a Redis result backend."""
    made = make_app(shared_url, namespace)
    yield made
    made.close()


@pytest.fixture
def task(app: Celery) -> Any:
    """A task with results."""
    return batched_task(1000, 60, app=app, name="click")(function)


def subscriptions(app: Any) -> set[Any]:
    """Returns what the app's result backend listens to."""
    return set(app.backend.result_consumer.subscribed_to)


def store_result(app: Any, result: Any, value: Any) -> None:
    """Stores a result as a worker does."""
    app.backend.store_result(result.id, value, "SUCCESS")


def test_no_call_subscribes(app: Celery, task: Any) -> None:
    """Neither on the fast path nor on Celery's own, nor in bulk."""
    results = [task.delay(1), task.apply_async((1,), countdown=1), *task.delay_many([(1,), (2,)])]

    assert len(results) == 4
    assert subscriptions(app) == set()


def test_get_finds_a_result_that_came_first_or_comes_late(app: Celery, task: Any) -> None:
    """It subscribes, then reads what is stored; and listens no longer than it waits."""
    early, late = task.delay(1), task.delay(2)
    store_result(app, early, "early")
    assert early.get(timeout=30) == "early"

    got: list[Any] = []
    waiting = Thread(target=lambda: got.append(late.get(timeout=30)))
    waiting.start()
    wait_until(lambda: subscriptions(app), description="it listens")
    store_result(app, late, "late")
    waiting.join(30)
    assert got == ["late"]
    assert subscriptions(app) == set()


def test_groups_and_sets_of_results_are_joined(app: Celery, task: Any) -> None:
    """Of single calls, bulk calls and a canvas."""
    canvas = group(task.s(number) for number in range(2)).apply_async()
    results = [task.delay(1), *task.delay_many([(1,), (2,)]), *canvas.results]
    for number, result in enumerate(results):
        store_result(app, result, number)

    assert canvas.get(timeout=30) == [3, 4]
    assert ResultSet(results, app=app).join_native(timeout=30) == list(range(5))
    assert GroupResult("id", results, app=app).get(timeout=30) == list(range(5))


def test_a_timeout_and_a_wait_inside_a_task_are_as_ever(app: Celery, task: Any) -> None:
    """`get` gives up, and refuses to wait where it could wait for itself."""
    result = task.delay(1)
    with pytest.raises(TimeoutError):
        result.get(timeout=0.05)
    with denied_join_result(), pytest.raises(RuntimeError, match="Never call"):
        result.get(timeout=1)
    assert pickle.loads(pickle.dumps(result)) == result


def test_a_callback_is_called_though_the_result_came_first(app: Celery, task: Any) -> None:
    """As if the call had subscribed."""
    early, late = task.delay(1), task.delay(2)
    got: list[Any] = []
    store_result(app, early, "early")
    early.then(lambda result: got.append(result.result))
    assert got == ["early"]

    late.then(lambda result: got.append(result.result))
    store_result(app, late, "late")
    assert late.get(timeout=30) == "late"
    assert got == ["early", "late"]


def test_the_rpc_backend_has_its_queue_before_the_call(shared_url: str, namespace: str) -> None:
    """So that no reply is lost."""
    app = Celery("calls", broker=shared_url, backend="rpc://", set_as_current=False)
    app.conf.redis_batches_namespace = namespace
    task = batched_task(1000, 60, app=app, name="click")(function)
    for result in (task.delay(1), *task.delay_many([(1,)])):
        worker = Celery("worker", broker=shared_url, backend="rpc://", set_as_current=False)
        context = type("Context", (), {"reply_to": app.thread_oid, "correlation_id": result.id})
        worker.backend.store_result(result.id, "value", "SUCCESS", request=context)
        assert result.get(timeout=30) == "value"


def test_a_child_calls_though_a_thread_was_calling_at_the_fork(app: Celery, task: Any) -> None:
    """A lock that this thread held is not the child's; nor is the name of this process."""
    task.delay("before")
    committer = runtime_of(app).committer("click")
    with committer._mutex:
        committer._leader = object()  # type: ignore[assignment]
        child = os.fork()
        if child == 0:
            task.delay("child")
            os._exit(0)
        committer._leader = None

    def ended() -> bool:
        return os.waitpid(child, os.WNOHANG)[0] == child

    try:
        wait_until(ended, description="the child ended")
    except AssertionError:
        os.kill(child, 9)
        raise
    store = runtime_of(app).store("click")
    values = b"".join(raw.client(store).hvals(raw.key(store, "items")))
    assert [values.count(f"gen{pid}@".encode()) for pid in (os.getpid(), child)] == [1, 1]


def test_greenlets_share_script_calls(shared_url: str, namespace: str) -> None:
    """And one that is killed while it leads strands no other."""
    pytest.importorskip("gevent")
    done = subprocess.run(
        [sys.executable, str(GREENLETS), shared_url, namespace],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(GREENLETS.parents[3])},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ok\n"
