"""Who settles the requests of a run: what its callers read then, and what Redis is to do with each.

Results are in memory, where Celery's own backend stores them one by one.
"""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, states
from celery.exceptions import Ignore, Reject, Retry

from redis_batches import LeaseLost, SimpleRequest, batched_task
from redis_batches.core.errors import StoreError
from redis_batches.core.outcomes import Outcome, Verb
from redis_batches.core.requests import Attempts, Claimed
from redis_batches.runs.batch import Fate
from redis_batches.runs.decide import End, ending_of
from redis_batches.runs.report_all import report_all
from redis_batches.runs.reporter import Reporter
from redis_batches.runs.running import call, running
from redis_batches.wire.envelope import CorruptEnvelope, Envelope, UnknownEnvelope
from tests.support.held import Held


@pytest.fixture
def task(app: Celery) -> Any:
    """A task."""

    def function(requests: list[SimpleRequest]) -> None:
        """A batch function."""

    made = batched_task(2, app=app, name="task", shared=False, max_retries=1)(function)
    # What is in memory is so for every app.
    made.backend.client.cache.clear()
    return made


@pytest.fixture
def lease() -> Held:
    """The run's."""
    return Held()


@pytest.fixture
def requests() -> list[SimpleRequest]:
    """Two calls."""
    return [
        SimpleRequest.of(
            "task",
            Claimed(name, 0, Attempts(), b""),
            Envelope({}, ((), {}, None)),
            hostname="worker@here",
            route={"routing_key": "celery"},
            ignore_result=False,
        )
        for name in "ab"
    ]


@pytest.fixture
def reporter(task: Any, lease: Held, requests: list[SimpleRequest]) -> Reporter:
    """Who settles them."""
    made = Reporter(task, lease, patience=0)
    made.batch.add(requests)
    return made


def state(reporter: Reporter, request: SimpleRequest) -> tuple[str, Any]:
    """Returns what a caller reads."""
    result = reporter.task.AsyncResult(request.id)
    return result.state, result.result


def decided(reporter: Reporter) -> dict[str, Any]:
    """Returns what Redis is to do with each request that has an outcome."""
    return dict(reporter.batch.unsaved)


# -- One request


def test_a_result_is_stored_and_its_request_forgotten(
    reporter: Reporter, requests: list[SimpleRequest]
) -> None:
    """When the batch ends; the other one is undecided."""
    reporter.succeed(requests[0], 7)

    assert state(reporter, requests[0]) == (states.SUCCESS, 7)
    assert decided(reporter) == {"a": Fate.FORGOTTEN}
    assert reporter.batch.undecided == [requests[1]]


def test_a_request_has_one_outcome(reporter: Reporter, requests: list[SimpleRequest]) -> None:
    """The first; the second is a line in the log."""
    reporter.succeed(requests[0], 7)
    reporter.fail(requests[0], ValueError())

    assert state(reporter, requests[0]) == (states.SUCCESS, 7)


def test_a_dead_letter_fails_and_is_kept(reporter: Reporter, requests: list[SimpleRequest]) -> None:
    """With its error."""
    reporter.dead_letter(requests[0], ValueError("no"))

    assert state(reporter, requests[0])[0] == states.FAILURE
    assert decided(reporter) == {"a": Outcome("a", Verb.DEAD, error="ValueError('no')")}


def test_a_revoked_request_says_so(reporter: Reporter, requests: list[SimpleRequest]) -> None:
    """And is forgotten."""
    reporter.revoke(requests[0], "expired")

    assert state(reporter, requests[0])[0] == states.REVOKED
    assert decided(reporter) == {"a": Fate.FORGOTTEN}


def test_a_retry_is_reported_and_given_back(
    reporter: Reporter, requests: list[SimpleRequest]
) -> None:
    """It runs again when it says."""
    assert reporter.retry(requests[0], countdown=5, exc=ValueError("busy"))

    assert state(reporter, requests[0])[0] == states.RETRY
    assert decided(reporter) == {"a": Outcome("a", Verb.RETRY, 5000, "ValueError('busy')")}


def test_a_retry_without_tries_is_a_dead_letter(
    reporter: Reporter, requests: list[SimpleRequest]
) -> None:
    """It fails with the reason."""
    assert not reporter.retry(requests[0], exc=ValueError("busy"), max_retries=0)

    assert isinstance(state(reporter, requests[0])[1], ValueError)
    assert decided(reporter)["a"].verb is Verb.DEAD


@pytest.mark.parametrize(
    ("exc", "reported", "decision"),
    [
        (ValueError("no"), states.FAILURE, Fate.FORGOTTEN),
        (Ignore(), states.PENDING, Fate.FORGOTTEN),
        (Retry(when=3), states.RETRY, Outcome("a", Verb.RETRY, 3000)),
    ],
    ids=repr,
)
def test_an_exception_is_reported_as_it_was_decided(
    reporter: Reporter, requests: list[SimpleRequest], exc: Exception, reported: str, decision: Any
) -> None:
    """As `redis_batches.runs.decide` says."""
    reporter.decide(requests[0], exc)

    assert state(reporter, requests[0])[0] == reported
    assert decided(reporter) == {"a": decision}


def test_what_is_put_back_is_nobodys_news(
    reporter: Reporter, requests: list[SimpleRequest]
) -> None:
    """Its caller goes on waiting."""
    assert reporter.decide(requests[0], Reject("later", requeue=True))

    assert state(reporter, requests[0])[0] == states.PENDING
    assert decided(reporter)["a"].verb is Verb.PUT_BACK


