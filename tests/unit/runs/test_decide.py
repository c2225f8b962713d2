"""What the end of a function, or an exception, makes of a request: decided, not yet reported."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import (
    Ignore,
    MaxRetriesExceededError,
    Reject,
    Retry,
    TimeLimitExceeded,
    WorkerLostError,
)

from redis_batches import OptionError, SimpleRequest, batched_task
from redis_batches.core.errors import ResultCountError, ResultKeyError, ResultTypeError
from redis_batches.core.outcomes import Outcome, Verb
from redis_batches.runs.decide import (
    Action,
    End,
    Rules,
    Verdict,
    ending_of,
    results_of,
    seen_by_celery,
)


class Covered(Exception):
    """What the task retries by itself."""


class OfItsOwn(BaseException):
    """No Exception, and nothing that anybody knows."""


def request(task_id: str = "a", retries: int = 0) -> SimpleRequest:
    """Returns a call."""
    return SimpleRequest(task_id, "task", request_dict={"id": task_id, "retries": retries})


@pytest.fixture
def task(app: Celery) -> Any:
    """A task that retries some failures."""

    def function(requests: list[SimpleRequest]) -> None:
        """A batch function."""

    options = {"autoretry_for": (Covered,), "retry_kwargs": {"countdown": 3, "priority": 5}}
    make = batched_task(2, app=app, name="task", shared=False, max_retries=2, **options)
    return make(function)


@pytest.fixture
def rules(task: Any) -> Rules:
    """How it decides."""
    return Rules(task)


# -- One request


@pytest.mark.parametrize(
    ("exc", "verdict"),
    [
        (ValueError(), Verdict(Action.FAIL)),
        (OfItsOwn(), Verdict(Action.FAIL)),
        (Ignore(), Verdict(Action.FORGET)),
        (Reject("no", requeue=False), Verdict(Action.DEAD_LETTER)),
        (Reject("later", requeue=True), Verdict(Action.PUT_BACK)),
        (Retry(when=7), Verdict(Action.RETRY, {"exc": None, "countdown": 7})),
        (Retry(when="2030-01-01"), Verdict(Action.RETRY, {"exc": None, "eta": "2030-01-01"})),
        (Retry(), Verdict(Action.RETRY, {"exc": None})),
    ],
    ids=repr,
)
def test_an_exception_means_what_it_means_to_celery(
    rules: Rules, exc: BaseException, verdict: Verdict
) -> None:
    """For one request, as for a task."""
    assert rules.verdict(request(), exc) == verdict


def test_what_autoretry_covers_is_retried_as_the_task_says(rules: Rules) -> None:
    """What belongs to a call becomes an option of it."""
    exc = Covered()

    assert rules.verdict(request(), exc) == Verdict(
        Action.RETRY, {"exc": exc, "countdown": 3, "options": {"priority": 5}}
    )
    assert not rules.is_final(request(), exc)


def test_what_waits_nowhere_cannot_be_put_back(rules: Rules) -> None:
    """A direct or eager call is rejected for good."""
    exc = Reject("later", requeue=True)

    assert rules.verdict(request(), exc, leased=False) == Verdict(Action.DEAD_LETTER)


@pytest.mark.parametrize(
    ("value", "final"),
    [(7, True), (None, True), (ValueError(), True), (Ignore(), False), (Retry(), False)],
    ids=repr,
)
def test_what_is_final_may_be_reported_with_others(rules: Rules, value: Any, final: bool) -> None:
    """What may run again is decided alone."""
    assert rules.is_final(request(), value) is final


def test_those_that_fail_together_wait_together(app: Celery) -> None:
    """Jitter must not scatter a batch."""

    def function(requests: list[SimpleRequest]) -> None:
        """A batch function."""

    options = {"autoretry_for": (Covered,), "retry_backoff": 600, "retry_jitter": True}
    rules = Rules(batched_task(2, app=app, name="jitter", shared=False, **options)(function))
    waits = {rules.verdict(request(str(n)), Covered()).how["countdown"] for n in range(20)}

    assert len(waits) == 1


# -- A retry


def test_a_retry_says_when_and_why(rules: Rules) -> None:
    """To its caller, and to Redis."""
    why = ValueError("busy")
    again = rules.retry(request(), countdown=7, exc=why, verb=Verb.RETRY_BATCH)

    assert again is not None
    assert again.outcome == Outcome("a", Verb.RETRY_BATCH, 7000, "ValueError('busy')")
    assert (again.seconds, again.reason.exc, again.reason.when) == (7, why, 7)


def test_without_a_time_it_waits_as_the_task_says(rules: Rules, task: Any) -> None:
    """As in Celery."""
    again = rules.retry(request())

    assert again is not None
    assert again.seconds == task.default_retry_delay


def test_a_time_may_be_a_moment(rules: Rules) -> None:
    """Which wins."""
    eta = datetime.now(timezone.utc) + timedelta(seconds=100)
    again = rules.retry(request(), countdown=7, eta=eta)

    assert again is not None
    assert again.seconds == pytest.approx(100, abs=20)


@pytest.mark.parametrize(
    ("retries", "own", "left"),
    [(1, None, True), (2, None, False), (2, 3, True), (0, 0, False)],
    ids=["one left", "none left", "more of its own", "none of its own"],
)
def test_a_request_has_as_many_tries_as_are_allowed(
    rules: Rules, retries: int, own: int | None, left: bool
) -> None:
    """By the task, unless the call of retry() says otherwise."""
    assert (rules.retry(request(retries=retries), max_retries=own) is not None) is left


@pytest.mark.parametrize(
    "how",
    [{"countdown": "5"}, {"eta": "soon"}, {"options": {"task_id": "b"}}],
    ids=["countdown", "eta", "task_id"],
)
def test_a_retry_that_means_nothing_is_refused(rules: Rules, how: dict[str, Any]) -> None:
    """Before anything is reported."""
    with pytest.raises(OptionError):
        rules.retry(request(), **how)


def test_who_has_no_tries_left_fails_with_what_celery_says(rules: Rules) -> None:
    """Unless somebody said why."""
    exc = rules.exhausted(request(retries=2))

    assert isinstance(exc, MaxRetriesExceededError)
    assert "after 2 retries" in str(exc)


# -- The end of a function


def test_a_request_without_a_result_gets_none() -> None:
    """The others get theirs."""
    first, second = request("a"), request("b")
    ending = ending_of(End({"a": 1}, {"a": 1}), [first, second], store=False)

    assert list(ending.outcomes) == [(first, 1), (second, None)]
    assert (ending.store, ending.final) == (False, False)


def test_what_a_function_raised_is_for_all() -> None:
    """They fail together, and are retried as a batch."""
    exc = ValueError()
    ending = ending_of(End(raised=exc), [first := request()])

    assert list(ending.outcomes) == [(first, exc)]
    assert (ending.verb, ending.final) == (Verb.RETRY_BATCH, False)


def test_what_broke_in_is_final() -> None:
    """Callers are told of it as Celery's pools tell it."""
    ending = ending_of(End(raised=OfItsOwn("no")), [request()])

    assert ending.final
    assert isinstance(ending.outcomes[0][1], WorkerLostError)


