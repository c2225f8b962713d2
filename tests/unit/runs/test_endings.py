"""How a run may end, and what that makes of each of its requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import fakeredis
import gevent
import pytest
import redis
from billiard import common
from celery import _state, chord, group, signature  # type: ignore[attr-defined]
from celery.backends.redis import RedisBackend
from celery.exceptions import (
    ChordError,
    Ignore,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
    WorkerLostError,
    WorkerShutdown,
    WorkerTerminate,
)

from redis_batches import SimpleRequest
from redis_batches.core.errors import (
    LeaseLost,
    OptionError,
    OutOfMemory,
    PutBackTooOften,
    StoreError,
)
from redis_batches.core.requests import Outgoing
from redis_batches.core.triggers import Trigger
from redis_batches.runs import earlier, report, state_writer
from redis_batches.testing.clock import Clock
from redis_batches.testing.worker import InProcess, in_process
from tests.support import raw
from tests.support.steps import HOUR


class Odd(Exception):
    """Cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


class Wrong(Exception):
    """What a function raises."""


class OfItsOwn(BaseException):
    """No Exception, and nothing that anybody knows."""


@pytest.fixture
def results() -> fakeredis.FakeServer:
    """The server of a result backend."""
    return fakeredis.FakeServer()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is patient is so at once."""
    monkeypatch.setattr(state_writer, "sleep", lambda _: None)


def returns_one(requests: list[SimpleRequest]) -> list[int]:
    """Returns a result for each."""
    return [1] * len(requests)


def answer(here: InProcess) -> BaseException | None:
    """Answers a doorbell, as the pool does: whatever the run raises; returns it."""
    try:
        here.answer(force=True)
    except BaseException as exc:
        return exc
    return None


@contextmanager
def current(here: InProcess) -> Iterator[None]:
    """Makes the task's app the current one, in which Celery before 5.6 looks for groups."""
    before = _state._tls.current_app
    here.task.app.set_current()
    try:
        yield
    finally:
        _state._tls.current_app = before


def later(here: InProcess, clock: Clock) -> None:
    """Lets everything that is delayed wait with the others, and rings for it."""
    store = here.task.inspector._store
    store._redis.clock = clock
    clock.advance(HOUR)
    swept = store.sweep(Trigger(3, 10_000))
    for found, ids in swept.ready:
        bells = store.promote(found, ids, here.task.trigger)
        here.bells += [bells] * max(bells.count, 1)


def waits(here: InProcess) -> dict[str, int]:
    """Returns where the requests are."""
    stats = here.task.stats()
    return {name: stats[name] for name in ("waiting", "delayed", "running", "dead") if stats[name]}


# -- A retry is complete before anything is told


@pytest.mark.parametrize(
    "how",
    [
        {"countdown": timedelta(seconds=5)},
        {"countdown": "5"},
        {"countdown": float("inf")},
        {"countdown": float("nan")},
        {"countdown": 1e18},
        {"eta": 7},
        {"eta": "soon"},
    ],
    ids=str,
)
def test_a_retry_at_no_time_tells_nothing(results: fakeredis.FakeServer, how: Any) -> None:
    """The function gets an error that says so; if it does not catch it, it fails with that."""

    def function(requests: list[SimpleRequest]) -> None:
        requests[0].retry(**how)

    with in_process(function, 2, results=results) as here:
        calls = here.task.delay_many([(), ()])
        assert isinstance(answer(here), OptionError)

        assert [call.state for call in calls] == ["FAILURE", "FAILURE"]
        assert not waits(here)


def test_an_exception_without_a_repr_is_retried(results: fakeredis.FakeServer) -> None:
    """What it looks like is for the log."""

    def function(requests: list[SimpleRequest]) -> None:
        requests[0].retry(countdown=60, exc=Odd())

    with in_process(function, 1, results=results) as here:
        call = here.task.delay()
        assert answer(here) is None

        assert call.state == "RETRY"
        assert waits(here) == {"waiting": 1, "delayed": 1}


def test_an_exception_without_a_repr_fails_and_is_buried(results: fakeredis.FakeServer) -> None:
    """As any other."""

    def function(requests: list[SimpleRequest]) -> list[Any]:
        requests[0].retry(exc=Odd(), max_retries=0)
        return [None, Odd()]

    with in_process(function, 2, results=results) as here:
        calls = here.task.delay_many([(), ()])
        assert answer(here) is None

        assert [call.state for call in calls] == ["FAILURE", "FAILURE"]
        assert waits(here) == {"dead": 1}


def test_without_a_default_delay_a_retry_is_due_at_once(results: fakeredis.FakeServer) -> None:
    """As in Celery."""

    def function(requests: list[SimpleRequest]) -> None:
        raise Wrong

    options = {"autoretry_for": (Wrong,), "default_retry_delay": None}
    with in_process(function, 1, results=results, **options) as here:
        call = here.task.delay()
        assert isinstance(answer(here), Retry)

        assert call.state == "RETRY"
        assert waits(here) == {"waiting": 1}


