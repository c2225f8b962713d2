"""A run that goes on with the next batch: only while the backlog is deep, and nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import signals

from redis_batches import Batches, SimpleRequest
from redis_batches.testing.worker import InProcess, in_process
from tests.support.steps import MAX_BELLS

BATCHES = MAX_BELLS + 5


class Own(Batches):
    """A class whose users count on one call per run."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class Hooked(Batches):
    """A class with one of Celery's hooks."""

    abstract = True

    def after_return(self, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def long_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run ends because the machine is slow."""
    monkeypatch.setattr("redis_batches.runs.runner.MOMENT", 60.0)


@pytest.fixture
def ran() -> list[int]:
    """The first argument of each batch that ran."""
    return []


@pytest.fixture
def function(ran: list[int]) -> Callable[[list[SimpleRequest]], None]:
    """A batch function."""

    def note(requests: list[SimpleRequest]) -> None:
        ran.append(requests[0].args[0])

    return note


@pytest.fixture
def here(function: Any) -> Iterator[InProcess]:
    """A task with a deep backlog."""
    with in_process(function, 1) as made:
        fill(made)
        yield made


def fill(here: InProcess) -> None:
    for number in range(BATCHES):
        here.task.delay(number)


def test_it_goes_on_until_the_doorbells_suffice(here: InProcess, ran: list[int]) -> None:
    """Each of those finds a batch then: none was rung for nothing."""
    here.answer(drain_on=True)

    assert ran == list(range(BATCHES - MAX_BELLS))
    assert len(here.bells) == MAX_BELLS
    while here.bells:
        here.answer(drain_on=True)
    assert ran == list(range(BATCHES))
    assert here.task.stats()["acked"] == BATCHES


def test_it_does_not_go_on_unless_the_main_process_says_so(here: InProcess, ran: list[int]) -> None:
    """That knows whether runs are limited."""
    here.answer(drain_on=False)

    assert ran == [0]


def test_it_ends_after_a_moment(
    here: InProcess, ran: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tasks of the queue, and a shutdown, wait no longer than that."""
    monkeypatch.setattr("redis_batches.runs.runner.MOMENT", 0.0)

    here.answer(drain_on=True)

    assert ran == [0]


@pytest.mark.parametrize(
    "signal", [signals.task_prerun, signals.task_postrun, signals.task_success]
)
def test_whoever_listens_hears_of_each_batch(here: InProcess, ran: list[int], signal: Any) -> None:
    """One signal per run, one batch per run."""

    def listener(**_: Any) -> None:
        pass

    signal.connect(listener)
    try:
        here.answer(drain_on=True)
    finally:
        signal.disconnect(listener)

    assert ran == [0]


@pytest.mark.parametrize("base", [Own, Hooked])
def test_a_class_that_wraps_runs_wraps_each_batch(
    function: Any, ran: list[int], base: type[Batches]
) -> None:
    """As Flask's documented task class does, with an app context."""
    with in_process(function, 1, base=base) as here:
        fill(here)
        here.answer(drain_on=True)

    assert ran == [0]


def test_a_later_batch_fails_as_the_first_does(ran: list[int]) -> None:
    """Its requests fail, its exception is what Celery sees, and the run ends."""

    def function(requests: list[SimpleRequest]) -> None:
        ran.append(requests[0].args[0])
        if len(ran) == 3:
            raise ValueError("the third")

    with in_process(function, 1) as here:
        results = []
        for number in range(BATCHES):
            results.append(here.task.delay(number))

        with pytest.raises(ValueError, match="the third"):
            here.answer(drain_on=True)

        assert ran == [0, 1, 2]
        assert [result.state for result in results[:4]] == ["SUCCESS"] * 2 + ["FAILURE", "PENDING"]