def test_what_a_newer_worker_understands_waits_for_it(
    reporter: Reporter, requests: list[SimpleRequest]
) -> None:
    """What nobody understands is a dead letter."""
    reporter.give_up(requests[0], UnknownEnvelope("of a newer version"))
    reporter.give_up(requests[1], CorruptEnvelope("no call"))

    assert [state(reporter, request)[0] for request in requests] == ["PENDING", "FAILURE"]
    assert [each.verb for each in decided(reporter).values()] == [Verb.POSTPONE, Verb.DEAD]


# -- What fails meanwhile


def test_what_could_not_be_stored_is_undecided_and_doubtful(
    reporter: Reporter, requests: list[SimpleRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever goes on reads its state first: it may have been stored."""

    def down(*_: Any, **__: Any) -> None:
        raise ConnectionError("down")

    monkeypatch.setattr(reporter.task.backend, "store_result", down)

    with pytest.raises(ConnectionError):
        reporter.succeed(requests[0], 7)

    assert decided(reporter) == {}
    assert reporter.batch.doubtful == [requests[0]]
    assert reporter.writer.outage is not None


def test_a_result_that_can_never_be_stored_fails_its_request(
    reporter: Reporter, requests: list[SimpleRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller reads why."""
    store = reporter.task.backend.store_result

    def picky(task_id: str, value: Any, *args: Any, **options: Any) -> Any:
        if value == "too large":
            raise ValueError("a column is too small")
        return store(task_id, value, *args, **options)

    monkeypatch.setattr(reporter.task.backend, "store_result", picky)
    reporter.succeed(requests[0], "too large")

    assert state(reporter, requests[0])[0] == states.FAILURE


def test_a_run_that_lost_its_lease_reports_nothing(
    reporter: Reporter, requests: list[SimpleRequest], lease: Held
) -> None:
    """Another one does."""
    lease.lost = True

    with pytest.raises(LeaseLost):
        reporter.succeed(requests[0], 7)

    assert (state(reporter, requests[0])[0], decided(reporter)) == (states.PENDING, {})


# -- What no stored state tells a second run


def test_what_is_stored_nowhere_is_forgotten_at_once(
    task: Any, reporter: Reporter, requests: list[SimpleRequest], lease: Held
) -> None:
    """Else it would run again if its run died now; when all is settled it goes with the others."""
    for request in requests:
        request.ignore_result = True
    reporter.succeed(requests[0], 7)
    assert (lease.acked, decided(reporter)) == (["a"], {})

    reporter.ended = True
    reporter.succeed(requests[1], 7)
    assert (lease.acked, decided(reporter)) == (["a"], {"b": Fate.FORGOTTEN})


def test_what_cannot_be_forgotten_yet_goes_with_the_others(
    reporter: Reporter, requests: list[SimpleRequest], lease: Held
) -> None:
    """The function is none the worse for it."""
    lease.fails = StoreError("down")
    requests[0].ignore_result = True
    reporter.succeed(requests[0], 7)

    assert decided(reporter) == {"a": Fate.FORGOTTEN}


# -- All of them


def test_the_end_of_a_function_settles_what_is_left(
    reporter: Reporter, requests: list[SimpleRequest]
) -> None:
    """What has an outcome keeps it."""
    reporter.succeed(requests[0], "first")
    ending = ending_of(End(results={"a": "second", "b": 2}), reporter.batch.undecided)

    assert not report_all(reporter, ending)
    assert [state(reporter, request)[1] for request in requests] == ["first", 2]


def test_what_cannot_be_done_with_a_request_fails_it_alone(
    reporter: Reporter, requests: list[SimpleRequest]
) -> None:
    """Its mate has its result."""
    results = {"a": Retry(when="no time at all"), "b": 2}

    assert not report_all(reporter, ending_of(End(results=results), requests))
    assert [state(reporter, request)[0] for request in requests] == ["FAILURE", "SUCCESS"]


def test_whether_any_runs_again_is_known(reporter: Reporter, requests: list[SimpleRequest]) -> None:
    """Celery is told so."""
    assert report_all(reporter, ending_of(End(raised=Retry(when=3)), requests))
    assert {each.verb for each in decided(reporter).values()} == {Verb.RETRY_BATCH}


# -- What a function sees


def test_requests_know_their_batch_while_they_run(
    reporter: Reporter, requests: list[SimpleRequest], lease: Held
) -> None:
    """Its token and its fence, so that writes can be idempotent, and who settles them."""
    requests[1].attempt = 3

    def function(given: list[SimpleRequest]) -> list[Any]:
        assert running == {"a": reporter, "b": reporter}
        lease.lost = True
        return [given[0].batch]

    (batch,) = call(reporter, function)

    public = {name for name in dir(batch) if not name.startswith("_")}
    assert public == {"token", "fence", "attempt", "lost"}
    assert (batch.token, batch.fence, batch.attempt, batch.lost) == ("token", 9, 3, True)
    assert running == {}


def test_a_newer_run_of_a_request_is_still_found(
    task: Any, reporter: Reporter, requests: list[SimpleRequest]
) -> None:
    """The end of the older one takes nothing of it."""
    newer = Reporter(task, Held())

    def function(_: list[SimpleRequest]) -> None:
        running["a"] = newer

    call(reporter, function)

    assert running.pop("a") is newer
    assert running == {}