def test_a_retry_may_have_further_options(results: fakeredis.FakeServer) -> None:
    """What Celery takes in `retry_kwargs`: the call has them from then on."""

    def function(requests: list[SimpleRequest]) -> None:
        seen.append((requests[0].retries, requests[0].delivery_info["priority"]))
        raise Wrong

    seen: list[Any] = []
    options = {"autoretry_for": (Wrong,), "retry_kwargs": {"priority": 7, "countdown": 0}}
    with in_process(function, 1, results=results, max_retries=1, **options) as here:
        call = here.task.delay()
        assert isinstance(answer(here), Retry)
        assert call.state == "RETRY"
        assert isinstance(answer(here), Wrong)

        assert seen == [(0, None), (1, 7)]
        assert call.state == "FAILURE"
        assert waits(here) == {"dead": 1}


def test_an_eta_without_a_time_zone_is_utc(results: fakeredis.FakeServer) -> None:
    """As that of a call, whatever the app's time zone."""

    def function(requests: list[SimpleRequest]) -> None:
        soon = datetime.now(timezone.utc) + timedelta(seconds=100)
        requests[0].retry(eta=soon.replace(tzinfo=None))

    with in_process(function, 1, results=results) as here:
        here.task.app.conf.timezone = "Asia/Tokyo"
        here.task.delay()
        store = here.task.inspector._store
        assert answer(here) is None

        delayed = raw.client(store).zrange(raw.key(store, "delayed"), 0, 0, withscores=True)
        assert delayed[0][1] / 1000 - datetime.now().timestamp() == pytest.approx(100, abs=20)


# -- What breaks into a run


@pytest.mark.parametrize(
    "exc",
    [asyncio.CancelledError("no"), OfItsOwn("no"), GeneratorExit("no"), gevent.GreenletExit("no")],
    ids=repr,
)
def test_what_is_no_exception_fails_what_is_undecided(
    results: fakeredis.FakeServer, exc: BaseException
) -> None:
    """Once, and told as Celery's pools tell it; never retried."""

    def function(requests: list[SimpleRequest]) -> None:
        runs.append(len(requests))
        requests[0].succeed(1)
        raise exc

    runs: list[int] = []
    options = {"autoretry_for": (BaseException,), "max_retries": 3}
    with in_process(function, 2, results=results, **options) as here:
        calls = here.task.delay_many([(), ()])
        assert isinstance(answer(here), WorkerLostError)

        assert [call.state for call in calls] == ["SUCCESS", "FAILURE"]
        assert type(calls[1].result) is WorkerLostError
        assert "no" in str(calls[1].result)
        assert (runs, waits(here)) == ([2], {})


def test_a_cancelled_result_fails_its_request(results: fakeredis.FakeServer) -> None:
    """`asyncio.gather(return_exceptions=True)` returns such ones."""

    def function(requests: list[SimpleRequest]) -> list[Any]:
        return [asyncio.CancelledError(), 2]

    with in_process(function, 2, results=results) as here:
        calls = here.task.delay_many([(), ()])
        assert answer(here) is None

        assert [call.state for call in calls] == ["FAILURE", "SUCCESS"]
        assert type(calls[0].result) is WorkerLostError


