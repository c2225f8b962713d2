"""One outcome per request, whichever way the function tells it; no caller waits for ever."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group, states
from celery.exceptions import TimeLimitExceeded, WorkerLostError

from redis_batches.app.state import runtime_of
from tests.support.ledger import ledger
from tests.support.processes import Cluster
from tests.support.waiting import wait_until

APP = "tests.integration.apps.outcomes"


@pytest.fixture
def tasks(cluster: Cluster, shop: Any) -> Any:
    """The tasks, with a worker that serves them."""
    cluster.worker()
    return shop


def outcomes(results: list[Any]) -> list[Any]:
    """Returns each caller's result, or the text of the exception that `.get()` raises."""
    found = []
    for result in results:
        value = result.get(timeout=20, propagate=False)
        found.append(str(value) if isinstance(value, Exception) else value)
    return found


def test_a_dict_holds_results_by_id(tasks: Any) -> None:
    """An exception in it fails its request; what is missing is None."""
    results = [tasks.by_dict.delay(number) for number in range(4)]

    assert outcomes(results) == [0, "one", None, 3]
    assert results[1].state == states.FAILURE


def test_no_return_value_is_none_for_all(tasks: Any) -> None:
    """A decorated task stores None."""
    results = [tasks.nothing.delay() for _ in range(4)]

    assert outcomes(results) == [None] * 4
    assert {result.state for result in results} == {states.SUCCESS}


def test_a_wrong_return_value_names_what_is_wrong(tasks: Any) -> None:
    """Every request of the batch fails with an error that says what to return."""
    short = outcomes([tasks.too_few.delay() for _ in range(4)])
    count = outcomes([tasks.a_count.delay() for _ in range(4)])

    assert "a list of 3 results for a batch of 4 requests" in short[0]
    assert "returned int" in count[0]
    assert len(set(short)) == len(set(count)) == 1


def test_an_unserializable_result_fails_only_its_own_request(tasks: Any) -> None:
    """The others get theirs."""
    found = outcomes([tasks.unserializable.delay(number) for number in range(4)])

    assert [found[0], *found[2:]] == [0, 2, 3]
    assert "not JSON serializable" in found[1]


def test_what_is_decided_before_an_exception_stays_decided(tasks: Any) -> None:
    """Only the undecided requests fail with it, and a second outcome is ignored."""
    found = outcomes([tasks.one_by_one.delay() for _ in range(4)])

    assert found == ["first", "second", "third", "the rest"]


def test_the_result_backend_settles_requests(tasks: Any) -> None:
    """`mark_as_done`, `mark_as_failure` and `mark_as_retry` settle requests whole."""
    tasks.by_backend.default_retry_delay = 0
    results = [tasks.by_backend.delay() for _ in range(4)]

    assert outcomes(results[:2]) == ["first", "second"]
    wait_until(lambda: results[2].state == states.RETRY, description="the third is retried")
    wait_until(lambda: tasks.by_backend.stats()["acked"] == 3, description="the fourth is done")
    assert results[3].state == states.PENDING


def test_a_batch_that_raises_fails_every_undecided_request(tasks: Any) -> None:
    """No `.get()` hangs, with the drop-in class either."""
    results = [tasks.raising.delay() for _ in range(4)]

    assert outcomes(results) == ["all of it"] * 4
    assert "Wrong" in results[0].traceback


def test_autoretry_runs_a_batch_again(tasks: Any) -> None:
    """Each request counts its own retries; nothing is published to retry them."""
    results = [tasks.auto.delay(number) for number in range(4)]

    assert outcomes(results) == ["retries 2"] * 4
    assert [len(run["ids"]) for run in ledger()] == [4, 4, 4]


def test_autoretry_ends_with_the_real_exception(tasks: Any) -> None:
    """After max_retries the caller gets what the function raised; the calls are dead letters."""
    results = [tasks.auto.delay("never") for _ in range(4)]

    assert outcomes(results) == ["retries 2"] * 4
    assert results[0].state == states.FAILURE
    wait_until(lambda: tasks.auto.stats()["dead"] == 4, description="they are kept")
    letters = tasks.auto.inspector.list()
    assert {letter.id for letter in letters} == {result.id for result in results}
    assert {letter.error for letter in letters} == {"Wrong('retries 2')"}

    assert tasks.auto.inspector.requeue() == 4
    wait_until(lambda: len(ledger()) == 6, description="they had all their tries again")
    wait_until(lambda: tasks.auto.stats()["dead"] == 4, description="and were given up again")
    assert tasks.auto.inspector.drop(result.id for result in results) == 4
    assert tasks.auto.inspector.list() == []


def test_a_requeued_letter_runs_on_the_queue_that_it_was_called_for(
    cluster: Cluster, shop: Any
) -> None:
    """Although this process knows no such queue, and nothing else of it is stored."""
    cluster.worker("-Q", "other")
    results = [shop.auto.apply_async(("never",), queue="other") for _ in range(4)]
    wait_until(lambda: shop.auto.stats()["dead"] == 4, description="they are given up")
    runs = len(ledger())
    assert shop.auto.stats()["waiting"] == 0

    assert shop.auto.inspector.requeue(results[0].id) == 1
    wait_until(lambda: len(ledger()) > runs, description="it runs again")
    wait_until(lambda: shop.auto.stats()["dead"] == 4, description="it is given up again")
    assert shop.auto.inspector.drop(result.id for result in results) == 4
    assert runtime_of(shop.app).store(shop.auto.name).groups() == {}


