"""What a run does to its requests, in this process: no broker, no server, no waiting."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery, signals, states
from celery.app.task import Context
from celery.exceptions import (
    Ignore,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
    WorkerShutdown,
)

from redis_batches import LeaseLost, OptionError, SimpleRequest
from redis_batches.app.doorbell import MARKER, new_token
from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.errors import BatchesError, StoreError
from redis_batches.runs import give_back, runner
from redis_batches.runs.runner import RUNNING, Runner
from redis_batches.testing.clock import Clock
from redis_batches.testing.worker import InProcess, in_process
from redis_batches.upkeep.sweeper import Served, Sweeper
from redis_batches.worker.doorbell_request import take_back
from redis_batches.worker.served import batch_tasks
from tests.support import raw


class Wrong(Exception):
    """What the functions raise."""


def answer(here: InProcess) -> None:
    """Answers a doorbell, whatever the run raises."""
    with suppress(Ignore, Retry, Wrong, OSError):
        here.answer(force=True)


def sweep(here: InProcess, clock: Clock, seconds: float) -> None:
    """Lets time pass, then sweeps."""
    clock.advance(int(seconds * 1000))
    store = here.task.inspector._store
    served = [Served(store, here.task.trigger)]
    Sweeper(lambda: served, lambda _, bells: here.bells.extend([bells] * bells.count), 1).tick()


def use(here: InProcess, clock: Clock) -> None:
    """Gives the task's store a clock that only the test moves."""
    clock.now_ms = int(datetime.now(timezone.utc).timestamp() * 1000)
    here.task.inspector._store._redis.clock = clock


def test_a_run_past_its_deadline_still_settles_what_it_owns(clock: Clock) -> None:
    """Its lease is not renewed any more, but nobody has taken it over: the caller is told."""

    def function(requests: list[SimpleRequest]) -> None:
        lease = requests[0].settler.lease
        clock.advance(11_000)
        assert not lease.extend()
        assert lease.overdue
        raise Wrong

    with in_process(function, 1, time_limit=10) as here:
        use(here, clock)
        result = here.task.delay()
        answer(here)

        assert result.state == states.FAILURE
        assert here.task.stats()["acked"] == 1


def test_an_old_result_of_the_same_id_is_not_taken_for_this_calls(clock: Clock) -> None:
    """A second call with the id of a finished one that has to be retried runs again."""
    runs: list[int] = []

    def function(requests: list[SimpleRequest]) -> list[int]:
        runs.append(requests[0].args[0])
        if len(runs) == 2:
            raise Wrong
        return [request.args[0] for request in requests]

    with in_process(function, 1, autoretry_for=(Wrong,), default_retry_delay=1) as here:
        use(here, clock)
        here.task.apply_async((1,), task_id="k")
        answer(here)
        assert here.task.AsyncResult("k").result == 1

        clock.advance(60_000)
        here.task.apply_async((2,), task_id="k")
        answer(here)
        sweep(here, clock, 2)
        answer(here)

        assert runs == [1, 2, 2]