@pytest.mark.parametrize(
    ("raised", "kept", "seen"),
    [
        (None, False, type(None)),
        (ValueError(), False, ValueError),
        (ValueError(), True, Retry),
        (Retry(), True, Retry),
        (Ignore(), False, Ignore),
        (Reject("later", requeue=True), True, Ignore),
        (OfItsOwn(), False, WorkerLostError),
        (TimeLimitExceeded(5), False, TimeLimitExceeded),
    ],
    ids=repr,
)
def test_celery_sees_what_became_of_the_run(raised: Any, kept: bool, seen: type) -> None:
    """A retry if any request runs again."""
    assert type(seen_by_celery(End(raised=raised), kept)) is seen


# -- What a function returned


@pytest.mark.parametrize(
    ("returned", "results"),
    [
        (None, {}),
        ([1, 2], {"a": 1, "b": 2}),
        ((1, 2), {"a": 1, "b": 2}),
        ({"b": 2}, {"b": 2}),
    ],
    ids=repr,
)
def test_results_belong_to_requests(returned: Any, results: dict[str, Any]) -> None:
    """In order, or by id."""
    assert results_of("task", ["a", "b"], returned) == results


@pytest.mark.parametrize(
    ("returned", "error"),
    [([1], ResultCountError), ({"c": 1}, ResultKeyError), ("ab", ResultTypeError)],
    ids=repr,
)
def test_results_of_nobody_are_errors(returned: Any, error: type[Exception]) -> None:
    """That name what is wrong."""
    with pytest.raises(error):
        results_of("task", ["a", "b"], returned)
