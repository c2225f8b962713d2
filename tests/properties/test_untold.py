"""Runs that fail where an outcome is told: no request is forgotten, and none is told twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery.exceptions import TimeLimitExceeded

from redis_batches import SimpleRequest
from redis_batches.errors import StoreError
from redis_batches.runner import Runner
from redis_batches.store import Store
from tests.properties.inprocess import InProcess, in_process

CALLS = 4


def returns(requests: list[SimpleRequest]) -> list[int]:
    return [1] * len(requests)


def returns_one_error(requests: list[SimpleRequest]) -> list[Any]:
    return [ConnectionError("one"), *returns(requests)[1:]]


def raises(requests: list[SimpleRequest]) -> None:
    raise ConnectionError("all")


def fails_one(requests: list[SimpleRequest]) -> None:
    requests[0].fail(ValueError("one"))


def retries_one(requests: list[SimpleRequest]) -> None:
    requests[0].retry(countdown=60)


@pytest.fixture(params=[returns, returns_one_error, raises, fails_one, retries_one])
def here(request: pytest.FixtureRequest) -> Iterator[InProcess]:
    """A task whose function settles its requests in one of several ways."""
    with in_process(request.param, CALLS, autoretry_for=(ConnectionError,)) as made:
        yield made


@pytest.fixture
def backend_down(here: InProcess, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Takes the result backend down, for longer than anybody tells again."""
    monkeypatch.setattr("redis_batches.batch.TELL_PATIENCE", 0.0)

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError("the result backend is down")

    def take_down() -> None:
        for name in ("store_result", "get_state"):
            monkeypatch.setattr(here.task.backend, name, refuse)

    return take_down


def assert_all_wait(here: InProcess) -> None:
    stats = here.task.stats()
    assert (stats["delayed"], stats["running"], stats["acked"]) == (CALLS, 0, 0)


def test_an_outcome_that_cannot_be_told_is_not_forgotten(
    here: InProcess, backend_down: Callable[[], None]
) -> None:
    """Every request of the batch waits for a while, and then runs again."""
    for number in range(CALLS):
        here.task.delay(number)
    backend_down()

    with pytest.raises(ConnectionRefusedError):
        here.answer()

    assert_all_wait(here)


def test_a_run_that_cannot_see_what_was_told_before_is_no_crash(
    here: InProcess, backend_down: Callable[[], None]
) -> None:
    """A second attempt looks whether the first told an outcome; while it cannot, it waits."""
    for number in range(CALLS):
        here.task.delay(number)
    store = here.task.inspector._store
    (group,) = store.groups()
    lease = store.claim(group, here.task.trigger)
    here.bells = [store.reclaim(lease.token, group, here.task.trigger, seen_dead=True)]
    backend_down()

    while here.task.stats()["delayed"] < CALLS:
        here.bells = here.bells or [lease.bells]
        with pytest.raises(ConnectionRefusedError):
            here.answer(force=True)

    assert_all_wait(here)
    attempts = store.client.hvals(store.keys.resolve("attempts"))
    assert {record.split(b":")[1] for record in attempts} == {b"1"}


def test_a_time_limit_fails_only_what_was_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that the run had settled keeps its result, and its errbacks are not called."""
    with in_process(returns, CALLS) as here:
        told, untold = (here.task.delay(number) for number in range(2))
        store = here.task.inspector._store
        (group,) = store.groups()
        lease = store.claim(group, here.task.trigger, force=True)
        batch, _ = Runner(here.task)._open(lease)
        batch.succeed(batch.requests[0], 1)
        failed: list[str] = []
        mark = here.task.backend.mark_as_failure
        monkeypatch.setattr(
            here.task.backend,
            "mark_as_failure",
            lambda task_id, *args, **kwargs: (
                failed.append(task_id),
                mark(task_id, *args, **kwargs),
            ),
        )

        Runner(here.task).fail(group, lease.token, TimeLimitExceeded(1))

        assert failed == [untold.id]
        assert (told.state, untold.state) == ("SUCCESS", "FAILURE")
        assert here.task.stats()["acked"] == 2


def test_a_doorbell_is_never_retried_as_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `autoretry_for=(Exception,)` a claim that fails must not become a call of nobody."""

    def refuse(*_: Any, **__: Any) -> None:
        raise StoreError("Redis could not be reached to claim")

    with in_process(returns, CALLS, autoretry_for=(Exception,)) as here:
        for number in range(CALLS):
            here.task.delay(number)
        monkeypatch.setattr(Store, "claim", refuse)

        with pytest.raises(StoreError):
            here.answer()

        assert here.task.stats()["pushed"] == CALLS