def test_what_an_earlier_run_told_is_not_told_again(clock: Clock) -> None:
    """A run that died after telling leaves nothing for the second one to do."""
    runs: list[int] = []

    def function(requests: list[SimpleRequest]) -> list[int]:
        runs.append(len(requests))
        return [request.args[0] for request in requests]

    with in_process(function, 2) as here:
        use(here, clock)
        results = [here.task.delay(number) for number in range(2)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("redis_batches.buffer.lease.Lease.ack", _die)
            with pytest.raises(KeyboardInterrupt):
                here.answer()
        assert [result.state for result in results] == [states.SUCCESS] * 2

        sweep(here, clock, 60)
        while here.bells:
            answer(here)

        assert runs == [2]
        assert here.task.stats()["acked"] == 2


def _die(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("ignores", "call", "stored"), [(True, False, True), (False, True, False)])
def test_a_call_says_whether_its_result_is_stored(ignores: bool, call: bool, stored: bool) -> None:
    """Whatever the task says."""
    with in_process(first_argument, 1, ignore_result=ignores) as here:
        result = here.task.apply_async((1,), ignore_result=call)
        answer(here)

        assert (here.task.AsyncResult(result.id).state == states.SUCCESS) is stored


def first_argument(requests: list[SimpleRequest]) -> list[Any]:
    """Returns the first argument of each request."""
    return [request.args[0] for request in requests]


def test_at_most_once_holds_when_the_outcome_cannot_be_told(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function does not run again; its requests fail when the lease has ended."""
    monkeypatch.setattr("redis_batches.runs.state_writer.PATIENCE", 0.0)
    runs: list[int] = []

    def function(requests: list[SimpleRequest]) -> list[int]:
        runs.append(1)
        return [1] * len(requests)

    with in_process(function, 1, acks_late=False) as here:
        use(here, clock)
        result = here.task.delay()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(here.task.backend, "store_result", _refuse)
            answer(here)
        sweep(here, clock, 60)
        answer(here)

        assert runs == [1]
        assert isinstance(result.result, WorkerLostError)


def _refuse(*_: Any, **__: Any) -> None:
    raise ConnectionError("the backend is down")


def test_an_outcome_is_told_again_while_the_backend_is_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The function ran once, and its result arrives."""
    monkeypatch.setattr("redis_batches.runs.state_writer.sleep", lambda _: None)
    runs: list[int] = []

    def function(requests: list[SimpleRequest]) -> list[int]:
        runs.append(1)
        return [7] * len(requests)

    with in_process(function, 1) as here:
        result = here.task.delay()
        store, refusals = here.task.backend.store_result, iter([True, True])

        def sometimes(*args: Any, **kwargs: Any) -> Any:
            if next(refusals, False):
                raise ConnectionError("the backend is down")
            return store(*args, **kwargs)

        monkeypatch.setattr(here.task.backend, "store_result", sometimes)
        answer(here)

        assert (runs, result.result) == ([1], 7)


def test_a_result_that_the_backend_refuses_for_good_fails_its_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does not run again for ever."""

    with in_process(first_argument, 2) as here:
        results = [here.task.delay(value) for value in ("too large", "fits")]
        store = here.task.backend.store_result

        def picky(task_id: str, value: Any, *args: Any, **kwargs: Any) -> Any:
            if value == "too large":
                raise ValueError("a column is too small")
            return store(task_id, value, *args, **kwargs)

        monkeypatch.setattr(here.task.backend, "store_result", picky)
        answer(here)

        assert [result.state for result in results] == [states.FAILURE, states.SUCCESS]
        assert here.task.stats()["acked"] == 2


def test_a_bare_retry_retries_what_is_undecided(clock: Clock) -> None:
    """As `self.retry()` does."""

    def function(requests: list[SimpleRequest]) -> None:
        requests[0].succeed("first")
        raise Retry(exc=Wrong(), when=5)

    with in_process(function, 2) as here:
        use(here, clock)
        results = [here.task.delay() for _ in range(2)]
        answer(here)

        assert [result.state for result in results] == [states.SUCCESS, states.RETRY]
        assert here.task.stats()["delayed"] == 1


def test_an_expired_call_is_revoked_and_does_not_run() -> None:
    """As Celery's workers do; the others of its batch run."""
    ran: list[Any] = []

    def function(requests: list[SimpleRequest]) -> list[Any]:
        ran.extend(request.args[0] for request in requests)
        return [None] * len(requests)

    with in_process(function, 2) as here:
        past = datetime.now(timezone.utc) - timedelta(seconds=1)
        expired = here.task.apply_async(("old",), expires=past)
        fresh = here.task.apply_async(("new",), expires=3600)
        answer(here)

        assert ran == ["new"]
        assert (expired.state, fresh.state) == (states.REVOKED, states.SUCCESS)
        assert here.task.stats()["acked"] == 2


def test_task_revoked_is_sent_for_each_call_that_expired() -> None:
    """With the call's own request, as Celery's workers do."""
    revoked: list[tuple[str, bool]] = []

    def receive(request: Any, expired: bool, **_: Any) -> None:
        revoked.append((request.id, expired))

    with in_process(first_argument, 2) as here:
        results = [here.task.apply_async((1,), expires=-1) for _ in range(2)]
        signals.task_revoked.connect(receive)
        answer(here)
        signals.task_revoked.disconnect(receive)

    assert revoked == [(result.id, True) for result in results]


@pytest.mark.parametrize("option", ["args", "kwargs"])
def test_a_retry_of_a_batch_takes_no_arguments_of_a_call(option: str) -> None:
    """Each request keeps its own: the error is told to every caller."""

    def function(self: Any, requests: list[SimpleRequest]) -> None:
        self.retry(**{option: {"args": (1,), "kwargs": {}}[option]})

    with in_process(function, 1, bind=True) as here:
        result = here.task.delay()
        with pytest.raises(TypeError):
            here.answer()

        assert "each request keeps its own" in str(result.result)


@pytest.mark.parametrize("option", ["time_limit", "soft_time_limit"])
def test_a_time_limit_of_a_call_is_refused(option: str) -> None:
    """One limit holds for a batch, so it belongs to the task."""
    with in_process(first_argument, 2, **{option: 5}) as here:
        here.task.apply_async((1,), **{option: 5})
        with pytest.raises(OptionError, match="set on the task"):
            here.task.apply_async((1,), **{option: 6})


def test_another_packages_batch_task_is_none_of_ours(app: Celery) -> None:
    """An app may use both while it migrates, task by task."""

    @app.task(flush_every=10, flush_interval=1)
    def theirs(requests: list[Any]) -> None:
        pass

    assert batch_tasks(app) == []


def test_flush_asks_for_everything_and_fills_no_broker() -> None:
    """Each forced batch rings for the next."""
    with in_process(first_argument, 2) as here:
        results = [here.task.delay(number) for number in range(101)]
        here.bells.clear()

        assert here.task.flush() == 51
        assert len(here.bells) == 16
        while here.bells:
            answer(here)

        assert here.task.stats()["acked"] == 101
        assert results[-1].result == 100


# -- One outcome per request


def test_a_request_has_one_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first; nobody hears of another."""
    failed: list[str] = []

    def function(requests: list[SimpleRequest]) -> list[str]:
        requests[0].succeed("first")
        requests[0].fail(Wrong())
        return ["second"]

    with in_process(function, 1) as here:
        monkeypatch.setattr(
            here.task.backend, "mark_as_failure", lambda task_id, *_, **__: failed.append(task_id)
        )
        result = here.task.delay()
        answer(here)

        assert (result.state, result.result) == (states.SUCCESS, "first")
        assert failed == []
        assert here.task.stats()["acked"] == 1


def test_a_batch_that_is_rejected_with_requeue_waits_again() -> None:
    """No caller is told anything."""

    def function(requests: list[SimpleRequest]) -> None:
        raise Reject("not now", requeue=True)

    with in_process(function, 1) as here:
        result = here.task.delay()
        answer(here)

        assert result.state == states.PENDING
        assert here.task.stats()["waiting"] == 1


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1], "a list of 1 results for a batch of 2 requests"),
        ({"nobody": 1}, "the key 'nobody'"),
        ("text", "returned str"),
    ],
    ids=["length", "key", "type"],
)
def test_results_of_nobody_are_an_error(returned: Any, message: str) -> None:
    """That is told to every caller of the batch."""

    def function(requests: list[SimpleRequest]) -> Any:
        return returned

    with in_process(function, 2) as here:
        results = [here.task.delay() for _ in range(2)]
        with pytest.raises(BatchesError, match=message):
            here.answer()

        assert [result.state for result in results] == [states.FAILURE] * 2


def test_a_retry_may_have_fewer_tries_than_its_task(clock: Clock) -> None:
    """As in Celery, `max_retries` of a call of `retry()` counts."""

    def function(requests: list[SimpleRequest]) -> None:
        here.task.retry(exc=Wrong(), max_retries=0)

    with in_process(function, 1, max_retries=5) as here:
        result = here.task.delay()
        answer(here)

        assert result.state == states.FAILURE


def test_a_run_that_lost_its_lease_tells_nobody(clock: Clock) -> None:
    """Another worker runs its requests: their callers get that one's results."""

    def function(requests: list[SimpleRequest]) -> None:
        lease = requests[0].settler.lease
        store.reclaim(lease.token, lease.group, here.task.trigger, seen_dead=True)
        lease.extend()
        with pytest.raises(LeaseLost):
            requests[0].succeed("late")

    with in_process(function, 1) as here:
        store = here.task.inspector._store
        result = here.task.delay()
        with suppress(LeaseLost):
            here.answer()

        assert result.state == states.PENDING
        assert here.task.stats()["waiting"] == 1


def test_a_call_from_inside_its_batch_that_a_failover_lost_runs_again(clock: Clock) -> None:
    """The new server knows of no retry, so the lease brings the request back."""

    def function(requests: list[SimpleRequest]) -> None:
        if requests[0].attempt > 1:
            return
        client = raw.client(here.task.inspector._store)
        replica = {key: client.dump(key) for key in client.keys("*")}
        here.task.apply_async(task_id=requests[0].id)
        client.flushall()
        for key, dump in replica.items():
            client.restore(key, 0, dump)

    with in_process(function, 1) as here:
        use(here, clock)
        result = here.task.delay()
        answer(here)
        assert here.task.stats()["acked"] == 0
        sweep(here, clock, 31)
        answer(here)

        assert result.state == states.SUCCESS


def test_a_batch_that_failed_as_a_whole_waits_as_a_whole(clock: Clock) -> None:
    """Jitter differs from batch to batch, and does not scatter one."""

    def function(requests: list[SimpleRequest]) -> None:
        raise Wrong

    options = {"autoretry_for": (Wrong,), "retry_backoff": 600}
    with in_process(function, 20, **options) as here:
        for number in range(20):
            here.task.delay(number)
        answer(here)

        store = here.task.inspector._store
        delayed = raw.client(store).zrange(raw.key(store, "delayed"), 0, -1, withscores=True)
        # Jitter may be nothing at all: then none of them waits.
        assert len(delayed) in (0, 20)
        assert len({ready_ms for _, ready_ms in delayed}) <= 1


def test_a_request_that_is_failed_is_retried_if_the_task_says_so() -> None:
    """`request.fail` is final but for what `autoretry_for` covers, as a returned exception is."""

    def function(requests: list[SimpleRequest]) -> None:
        for request in requests:
            request.fail(Wrong("again") if request.args[0] else ValueError("final"))

    with in_process(function, 2, autoretry_for=(Wrong,), default_retry_delay=5) as here:
        results = [here.task.delay(number) for number in range(2)]
        answer(here)

        assert [result.state for result in results] == ["FAILURE", "RETRY"]
        assert here.task.stats()["delayed"] == 1


def test_requests_that_fail_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Celery logs each failed call; of a batch one line says which, without their arguments."""

    def function(requests: list[SimpleRequest]) -> list[Any]:
        return [Wrong("no") if request.args[0] % 2 else 1 for request in requests]

    with (
        in_process(function, 4, ignore_result=True) as here,
        caplog.at_level("INFO", "redis_batches"),
    ):
        results = [here.task.delay(number) for number in range(4)]
        answer(here)

    (line,) = [text for text in caplog.messages if "failed" in text]
    assert line.startswith("2 of 4 requests of batch")
    assert results[1].id in line
    assert results[3].id in line
    assert "Wrong('no')" in line


def test_requests_that_retry_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """As Celery logs each call's retry: when and why."""

    def function(requests: list[SimpleRequest]) -> None:
        requests[0].retry(countdown=7, exc=Wrong("busy"))

    with in_process(function, 2) as here, caplog.at_level("INFO", "redis_batches"):
        retried, _ = [here.task.delay(number) for number in range(2)]
        answer(here)

    (line,) = [text for text in caplog.messages if "retry" in text]
    assert line.startswith("1 of 2 requests of batch")
    assert f"{retried.id}: Retry" in line
    assert "in 7s" in line
    assert "Wrong('busy')" in line


def claimed_by_a_second_delivery(here: InProcess) -> tuple[Any, Lease]:
    """Returns the request of a doorbell, and the lease of the run that it started last."""
    here.task.delay()
    (bells,) = here.bells
    bell = Context(
        {
            "id": "bell",
            "task": "here",
            "hostname": "worker@here",
            MARKER: {"group": bells.group, "rung_ms": bells.rung_ms},
        }
    )
    store = here.task.inspector._store
    token = new_token("worker@here")
    lease = store.claim(bells.group, here.task.trigger, token=token, bell="bell", force=True)
    assert isinstance(lease, Lease)
    return bell, lease


@pytest.mark.parametrize(
    "exc",
    [LeaseLost("late"), StoreError("down"), Wrong("own"), SoftTimeLimitExceeded()],
    ids=lambda exc: type(exc).__name__,
)
def test_what_a_run_raised_leaves_the_second_delivery_alone(exc: Exception) -> None:
    """The doorbell's token is that of another child of this worker by then, which runs well."""
    with in_process(first_argument, 1) as here:
        bell, lease = claimed_by_a_second_delivery(here)

        take_back(here.task.app, bell, exc)

        assert lease.extend()
        assert here.task.stats()["running"] == 1


@pytest.mark.parametrize("exc", [WorkerLostError("another's"), TimeLimitExceeded(1)])
def test_an_error_of_another_task_is_not_the_death_of_this_run(exc: Exception) -> None:
    """Its function waited for a result, and raised what it got."""
    with in_process(first_argument, 1) as here:
        bell, lease = claimed_by_a_second_delivery(here)
        setattr(bell, RUNNING, None)

        take_back(here.task.app, bell, exc)

        assert lease.extend()


@pytest.mark.parametrize(
    ("exc", "left"),
    [(WorkerLostError("killed"), 1), (Terminated("9"), 1), (TimeLimitExceeded(1), 0)],
)
def test_the_batch_of_a_run_that_died_is_taken_back(exc: Exception, left: int) -> None:
    """At once; what ran into its hard time limit fails."""
    with in_process(first_argument, 1) as here:
        bell, lease = claimed_by_a_second_delivery(here)

        take_back(here.task.app, bell, exc)

        assert not lease.extend()
        stats = here.task.stats()
        assert (stats["waiting"], stats["running"]) == (left, 0)


@pytest.mark.parametrize("exc", [WorkerLostError("killed"), TimeLimitExceeded(1)])
def test_a_death_on_another_worker_leaves_the_batch_alone(exc: Exception) -> None:
    """The doorbell was delivered there, too, and its batch runs well here."""
    with in_process(first_argument, 1) as here:
        bell, lease = claimed_by_a_second_delivery(here)
        bell.hostname = "other@here"

        take_back(here.task.app, bell, exc)

        assert lease.extend()
        assert here.task.stats()["running"] == 1


def test_a_run_that_wakes_after_its_hard_time_limit_gives_no_advice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its requests have failed already: no setting would have helped."""

    def function(requests: list[SimpleRequest]) -> None:
        settler: Any = requests[0].settler
        store = here.task.inspector._store
        Runner(here.task, store).fail(settler.lease.group, settler.token, TimeLimitExceeded(1))
        raise WorkerShutdown

    with in_process(function, 1) as here, caplog.at_level("INFO", "redis_batches"):
        here.task.delay()
        with pytest.raises(WorkerShutdown):
            here.answer(force=True)

    (told,) = (record for record in caplog.records if "put back" in record.getMessage())
    assert told.levelname == "INFO"
    assert "redis_batches_lease" not in caplog.text


def test_a_report_that_fails_says_what_the_function_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both are in the traceback that Celery logs."""
    monkeypatch.setattr("redis_batches.runs.state_writer.PATIENCE", 0.0)

    def function(requests: list[SimpleRequest]) -> None:
        raise Wrong

    with in_process(function, 1) as here:
        here.task.delay()
        monkeypatch.setattr(here.task.backend, "store_result", _refuse)
        with pytest.raises(ConnectionError) as raised:
            here.answer()

    assert isinstance(raised.value.__context__, Wrong)


STEPS: list[tuple[object, str]] = [
    (Store, "claim"),
    (runner, "decode_claimed"),
    (runner, "drop_settled"),
    (runner, "call"),
    (runner, "ending_of"),
    (runner, "report_all"),
    (give_back, "end"),
]


@pytest.mark.parametrize("raises", [False, True], ids=["it returns", "it raises"])
def test_a_run_is_one_line_of_steps(monkeypatch: pytest.MonkeyPatch, raises: bool) -> None:
    """Each is taken once, in this order, however the function ends."""
    taken: list[str] = []

    def function(requests: list[SimpleRequest]) -> list[int]:
        if raises:
            raise Wrong
        return [1]

    def noting(name: str, original: Any) -> Any:
        def step(*args: Any, **options: Any) -> Any:
            taken.append(name)
            return original(*args, **options)

        return step

    with in_process(function, 1) as here:
        here.task.delay()
        for owner, name in STEPS:
            monkeypatch.setattr(owner, name, noting(name, getattr(owner, name)))
        answer(here)

    assert taken == [name for _, name in STEPS]