@pytest.mark.parametrize("exc", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_what_ends_the_process_counts_as_a_crash(
    results: fakeredis.FakeServer, exc: BaseException
) -> None:
    """What is undecided is halved, until the one to blame is alone: then it fails."""

    def function(requests: list[SimpleRequest]) -> list[int]:
        if any(request.args[0] == "bad" for request in requests):
            raise exc
        return [1] * len(requests)

    with in_process(function, 4, results=results) as here:
        calls = here.task.delay_many([(1,), (2,), ("bad",), (4,)])
        ends = []
        while here.bells:
            ends.append(answer(here))

        assert [call.state for call in calls] == ["SUCCESS", "SUCCESS", "FAILURE", "SUCCESS"]
        assert sum(isinstance(end, WorkerLostError) for end in ends) <= 6
        assert waits(here) == {"dead": 1}


def test_what_was_decided_before_a_crash_stays(results: fakeredis.FakeServer) -> None:
    """The others run again at once; one that was to be retried later is."""

    def function(requests: list[SimpleRequest]) -> None:
        requests[0].succeed(1)
        requests[1].retry(countdown=60)
        raise SystemExit

    with in_process(function, 3, results=results) as here:
        calls = here.task.delay_many([(), (), ()])
        assert isinstance(answer(here), WorkerLostError)

        assert [call.state for call in calls] == ["SUCCESS", "RETRY", "PENDING"]
        assert waits(here) == {"waiting": 2, "delayed": 1}
        assert here.task.stats()["reclaimed"] == 1


@pytest.mark.parametrize("kind", [WorkerShutdown, WorkerTerminate, SystemExit])
def test_a_shutdown_puts_back_what_is_undecided(
    results: fakeredis.FakeServer,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[BaseException],
) -> None:
    """However often; it runs again whole, and its attempt is the number of the run."""

    def function(requests: list[SimpleRequest]) -> list[int]:
        attempts.append([request.attempt for request in requests])
        if len(attempts) <= 5:
            # As the handler of a pool process's SIGTERM does.
            monkeypatch.setattr(common, "_should_have_exited", [kind is SystemExit])
            raise kind
        return [1] * len(requests)

    attempts: list[list[int]] = []
    with in_process(function, 2, results=results) as here:
        here.task.app.conf.redis_batches_max_put_backs = 2
        calls = here.task.delay_many([(), ()])
        for _ in range(5):
            assert isinstance(answer(here), kind)
            later(here, clock)
        assert answer(here) is None

        assert attempts == [[n, n] for n in range(1, 7)]
        assert [call.state for call in calls] == ["SUCCESS", "SUCCESS"]
        assert here.task.stats()["postponed"] == 10
        assert here.task.stats()["reclaimed"] == 0


def test_a_run_that_may_not_be_repeated_fails_in_a_shutdown(results: fakeredis.FakeServer) -> None:
    """At once, not when its lease ends."""

    def function(requests: list[SimpleRequest]) -> None:
        raise WorkerShutdown

    with in_process(function, 1, results=results, acks_late=False) as here:
        call = here.task.delay()
        assert isinstance(answer(here), WorkerShutdown)
        with suppress(Ignore):
            here.answer(force=True)

        assert (call.state, type(call.result)) == ("FAILURE", WorkerLostError)


def test_the_time_limit_of_the_gevent_pool_is_one(results: fakeredis.FakeServer) -> None:
    """The pool deals with the exception; callers are told as by the prefork pool."""

    def function(requests: list[SimpleRequest]) -> None:
        requests[0].succeed(1)
        raise gevent.Timeout(5)

    with in_process(function, 2, results=results) as here:
        calls = here.task.delay_many([(), ()])
        assert isinstance(answer(here), gevent.Timeout)

        assert [call.state for call in calls] == ["SUCCESS", "FAILURE"]
        assert isinstance(calls[1].result, TimeLimitExceeded)
        assert not waits(here)


def test_the_time_limit_may_end_a_run_that_tells(
    results: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was told stays; what was not fails."""

    def tell(*_: Any, **__: Any) -> Any:
        monkeypatch.undo()
        raise gevent.Timeout(5)

    with in_process(returns_one, 1, results=results) as here:
        call = here.task.delay()
        monkeypatch.setattr(report, "together", tell)
        assert isinstance(answer(here), gevent.Timeout)

        assert (call.state, type(call.result)) == ("FAILURE", TimeLimitExceeded)


@pytest.mark.parametrize("exc", [SoftTimeLimitExceeded(), OfItsOwn()], ids=repr)
@pytest.mark.parametrize("after", [False, True], ids=["before it is stored", "after it is stored"])
def test_what_breaks_into_telling_undoes_no_outcome(
    results: fakeredis.FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    exc: BaseException,
    after: bool,
) -> None:
    """A request whose result was stored keeps it; another one fails with what broke in."""
    tell = report.success

    def broken(*args: Any, **options: Any) -> Any:
        if after:
            tell(*args, **options)
        raise exc

    def function(requests: list[SimpleRequest]) -> None:
        monkeypatch.setattr(report, "success", broken)
        requests[0].succeed(1)

    with in_process(function, 2, results=results) as here:
        calls = here.task.delay_many([(), ()])
        answer(here)

        assert [call.state for call in calls] == ["SUCCESS" if after else "FAILURE", "FAILURE"]
        assert not waits(here)


# -- What is put back is counted


def test_what_is_put_back_again_and_again_ends(results: fakeredis.FakeServer, clock: Clock) -> None:
    """As a dead letter with its reason, after as many runs as are allowed."""

    def function(requests: list[SimpleRequest]) -> None:
        runs.append(requests[0].attempt)
        raise Reject("not today", requeue=True)

    runs: list[int] = []
    with in_process(function, 1, results=results) as here:
        here.task.app.conf.redis_batches_max_put_backs = 3
        call = here.task.delay()
        for _ in range(4):
            answer(here)
            later(here, clock)

        assert runs == [1, 2, 3]
        assert call.state == "FAILURE"
        assert isinstance(call.result, PutBackTooOften)
        assert "not today" in str(call.result)
        (letter,) = here.task.inspector.list()
        assert "not today" in letter.error


@pytest.mark.parametrize("end", [SoftTimeLimitExceeded, OfItsOwn])
def test_what_was_stored_when_something_broke_in_stays(
    results: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch, end: type[BaseException]
) -> None:
    """The run does not know that it was; what it ends with is the outcome of the others alone."""
    store = report.failure

    def store_and_break_off(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        store(*args, **kwargs)
        raise end

    def function(requests: list[SimpleRequest]) -> None:
        requests[0].fail(Wrong())

    with in_process(function, 2, results=results) as here:
        calls = here.task.delay_many([(1,), (2,)])
        monkeypatch.setattr(report, "failure", store_and_break_off)
        answer(here)

        assert isinstance(calls[0].result, Wrong)
        assert not isinstance(calls[1].result, Wrong)
        assert waits(here) == {}


def test_what_was_taken_back_is_not_decided_any_more(results: fakeredis.FakeServer) -> None:
    """Whoever still has a request of a run that ended its process says nothing of it."""
    kept = []

    def function(requests: list[SimpleRequest]) -> None:
        kept.extend(requests)
        raise SystemExit(3)

    with in_process(function, 1, results=results) as here:
        call = here.task.delay()
        answer(here)
        kept[0].succeed("too late")

        assert call.state == "PENDING"
        assert waits(here) == {"waiting": 1}


def test_what_nobody_decided_runs_again_at_once(
    results: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not left to the end of the lease."""
    with in_process(returns_one, 1, results=results) as here:
        call = here.task.delay()
        with monkeypatch.context() as patch:
            patch.setattr("redis_batches.runs.runner.report_all", lambda *_: False)
            answer(here)
        assert waits(here) == {"waiting": 1}
        answer(here)

        assert call.state == "SUCCESS"


def test_what_can_be_told_to_nobody_ends_all_the_same(
    results: fakeredis.FakeServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mate is none the worse for it."""

    def refuses(task: Any, request: SimpleRequest, *_: Any) -> Any:
        if request.args[0] == "odd":
            raise TypeError("no")
        raise AssertionError

    def function(requests: list[SimpleRequest]) -> Any:
        return {requests[0].id: Wrong()}

    with in_process(function, 2, results=results) as h:
        h.task.app.conf.redis_batches_max_put_backs = 2
        calls = h.task.delay_many([("odd",), (2,)])
        store = report.together
        monkeypatch.setattr(
            report,
            "together",
            lambda task, pairs, *a, **kw: store(task, pairs[1:], *a, **kw),
        )
        monkeypatch.setattr(report, "failure", refuses)
        for _ in range(4):
            answer(h)
            later(h, clock)

        assert calls[1].state == "SUCCESS"
        assert waits(h) == {"dead": 1}


# -- The result backend


class Outage:
    """A result backend whose next commands fail."""

    def __init__(self, here: InProcess, errors: list[Exception]) -> None:
        self._client, self._errors = here.task.backend.client, errors
        self._evalsha = self._client.evalsha
        self._client.evalsha = self

    def __call__(self, *args: Any) -> Any:
        if self._errors:
            raise self._errors.pop(0)
        return self._evalsha(*args)


@pytest.fixture(
    params=[
        redis.exceptions.ConnectionError("gone"),
        redis.exceptions.TimeoutError("late"),
        redis.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        redis.exceptions.ReadOnlyError("You can't write against a read only replica."),
        redis.exceptions.ResponseError("OOM command not allowed"),
    ],
    ids=["lost", "late", "out of memory", "read-only", "out of memory in a script"],
)
def refusal(request: pytest.FixtureRequest) -> Exception:
    """What a result backend may say for a while."""
    return request.param  # type: ignore[no-any-return]


def retries_one(requests: list[SimpleRequest]) -> list[Any]:
    """Tells one outcome of each kind by itself, and the others together."""
    requests[0].retry(countdown=60)
    requests[1].succeed(2)
    requests[2].fail(Wrong())
    return [None, None, None, 4]


@pytest.mark.parametrize("first", range(4))
def test_a_blip_of_the_result_backend_changes_no_outcome(
    results: fakeredis.FakeServer, refusal: Exception, first: int
) -> None:
    """Whatever is told just then is told again."""

    def function(requests: list[SimpleRequest]) -> list[Any]:
        outage._errors = [refusal] * 3 if first == 0 else []
        requests[0].retry(countdown=60)
        outage._errors = [refusal] * 3 if first == 1 else []
        requests[1].succeed(2)
        outage._errors = [refusal] * 3 if first == 2 else []
        requests[2].fail(Wrong())
        outage._errors = [refusal] * 3 if first == 3 else []
        return [None, None, None, 4]

    with in_process(function, 4, results=results) as here:
        calls = here.task.delay_many([()] * 4)
        outage = Outage(here, [])
        assert answer(here) is None

        assert not outage._errors
        assert [call.state for call in calls] == ["RETRY", "SUCCESS", "FAILURE", "SUCCESS"]
        assert waits(here) == {"waiting": 1, "delayed": 1}


def test_an_outage_of_the_result_backend_fails_nobody(
    results: fakeredis.FakeServer, clock: Clock, refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be told runs again, later each time, and is never given up for that."""

    def function(requests: list[SimpleRequest]) -> list[int]:
        runs.append(len(requests))
        requests[0].succeed(1)
        return [1, 2]

    monkeypatch.setattr(state_writer, "PATIENCE", -1.0)
    monkeypatch.setattr(earlier, "settled", lambda *_: [])
    runs: list[int] = []
    options = {"autoretry_for": (Exception,), "max_retries": 0}
    with in_process(function, 2, results=results, **options) as here:
        here.task.app.conf.redis_batches_max_put_backs = 2
        calls = here.task.delay_many([(), ()])
        outage = Outage(here, [refusal] * 5)
        while outage._errors:
            assert answer(here) is refusal
            later(here, clock)
        assert answer(here) is None

        assert runs == [2] * 6
        assert [call.state for call in calls] == ["SUCCESS", "SUCCESS"]
        assert here.task.stats()["put_backs"] == 0


# -- The lease


def test_a_worker_that_stalled_past_its_lease_calls_no_function(
    results: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was paused between its claim and the run: another one has told the outcome by then."""

    def stall(*_: Any) -> None:
        monkeypatch.undo()
        store = here.task.inspector._store
        lease.confirmed -= 100
        store.reclaim(lease.token, lease.group, here.task.trigger, seen_dead=True)

    runs: list[int] = []

    def function(requests: list[SimpleRequest]) -> None:
        runs.append(1)

    with in_process(function, 1, results=results) as here:
        call = here.task.delay()
        store = here.task.inspector._store
        claim = store.claim

        def remember(*args: Any, **options: Any) -> Any:
            nonlocal lease
            lease = claim(*args, **options)
            return lease

        lease: Any = None
        monkeypatch.setattr(here.task._runtime.store("here"), "claim", remember)
        monkeypatch.setattr("redis_batches.runs.runner.ring", stall)
        answer(here)

        assert (runs, call.state) == ([], "PENDING")
        assert lease.lost


def test_a_lease_is_dated_from_before_the_claim_was_sent(
    results: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its extension, too: whatever the reply took is of its time."""
    now = iter(range(1000))
    monkeypatch.setattr("redis_batches.buffer.store.monotonic", lambda: next(now))
    monkeypatch.setattr("redis_batches.buffer.lease.monotonic", lambda: next(now))
    with in_process(returns_one, 1, results=results) as here:
        here.task.delay()
        store = here.task.inspector._store
        (found,) = store.groups()
        lease: Any = store.claim(found, Trigger(1, 0))

        assert lease.confirmed == 0
        assert lease.extend()
        assert lease.confirmed == 1


# -- What stands in the place of one result


@pytest.fixture(params=["a list", "a dict", "fail"])
def decided(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Makes a function that decides its first request by an exception, each in its way."""

    def make(exc: Any) -> Any:
        def function(requests: list[SimpleRequest]) -> Any:
            first, *others = requests
            if first.args[0] != "first":
                return [2] * len(requests)
            if request.param == "fail":
                first.fail(exc)
                return [None, *(2 for _ in others)]
            found = [exc, *(2 for _ in others)]
            if request.param == "a list":
                return found
            return dict(zip((each.id for each in requests), found, strict=True))

        return function

    return make


@pytest.mark.parametrize(
    ("exc", "state", "where"),
    [
        (Ignore(), "PENDING", {}),
        (Reject("later", requeue=True), "PENDING", {"waiting": 1}),
        (Reject("never", requeue=False), "FAILURE", {"dead": 1}),
        (Retry(when=60), "RETRY", {"waiting": 1, "delayed": 1}),
        (Retry(when=datetime.now() + timedelta(days=1)), "RETRY", {"waiting": 1, "delayed": 1}),
    ],
    ids=["ignore", "requeue", "reject", "retry", "retry at"],
)
def test_a_verdict_holds_for_one_request(
    results: fakeredis.FakeServer, decided: Any, exc: Any, state: str, where: dict[str, int]
) -> None:
    """As Celery takes it for a task."""
    with in_process(decided(exc), 2, results=results) as here:
        calls = here.task.delay_many([("first",), (2,)])
        assert answer(here) is None

        assert [call.state for call in calls] == [state, "SUCCESS"]
        assert waits(here) == where


def test_a_list_that_was_emptied_is_not_what_is_counted(results: fakeredis.FakeServer) -> None:
    """A function may take its requests out of it."""

    def function(requests: list[SimpleRequest]) -> list[Any]:
        found = []
        while requests:
            found.append(requests.pop(0).args[0])
        return found

    with in_process(function, 3, results=results) as here:
        calls = here.task.delay_many([(1,), (2,), (3,)])
        assert answer(here) is None

        assert [call.result for call in calls] == [1, 2, 3]


# -- Canvas


def test_a_request_is_replaced_and_the_others_go_on(results: fakeredis.FakeServer) -> None:
    """Its id, its links and its place go to what replaces it."""

    def function(requests: list[SimpleRequest]) -> list[Any]:
        for request in requests:
            if request.args[0] == "replace":
                request.replace(here.task.s("instead"))
        return [request.args[0] for request in requests]

    with in_process(function, 2, results=results) as here:
        calls = here.task.delay_many([("replace",), (2,)])
        assert answer(here) is None
        assert [call.state for call in calls] == ["PENDING", "SUCCESS"]
        answer_rest(here)

        assert [call.result for call in calls] == ["instead", 2]
        assert not waits(here)


def answer_rest(here: InProcess) -> None:
    """Rings for what waits, and answers until nothing does."""
    here.task.flush()
    while here.bells:
        answer(here)


def test_a_request_that_is_replaced_by_another_task_is_forgotten(
    results: fakeredis.FakeServer,
) -> None:
    """That one tells the outcome."""
    sent: list[Any] = []

    def function(requests: list[SimpleRequest]) -> None:
        requests[0].replace(signature("other", args=(1,), app=here.task.app))

    with in_process(function, 1, results=results) as here:

        def send_task(name: str, *args: Any, **options: Any) -> Any:
            sent.append((name, options["task_id"]))
            return here.task.app.AsyncResult(options["task_id"])

        call = here.task.delay()
        here.task.app.send_task = send_task
        answer(here)

        assert sent == [("other", call.id)]
        assert call.state == "PENDING"
        assert not waits(here)


def test_a_request_adds_to_its_own_chord(results: fakeredis.FakeServer) -> None:
    """And one that is in none is told so."""

    def function(requests: list[SimpleRequest]) -> None:
        with pytest.raises(ValueError, match="not member of any chord"):
            requests[1].add_to_chord(here.task.s(3))
        lazy = requests[0].add_to_chord(here.task.s(3), lazy=True)
        added.append((lazy.options["group_id"], lazy.options["chord"]["task"]))
        with pytest.raises(TypeError, match=r"request\.add_to_chord"):
            here.task.add_to_chord(here.task.s(3))
        with pytest.raises(TypeError, match=r"request\.replace"):
            here.task.replace(here.task.s(3))

    added: list[Any] = []
    with in_process(function, 2, results=results) as here:
        here.task.apply_async((1,), chord=here.task.s(), group_id="g")
        here.task.apply_async((2,))
        assert answer(here) is None

        assert added == [("g", "here")]


def test_a_call_of_the_function_alone_may_be_replaced() -> None:
    """Eagerly, as Celery does it."""

    def function(requests: list[SimpleRequest]) -> None:
        requests[0].replace(here.task.app.signature("plain"))

    with in_process(function, 1) as here:
        here.task.app.conf.task_always_eager = True

        @here.task.app.task(name="plain", shared=False)
        def plain() -> str:
            return "replaced"

        assert here.task.apply((1,)).get() == "replaced"


@pytest.mark.parametrize("full", [False, True], ids=["out of memory", "backlog full"])
def test_the_body_of_a_chord_is_sent_patiently(
    results: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """The store takes it a moment later: the chord goes on, and its body runs once."""

    def function(requests: list[SimpleRequest]) -> list[Any]:
        return [request.args[0] for request in requests]

    with in_process(function, 1, results=results) as here, current(here):
        result = (group(here.task.s(1), here.task.s(2)) | here.task.s()).apply_async()
        store = here.task._runtime.store("here")
        push, refused = store.push, list[str]()

        def refuses(found: Any, trigger: Any, requests: list[Outgoing], *args: Any) -> Any:
            if len(refused) < 3 and here.task.stats()["acked"]:
                refused.extend(request.id for request in requests)
                if full:
                    monkeypatch.setattr(store, "settings", tight)
                    try:
                        return push(found, trigger, requests, *args)
                    finally:
                        monkeypatch.setattr(store, "settings", roomy)
                raise OutOfMemory("Redis refused to push")
            return push(found, trigger, requests, *args)

        roomy = store.settings
        tight = replace(roomy, max_pending=0)
        monkeypatch.setattr(store, "push", refuses)
        monkeypatch.setattr("redis_batches.calls.push.sleep", lambda _: None)
        answer_rest(here)

        assert refused == [result.id] * 3
        assert result.get(timeout=1) == [1, 2]
        assert here.task.stats()["pushed"] == 3


@pytest.mark.parametrize("fails", [False, True])
def test_an_unknown_error_leaves_no_part_of_a_chord_uncounted(
    results: fakeredis.FakeServer, clock: Clock, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """It is not the part's, whose state is stored."""

    def function(requests: list[SimpleRequest]) -> list[Any]:
        return [
            Wrong() if request.args[0] == 1 and fails else request.args[0] for request in requests
        ]

    count, raised = RedisBackend.on_chord_part_return, list[str]()

    def on_chord_part_return(backend: Any, request: Any, state: Any, result: Any) -> Any:
        if not raised:
            raised.append(request.id)
            raise redis.ResponseError("ERR something odd")
        return count(backend, request, state, result)

    monkeypatch.setattr(RedisBackend, "on_chord_part_return", on_chord_part_return)
    with in_process(function, 1, results=results) as here, current(here):
        result = (group(here.task.s(1), here.task.s(2)) | here.task.s()).apply_async()
        for _ in range(4):
            answer_rest(here)
            later(here, clock)

        assert len(raised) == 1
        assert isinstance(result.result, ChordError) if fails else result.result == [1, 2]


# -- Whose fault it is


@pytest.mark.parametrize(
    "exc", [KeyError("tenant"), FileNotFoundError(2, "no such file")], ids=repr
)
def test_what_a_link_raises_is_no_outage(results: fakeredis.FakeServer, exc: Exception) -> None:
    """A router of one call's link that fails is that call's failure, and not for ever."""

    def route(name: str, *_: Any, **__: Any) -> Any:
        if name == "linked":
            raise exc

    def function(requests: list[SimpleRequest]) -> list[int]:
        runs.append(len(requests))
        return [1] * len(requests)

    runs: list[int] = []
    with in_process(function, 2, results=results) as here:
        here.task.app.conf.task_routes = (route,)
        link = signature("linked", app=here.task.app)
        calls = [here.task.apply_async(link=link), here.task.apply_async()]
        assert answer(here) is None

        assert (runs, [call.state for call in calls]) == ([2], ["FAILURE", "SUCCESS"])


class Lazy:
    """An object that has lost what it stands for, as werkzeug's proxies have outside a request."""

    def __init__(self, exc: Exception) -> None:
        self._exc = exc

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise self._exc


@pytest.mark.parametrize("exc", [RuntimeError("unbound"), ConnectionError("gone")], ids=repr)
def test_an_odd_result_costs_only_its_request(
    results: fakeredis.FakeServer, exc: Exception
) -> None:
    """Not even a lost connection of its own is an outage."""

    def function(requests: list[SimpleRequest]) -> list[Any]:
        runs.append(len(requests))
        return [Lazy(exc), 2]

    runs: list[int] = []
    with in_process(function, 2, results=results) as here:
        calls = here.task.delay_many([(), ()])
        assert answer(here) is None

        assert (runs, [call.state for call in calls]) == ([2], ["FAILURE", "SUCCESS"])


@pytest.mark.parametrize("odd", ["text", None, 5], ids=repr)
def test_a_request_fails_with_an_exception(results: fakeredis.FakeServer, odd: Any) -> None:
    """Anything else is told to the function; a class is raised as Python does."""

    def function(requests: list[SimpleRequest]) -> None:
        with pytest.raises(TypeError, match="fails with an exception"):
            requests[0].fail(odd)
        requests[1].fail(Wrong)  # type: ignore[arg-type]

    with in_process(function, 2, results=results) as here:
        calls = here.task.delay_many([(), ()])
        assert answer(here) is None

        assert [call.state for call in calls] == ["SUCCESS", "FAILURE"]
        assert isinstance(calls[1].result, Wrong)


@pytest.mark.parametrize("where", ["raised", "raised from it", "in a group"])
@pytest.mark.parametrize("step", ["extend", "ack"])
def test_a_store_that_fails_while_an_outcome_is_told_fails_nobody(
    results: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch, where: str, step: str
) -> None:
    """However the function passes the error on."""

    def down(*_: Any, **__: Any) -> Any:
        monkeypatch.undo()
        raise StoreError("gone")

    def function(requests: list[SimpleRequest]) -> None:
        lease: Any = requests[0].settler.lease
        lease.confirmed -= 1000
        monkeypatch.setattr(lease, step, down)
        try:
            requests[0].succeed(1)
        except StoreError as exc:
            if where == "raised from it":
                raise Wrong from exc
            if where == "in a group":
                group: Any = Wrong("two")
                group.exceptions = (exc, ValueError())
                raise group from None
            raise

    with in_process(function, 2, results=results, ignore_result=step == "ack") as here:
        calls = here.task.delay_many([(), ()])
        ended = answer(here)

        assert "FAILURE" not in {call.state for call in calls}
        assert (ended is None) == (step == "ack")
        assert here.task.stats()["postponed"] == (2 if step == "extend" else 0)


def test_a_blip_before_the_function_does_not_use_up_its_only_run(
    results: fakeredis.FakeServer, refusal: Exception
) -> None:
    """At most once: a function that was not called may be."""

    def function(requests: list[SimpleRequest]) -> list[int]:
        return [1] * len(requests)

    options = {"acks_late": False, "track_started": True}
    with in_process(function, 1, results=results, **options) as here:
        call = here.task.delay()
        Outage(here, [refusal])
        assert answer(here) is None

        assert call.state == "SUCCESS"


def test_an_outage_before_the_function_does_not_use_up_its_only_run(
    results: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch, refusal: Exception, clock: Clock
) -> None:
    """It is put back."""
    monkeypatch.setattr(state_writer, "PATIENCE", -1.0)
    options = {"acks_late": False, "track_started": True}
    with in_process(returns_one, 1, results=results, **options) as here:
        call = here.task.delay()
        Outage(here, [refusal])
        assert answer(here) is refusal
        later(here, clock)
        assert answer(here) is None

        assert call.state == "SUCCESS"


@pytest.mark.parametrize("fails", [False, True], ids=["success", "failure"])
def test_what_was_told_is_not_given_up(
    results: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Its run died before it was forgotten, and must not run again: its outcome stays."""

    def function(requests: list[SimpleRequest]) -> list[Any]:
        return [Wrong() if fails else 1]

    def dies(*_: Any, **__: Any) -> Any:
        raise StoreError("gone")

    with in_process(function, 1, results=results, acks_late=False) as here:
        call = here.task.delay()
        store = here.task.inspector._store
        (found,) = store.groups()
        with monkeypatch.context() as patch:
            patch.setattr("redis_batches.buffer.lease.Lease.ack", dies)
            patch.setattr("redis_batches.buffer.store.Store.reclaim", dies)
            assert isinstance(answer(here), StoreError)
        (token,) = raw.client(store).zrange(raw.key(store, "leases"), 0, -1)
        bells = store.reclaim(token.decode(), found, here.task.trigger, seen_dead=True)
        here.bells.append(bells)
        answer(here)

        assert call.state == ("FAILURE" if fails else "SUCCESS")
        assert isinstance(call.result, Wrong if fails else int)
        assert not waits(here)


def test_what_was_told_is_found_though_it_was_put_back_for_a_while(
    results: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """It keeps its age, by which a stored state is known to be its own."""
    runs: list[int] = []

    def function(requests: list[SimpleRequest]) -> list[int]:
        runs.append(len(requests))
        return [1]

    def breaks(*args: Any, **options: Any) -> Any:
        monkeypatch.undo()
        report.together(*args, **options)
        raise SoftTimeLimitExceeded

    with in_process(function, 1, results=results) as here:
        call = here.task.delay()
        monkeypatch.setattr(report, "together", breaks)
        assert isinstance(answer(here), SoftTimeLimitExceeded)
        assert (call.state, waits(here)) == ("SUCCESS", {"waiting": 1, "delayed": 1})
        clock.now_ms = int(datetime.now().timestamp() * 1000)
        later(here, clock)
        answer(here)

        assert (runs, waits(here)) == ([1], {})


# -- Retries by a call


@pytest.mark.parametrize("parent", [None, "the step before"])
def test_a_retry_with_options_is_one_each_time(
    results: fakeredis.FakeServer, parent: str | None
) -> None:
    """Also that of a step, whose parent stays the same; its attempt is the number of the run."""

    def function(requests: list[SimpleRequest]) -> None:
        seen.append((requests[0].retries, requests[0].attempt))
        raise Wrong

    seen: list[Any] = []
    retry = {"priority": 3, "countdown": 0}
    options = {"autoretry_for": (Wrong,), "retry_kwargs": retry, "max_retries": 3}
    with in_process(function, 1, results=results, **options) as here:
        call = here.task.apply_async(task_id="step", parent_id=parent)
        while here.bells:
            answer(here)

        assert seen == [(0, 1), (1, 2), (2, 3), (3, 4)]
        assert isinstance(call.result, Wrong)


@pytest.mark.parametrize("name", ["task_id", "retries", "args", "time_limit", "expires"])
def test_a_retry_refuses_an_option_that_has_no_meaning(
    results: fakeredis.FakeServer, name: str
) -> None:
    """Before anything is told."""

    def function(requests: list[SimpleRequest]) -> None:
        with pytest.raises(OptionError, match=name):
            requests[0].retry(**{name: "garbage"})

    with in_process(function, 1, results=results) as here:
        call = here.task.delay()
        assert answer(here) is None

        assert call.state == "SUCCESS"


def test_a_request_that_retries_by_a_call_has_no_second_outcome(
    results: fakeredis.FakeServer,
) -> None:
    """Whoever names it later finds its batch, which knows."""

    def function(requests: list[SimpleRequest]) -> None:
        requests[0].retry(countdown=5, priority=3)
        here.task.backend.mark_as_done(requests[0].id, "literal")

    with in_process(function, 1, results=results) as here:
        call = here.task.delay()
        assert answer(here) is None

        assert call.state == "RETRY"


def test_a_batch_that_is_not_its_own_any_more_replaces_nothing(
    results: fakeredis.FakeServer,
) -> None:
    """Another run of the request does, or did."""
    sent: list[Any] = []

    def function(requests: list[SimpleRequest]) -> None:
        lease: Any = requests[0].settler.lease
        store = here.task.inspector._store
        store.reclaim(lease.token, lease.group, here.task.trigger, seen_dead=True)
        lease.confirmed -= 1000
        here.task.app.send_task = lambda *args, **_: sent.append(args)
        with pytest.raises(LeaseLost):
            requests[0].replace(signature("other", app=here.task.app))
        with pytest.raises(LeaseLost):
            requests[0].add_to_chord(signature("other", app=here.task.app))

    with in_process(function, 1, results=results) as here:
        here.task.delay()
        answer(here)

        assert not sent


def test_a_replaced_request_is_forgotten_at_once(results: fakeredis.FakeServer) -> None:
    """No stored state would tell a second run."""

    def function(requests: list[SimpleRequest]) -> None:
        here.task.app.send_task = lambda *_, **__: here.task.app.AsyncResult("x")
        requests[0].replace(signature("other", app=here.task.app))
        acked.append(here.task.stats()["acked"])

    acked: list[int] = []
    with in_process(function, 1, results=results) as here:
        here.task.delay()
        answer(here)

    assert acked == [1]


def test_a_body_that_is_replaced_by_a_chord_runs_again(results: fakeredis.FakeServer) -> None:
    """Each chord has its own: the polling workflow ends."""
    rounds: list[int] = []

    def function(requests: list[SimpleRequest]) -> list[Any]:
        for request in requests:
            if request.args[0] == "part":
                request.succeed(1)
            elif len(rounds) < 3:
                rounds.append(1)
                parts = [here.task.s("part"), here.task.s("part")]
                request.replace(chord(parts, here.task.s()))
        return ["end"] * len(requests)

    with in_process(function, 1, results=results) as here, current(here):
        call = here.task.delay("start")
        for _ in range(30):
            while here.bells:
                answer(here)
            here.task.flush()
            if not here.bells:
                break

        assert (len(rounds), call.state, call.result) == (3, "SUCCESS", "end")
