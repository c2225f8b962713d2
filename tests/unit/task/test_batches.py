"""Calls that never leave the process: direct, eager, and what the decorator makes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from celery import Celery, Task, chain, chord, group, shared_task
from celery.exceptions import ImproperlyConfigured, MaxRetriesExceededError

from redis_batches import Batches, SimpleRequest, batched_task
from redis_batches.testing.worker import in_process


def function(requests: list[SimpleRequest]) -> None:
    """A batch function."""


@pytest.fixture
def double(app: Celery) -> Any:
    """A task that returns results."""

    @batched_task(10, 1, app=app)
    def double(requests: list[SimpleRequest]) -> list[int]:
        return [2 * request.args[0] for request in requests]

    return double


def test_a_direct_call_is_a_batch_of_one(double: Any) -> None:
    """It returns the request's own result."""
    assert double(4) == 8


def test_apply_returns_the_requests_own_outcome(double: Any) -> None:
    """As an eager task does."""
    assert double.apply((4,)).get() == 8
    assert double.apply(("x", 1)).get() == "xx"
    assert isinstance(double.apply((None,)).result, TypeError)


def test_always_eager_runs_a_batch_of_one(app: Celery, double: Any) -> None:
    """Nothing is stored in Redis."""
    app.conf.task_always_eager = True

    assert double.delay(4).get() == 8
    assert double.stats()["pushed"] == 0


def test_eager_results_are_raised_and_stored_if_the_app_says_so(app: Celery) -> None:
    """`task_eager_propagates` and `task_store_eager_result`; links go on."""
    heard: list[Any] = []

    @batched_task(10, 1, app=app)
    def divide(requests: list[SimpleRequest]) -> list[float]:
        return [1 / request.args[0] for request in requests]

    @app.task
    def hear(value: Any) -> None:
        heard.append(value)

    app.conf.update(task_always_eager=True, task_store_eager_result=True)

    done, failed = divide.apply_async((2,), link=hear.s()), divide.delay(0)
    assert heard == [0.5]
    assert isinstance(failed.result, ZeroDivisionError)
    assert app.AsyncResult(done.id).result == 0.5
    assert app.AsyncResult(failed.id).state == "FAILURE"

    app.conf.task_eager_propagates = True
    with pytest.raises(ZeroDivisionError):
        divide.delay(0)


def test_an_eager_canvas_runs_batches_of_one(app: Celery, double: Any) -> None:
    """Chain, group and chord, without a server."""
    app.conf.task_always_eager = True

    @app.task
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    assert chain(double.s(1), double.s()).delay().get() == 4
    assert group(double.s(n) for n in range(3)).delay().get() == [0, 2, 4]
    assert chord([double.s(1), double.s(2)])(total.s()).get() == 6
    assert double.chunks([(1,), (2,), (3,)], 2).apply_async().get() == [[2, 4], [6]]


def test_what_runs_in_this_process_needs_no_redis(app: Celery) -> None:
    """Neither a URL nor a server: direct calls, `apply`, eager calls, many, canvas, retries."""
    app.conf.redis_batches_url = None

    @batched_task(10, 1, app=app, bind=True, max_retries=1, default_retry_delay=0)
    def twice(self: Any, requests: list[SimpleRequest]) -> list[int]:
        if requests[0].args[0] == "again" and not self.request.retries:
            raise self.retry()
        return [2 * request.args[0] for request in requests]

    with pytest.raises(ImproperlyConfigured, match="set redis_batches_url"):
        twice.delay(1)
    assert twice(1) == 2
    assert twice.apply((1,)).get() == 2
    app.conf.task_always_eager = True
    assert twice.delay("again").get() == "againagain"
    assert [result.get() for result in twice.delay_many([(1,), (2,)])] == [2, 4]
    assert chord([chain(twice.s(n), twice.s()) for n in range(3)])(twice.s()).get() == [0, 4, 8] * 2


def test_signatures_are_celerys(app: Celery, double: Any) -> None:
    """Each way to make one is a call of the task."""
    app.conf.task_always_eager = True
    made = [double.s(3), double.si(3), double.signature((3,)), double.subtask((3,))]
    made.append(app.signature(double.name, (3,)))

    assert [each.delay().get() for each in made] == [6] * 5
    assert [each() for each in made] == [6] * 5
    assert double.si(3).apply_async((9,)).get() == 6


def test_a_call_alone_may_be_replaced(app: Celery, double: Any) -> None:
    """As any task; see `test_a_batch_cannot_be_replaced` for a batch."""

    @app.task(base=Batches, bind=True)
    def replaced(self: Any, requests: list[SimpleRequest]) -> Any:
        return self.replace(double.s(requests[0].args[0]))

    assert replaced.apply((4,)).get() == 8