def test_self_retry_leaves_out_what_is_decided(tasks: Any) -> None:
    """`self.retry()` in a bound task retries the undecided requests, each with its own id."""
    results = [tasks.by_self.delay() for _ in range(4)]

    assert outcomes(results) == ["at first", "later", "later", "later"]
    assert [len(run["ids"]) for run in ledger()] == [4, 3]
    assert [run["attempts"] for run in ledger()] == [[1] * 4, [2] * 3]


def test_one_request_retries_by_itself(tasks: Any) -> None:
    """The others of its batch are done; it fails when it has no tries left."""
    results = [tasks.one_retries.delay(word) for word in ("a", "again", "b", "c")]

    assert outcomes(results) == [None, "retries 1", None, None]
    assert [len(run["ids"]) for run in ledger()] == [4, 1]


def test_ignore_leaves_the_state_to_the_function(tasks: Any) -> None:
    """As in Celery, nobody is told, and nothing runs again."""
    results = [tasks.ignoring.delay() for _ in range(4)]

    assert results[0].get(timeout=20) == "kept"
    wait_until(lambda: tasks.ignoring.stats()["acked"] == 4, description="forgotten")
    assert results[1].state == states.PENDING


def test_reject_puts_back_or_buries(tasks: Any) -> None:
    """With `requeue` the requests run again; without, they fail and stay as dead letters."""
    again = [tasks.rejecting.delay("again") for _ in range(4)]
    assert outcomes(again) == [None] * 4

    buried = [tasks.rejecting.delay("for good") for _ in range(4)]
    assert ["no" in text for text in outcomes(buried)] == [True] * 4
    assert {result.state for result in buried} == {states.FAILURE}
    wait_until(lambda: tasks.rejecting.stats()["dead"] == 4, description="dead letters")


def test_a_hard_time_limit_fails_the_undecided_requests(tasks: Any) -> None:
    """Celery kills the run; its callers get TimeLimitExceeded at once."""
    results = [tasks.too_long.delay() for _ in range(4)]

    assert results[0].get(timeout=20) == "in time"
    for result in results[1:]:
        with pytest.raises(TimeLimitExceeded):
            result.get(timeout=20)
    wait_until(lambda: tasks.too_long.stats()["running"] == 0, description="settled")


def test_acks_late_false_never_runs_twice(tasks: Any) -> None:
    """At most once: when the run dies its requests fail."""
    results = [tasks.at_most_once.delay() for _ in range(4)]

    for result in results:
        with pytest.raises(WorkerLostError):
            result.get(timeout=20)
    assert len(ledger()) == 1


@pytest.mark.timeout(60)
def test_a_poison_request_costs_no_other(tasks: Any) -> None:
    """The batch is halved at each crash until the poison is alone; the others all run."""
    words = ["well"] * 3 + ["poison"] + ["well"] * 4
    results = [tasks.poisoned.delay(word) for word in words]

    found = [result.get(timeout=40, propagate=False) for result in results]
    poison = found.pop(3)

    assert found == ["well"] * 7
    assert isinstance(poison, WorkerLostError)
    crashes = [run for run in ledger() if "poison" in str(run["args"])]
    assert len(crashes) <= 3 + 3


def test_a_batch_may_call_tasks(tasks: Any) -> None:
    """What it calls runs as any other task."""
    results = [tasks.nested.delay(number) for number in range(4)]

    ids = [result.get(timeout=20) for result in results]
    values = [tasks.app.AsyncResult(task_id).get(timeout=20) for task_id in ids]
    assert values == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["double", "double_by_backend"])
def test_chains_links_and_chords_go_on(tasks: Any, name: str) -> None:
    """A batch step works at any place of a canvas, in old code too."""
    step = getattr(tasks, name)

    linked = step.apply_async((1,), link=tasks.add.s(10))
    chained = chain(tasks.add.s(1, 2), step.s(), tasks.add.s(1), step.s()).apply_async()
    grouped = group(step.s(number) for number in range(4)).apply_async()
    summed = chord([step.s(number) for number in range(5)])(tasks.total.s())

    assert linked.get(timeout=20) == 2
    wait_until(lambda: linked.children, description="the link")
    assert linked.children[0].get(timeout=20) == 12
    assert chained.get(timeout=20) == 14
    assert chained.parent.parent.get(timeout=20) == 6
    assert grouped.get(timeout=20) == [0, 2, 4, 6]
    assert summed.get(timeout=20) == 20


def test_a_failed_part_fails_its_chord_and_calls_errbacks(tasks: Any, tmp_path: Path) -> None:
    """Whoever waits for the chord or the chain gets an exception."""
    failing = chord([tasks.double.s(1), tasks.raising.s()])(tasks.total.s())
    broken = chain(tasks.raising.s(), tasks.double.s()).apply_async()
    watched = tasks.raising.apply_async(link_error=tasks.note_error.s())

    with pytest.raises(Exception, match="all of it"):
        failing.get(timeout=20)
    with pytest.raises(Exception, match="all of it"):
        broken.get(timeout=20)
    errors = tmp_path / "errors"
    wait_until(errors.exists, description="the errback")
    assert wait_until(errors.read_text, description="its text").startswith(watched.id)


def test_a_retried_request_waits_as_long_as_it_says(tasks: Any) -> None:
    """`self.retry(countdown=)` delays, and does not block the worker."""
    before = time.time()
    outcomes([tasks.by_self.delay() for _ in range(4)])

    assert ledger()[1]["at"] - ledger()[0]["at"] >= 0.1
    assert ledger()[1]["at"] >= before
