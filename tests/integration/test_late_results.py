"""Sets of results in a real Redis, stored before somebody asks, and after."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, states
from celery.result import AsyncResult, GroupResult, ResultSet

from redis_batches import SimpleRequest, batched_task


@pytest.fixture
def app(shared_url: str) -> Iterator[Celery]:
    """An app whose results are in a real Redis."""
    made = Celery("late", broker="memory://", backend=shared_url, set_as_current=False)
    made.conf.redis_batches_url = shared_url
    made.conf.result_expires = 60

    @batched_task(10, 10, app=made, name="late", shared=False)
    def late(requests: list[SimpleRequest]) -> None:
        """Is never run."""

    yield made
    consumer: Any = made.backend.result_consumer
    consumer.stop()
    made.close()


@pytest.fixture
def task(app: Celery) -> Any:
    """A batch task."""
    return app.tasks["late"]


def results_of(task: Any, count: int = 2) -> list[Any]:
    """Returns results of calls of a batch task."""
    return [task.AsyncResult(str(uuid4())) for _ in range(count)]


def store(results: list[Any]) -> None:
    """Stores each result: its place in the list."""
    for number, result in enumerate(results):
        # On a backend of its own, as a worker does it.
        result.app.backend.store_result(result.id, number, states.SUCCESS)


def heard_by(results: Any) -> list[Any]:
    """Returns a list that grows when a set of results is ready."""
    heard: list[Any] = []
    results.then(lambda ready: heard.append(ready.join_native()))
    return heard


WAYS: dict[str, Callable[[Any], Any]] = {
    "get": lambda found: found.get(timeout=10),
    "join": lambda found: found.join(timeout=10),
    "join_native": lambda found: found.join_native(timeout=10),
    "iter_native": lambda found: sorted(m["result"] for _, m in found.iter_native(timeout=10)),
}
SETS: dict[str, Callable[[list[Any]], Any]] = {
    "set": ResultSet,
    "group": lambda results: GroupResult("g", results),
    "added": lambda results: _added(results),
}


def _added(results: list[Any]) -> Any:
    made = ResultSet(results[:1])
    made.add(results[1])
    return made


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("made", SETS)
@pytest.mark.parametrize("when", ["before", "some before", "after", "while it waits"])
def test_a_set_of_results_is_got(task: Any, way: str, made: str, when: str) -> None:
    """Whenever they are stored."""
    results = results_of(task)
    if when in ("before", "some before"):
        store(results if when == "before" else results[:1])
    found = SETS[made](results)
    later = threading.Timer(0.2 if when == "while it waits" else 0, store, [results])
    if when != "before":
        later.start()
    if when in ("after", "some before"):
        later.join()
    try:
        assert WAYS[way](found) == [0, 1]
        assert found.ready()
        assert found.successful()
    finally:
        later.cancel()


@pytest.mark.parametrize("made", ["set", "group"])
def test_a_set_of_results_that_are_there_calls_back(task: Any, made: str) -> None:
    """At once, and once."""
    results = results_of(task)
    store(results)

    assert heard_by(SETS[made](results)) == [[0, 1]]


def test_a_set_calls_back_when_the_last_one_is_there(task: Any) -> None:
    """Not before, though another one was there when it was made, or added."""
    first, second = results_of(task)
    store([first])
    found = ResultSet([second])
    found.add(first)
    heard = heard_by(found)
    assert heard == []

    store([first, second])
    assert found.get(timeout=10) == [1, 0]
    assert heard == [[1, 0]]


def test_groups_in_a_group_are_got(task: Any) -> None:
    """Also if all was there before."""
    results = results_of(task, 3)
    store(results)
    inner = GroupResult("inner", results[:2])

    assert GroupResult("outer", [inner, results[2]]).get(timeout=10) == [[0, 1], 2]


def test_results_that_were_read_before_are_got(task: Any, app: Celery) -> None:
    """Those of other tasks, too."""
    results = [*results_of(task, 1), AsyncResult(str(uuid4()), app=app)]
    store(results)
    assert [result.get(timeout=10) for result in results] == [0, 1]

    assert ResultSet(results).get(timeout=10) == [0, 1]


def test_a_restored_group_is_got(task: Any, app: Celery) -> None:
    """By whoever knows its id; and its results are collected."""
    results = results_of(task)
    app.GroupResult("saved" + results[0].id, results).save()
    store(results)
    found = app.GroupResult.restore("saved" + results[0].id)

    assert found.get(timeout=10) == [0, 1]
    (_, collected), *_ = found.results[0].collect(timeout=10)
    assert collected == 0