def test_an_eager_request_settles_itself(app: Celery) -> None:
    """`succeed`, `fail` and the backend's methods give the eager result."""

    @app.task(base=Batches)
    def settle(requests: list[SimpleRequest]) -> str:
        (request,) = requests
        if request.args[0] == "succeed":
            request.succeed("by request")
        elif request.args[0] == "fail":
            request.fail(ValueError("by request"))
        elif request.args[0] == "backend":
            app.backend.mark_as_done(request.id, "by backend", request=request)
        return "returned"

    assert settle.apply(("succeed",)).get() == "by request"
    assert isinstance(settle.apply(("fail",)).result, ValueError)
    assert settle.apply(("backend",)).get() == "by backend"
    assert settle.apply(("",)).get() == "returned"


def test_an_eager_retry_runs_again(app: Celery) -> None:
    """Up to max_retries."""
    runs = []

    @batched_task(10, 1, app=app, max_retries=2)
    def flaky(requests: list[SimpleRequest]) -> None:
        runs.append(requests[0].retries)
        if requests[0].args[0] == "never" or len(runs) < 3:
            requests[0].retry(countdown=0)

    assert flaky.apply(("soon",)).get() is None
    assert runs == [0, 1, 2]
    assert isinstance(flaky.apply(("never",)).result, MaxRetriesExceededError)


def test_a_list_of_requests_is_passed_as_it_is(double: Any) -> None:
    """So a user's unit test can call the task with requests of its own."""
    requests = [SimpleRequest(str(number), "double", (number,), {}) for number in range(3)]

    assert double(requests) == double.run(requests) == [0, 2, 4]


def test_map_and_starmap_call_it_directly(app: Celery, double: Any) -> None:
    """Each item is a batch of one."""
    assert double.map([1, 2]).apply().get() == [2, 4]
    assert double.starmap([(1,), (2,)]).apply().get() == [2, 4]


def test_the_decorator_works_bare_and_without_an_app(app: Celery) -> None:
    """As `shared_task`: each app that is finalized has the task."""

    @batched_task
    def bare(requests: list[SimpleRequest]) -> list[int]:
        return [request.args[0] for request in requests]

    @batched_task(3, 0.5, name="shared.named", ignore_result=True)
    def named(requests: list[SimpleRequest]) -> None:
        pass

    app.finalize()
    app.set_current()
    assert (bare.flush_every, bare.flush_interval) == (10, 30)
    assert app.tasks["shared.named"].flush_every == 3
    assert app.tasks["shared.named"].ignore_result is True
    assert bare(7) == 7


def test_the_decorator_keeps_the_apps_own_task_class(app: Celery) -> None:
    """What a framework adds to its tasks is there too."""

    class Framework(Task):  # type: ignore[type-arg]
        abstract = True
        greeting = "hello"

        def on_commit(self) -> str:
            return self.greeting

    app.task_cls = Framework

    @batched_task(3, 1, app=app)
    def task(requests: list[SimpleRequest]) -> None:
        pass

    assert task.on_commit() == "hello"
    assert isinstance(task._get_current_object(), Batches)


def test_an_annotation_changes_the_trigger(app: Celery) -> None:
    """Options are Celery options: annotations apply."""
    app.conf.task_annotations = {"*": {"flush_every": 42}}
    task = app.task(base=Batches, name="annotated")(function)

    assert task.trigger.flush_every == 42


def test_a_copy_cannot_settle(app: Celery) -> None:
    """It says so, instead of doing nothing; a request whose batch has ended says that."""
    seen: list[SimpleRequest] = []

    def keep(requests: list[SimpleRequest]) -> None:
        seen.extend(requests)

    with in_process(keep, 1) as here:
        here.task.delay()
        here.answer()

    with pytest.raises(RuntimeError, match="the batch of request"):
        seen[0].succeed(1)
    for copied in copy.copy(seen[0]), SimpleRequest("id", "name"):
        with pytest.raises(RuntimeError, match="this is a copy of request"):
            copied.succeed(1)


def test_shared_task_makes_a_batch_task(app: Celery) -> None:
    """With the base class, as old code does."""

    @shared_task(base=Batches, flush_every=3, flush_interval=1, name="shared.old")
    def old(requests: list[SimpleRequest]) -> None:
        pass

    app.finalize()
    assert app.tasks["shared.old"].trigger.flush_every == 3


def test_beat_gets_one_entry_whose_period_follows_the_shortest_interval(app: Celery) -> None:
    """In whole seconds, between 1 and 10."""
    for number, interval in enumerate((60, 4.5)):
        app.task(base=Batches, flush_interval=interval, name=f"t{number}")(function)
    app.finalize()

    assert app.conf.beat_schedule["redis_batches.sweep"]["schedule"] == 4

    app.task(base=Batches, flush_interval=0.1, name="t3")(function)
    app.tasks["t3"]
    assert app.conf.beat_schedule["redis_batches.sweep"]["schedule"] == 1
