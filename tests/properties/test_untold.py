"""Runs that fail where an outcome is told: no request is forgotten, and none is told twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import fakeredis
import pytest
import redis
from celery import chain
from celery.exceptions import Ignore, TimeLimitExceeded, WorkerLostError

from redis_batches import SimpleRequest
from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.errors import LeaseLost, StoreError
from redis_batches.core.triggers import Bells
from redis_batches.runs import canvas, report
from redis_batches.runs.reporter import Reporter
from redis_batches.runs.runner import Runner
from redis_batches.testing.worker import InProcess, in_process
from redis_batches.wire.envelope import text
from tests.support import raw

CALLS = 4
REFUSED = (ConnectionRefusedError, redis.exceptions.ConnectionError)


def returns(requests: list[SimpleRequest]) -> list[int]:
    return [1] * len(requests)


def returns_one_error(requests: list[SimpleRequest]) -> list[Any]:
    return [ConnectionError("one"), *returns(requests)[1:]]


def raises(requests: list[SimpleRequest]) -> None:
    raise ConnectionError("all")


def raises_for_good(requests: list[SimpleRequest]) -> None:
    raise ValueError("all")


def fails_one(requests: list[SimpleRequest]) -> None:
    requests[0].fail(ValueError("one"))


def retries_one(requests: list[SimpleRequest]) -> None:
    requests[0].retry(countdown=60)


@pytest.fixture(params=[None, fakeredis.FakeServer], ids=["one by one", "together"])
def results(request: pytest.FixtureRequest) -> fakeredis.FakeServer | None:
    """A Redis for the results, which are told together then, or None."""
    return request.param and request.param()


@pytest.fixture(
    params=[returns, returns_one_error, raises, raises_for_good, fails_one, retries_one]
)
def here(
    request: pytest.FixtureRequest, results: fakeredis.FakeServer | None
) -> Iterator[InProcess]:
    """A task whose function settles its requests in one of several ways."""
    options = {"results": results, "autoretry_for": (ConnectionError,)}
    with in_process(request.param, CALLS, **options) as made:
        yield made


@pytest.fixture
def backend_down(
    here: InProcess, results: fakeredis.FakeServer | None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Takes the result backend down, for longer than anybody tells again."""
    monkeypatch.setattr("redis_batches.runs.state_writer.PATIENCE", 0.0)

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError("the result backend is down")

    def take_down() -> None:
        if results is not None:
            results.connected = False
            return
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

    with pytest.raises(REFUSED):
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
        with pytest.raises(REFUSED):
            here.answer(force=True)

    assert_all_wait(here)
    attempts = raw.client(store).hvals(raw.key(store, "attempts"))
    assert {record.split(b":")[1] for record in attempts} == {b"1"}


def test_a_time_limit_fails_only_what_was_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that the run had settled keeps its result, and its errbacks are not called."""
    with in_process(returns, CALLS) as here:
        told, untold = (here.task.delay(number) for number in range(2))
        store = here.task.inspector._store
        (group,) = store.groups()
        lease = store.claim(group, here.task.trigger, force=True)
        reporter = Reporter(here.task, lease)
        Runner(here.task)._decode(reporter, lease)
        reporter.succeed(reporter.batch.requests[0], 1)
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


def test_results_told_together_are_told_again_until_the_backend_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The function ran once, and every result arrives."""
    results = fakeredis.FakeServer()
    pauses = iter([False, False, True])
    monkeypatch.setattr(
        "redis_batches.runs.state_writer.sleep",
        lambda _: setattr(results, "connected", next(pauses)),
    )
    ran: list[int] = []

    def function(requests: list[SimpleRequest]) -> list[int]:
        results.connected = False
        ran.append(len(requests))
        return [7] * len(requests)

    with in_process(function, CALLS, results=results) as here:
        called = [here.task.delay() for _ in range(CALLS)]
        here.answer()

        assert (ran, [result.result for result in called]) == ([CALLS], [7] * CALLS)
        assert here.task.stats()["acked"] == CALLS


def test_a_run_that_dies_after_it_told_together_leaves_nothing_to_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second run finds every state, and only acks."""
    ran: list[int] = []

    def function(requests: list[SimpleRequest]) -> list[int]:
        ran.append(len(requests))
        return [7] * len(requests)

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with in_process(function, CALLS, results=fakeredis.FakeServer()) as here:
        called = [here.task.delay() for _ in range(CALLS)]
        store = here.task.inspector._store
        (group,) = store.groups()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("redis_batches.buffer.lease.Lease.ack", die)
            patch.setattr("redis_batches.buffer.lease.Lease.release", die)
            with pytest.raises(KeyboardInterrupt):
                here.answer()
        assert [result.state for result in called] == ["SUCCESS"] * CALLS
        leases = raw.client(store).zrange(raw.key(store, "leases"), 0, -1)
        (token,) = map(text, leases)
        here.bells = [store.reclaim(token, group, here.task.trigger, seen_dead=True)]
        while here.task.stats()["acked"] < CALLS:
            here.bells = here.bells or [Bells(group, "", 1, 0)]
            with suppress(Ignore):
                here.answer(force=True)

        assert ran == [CALLS]


def test_a_lease_that_is_lost_tells_nothing() -> None:
    """Together as one by one: another run tells the outcomes."""

    def function(requests: list[SimpleRequest]) -> list[int]:
        requests[0].settler.lease.lost = True
        return [7] * len(requests)

    with in_process(function, CALLS, results=fakeredis.FakeServer()) as here:
        called = [here.task.delay() for _ in range(CALLS)]

        with pytest.raises(LeaseLost):
            here.answer()

        assert {result.state for result in called} == {"PENDING"}


def test_a_chord_is_counted_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs on a call keeps it from being told together with others."""
    counted: list[str] = []

    with in_process(returns, CALLS, results=fakeredis.FakeServer()) as here:
        backend = here.task.backend
        monkeypatch.setattr(
            backend, "on_chord_part_return", lambda request, *_, **__: counted.append(request.id)
        )
        chord_of = {"chord": here.task.s(), "group_id": "g"}
        called = [here.task.apply_async((n,), **chord_of if n else {}) for n in range(CALLS)]
        here.answer()

        assert counted == [result.id for result in called[1:]]
        assert {result.state for result in called} == {"SUCCESS"}


def dies(*_: Any, **__: Any) -> None:
    """Ends a process, as far as it can be ended here."""
    raise KeyboardInterrupt


def answer_and_die(here: InProcess, owner: object, name: str) -> None:
    """Answers a doorbell, and dies instead of calling a function; nothing is settled after that."""
    with pytest.MonkeyPatch.context() as patch:
        for where, what in (owner, name), (Lease, "ack"), (Store, "reclaim"):
            patch.setattr(where, what, dies)
        with suppress(KeyboardInterrupt, WorkerLostError):
            here.answer()


def answer_until_acked(here: InProcess, group: str, count: int) -> None:
    """Takes back what a dead run held, and answers doorbells until everything is acked."""
    store = here.task.inspector._store
    for token in raw.client(store).zrange(raw.key(store, "leases"), 0, -1):
        bells = store.reclaim(token.decode(), group, here.task.trigger, seen_dead=True)
        here.bells += [bells] * bells.count
    while here.task.stats()["acked"] < count:
        with suppress(Ignore):
            here.answer(force=True)


@pytest.mark.parametrize("result", [7, ValueError("no")], ids=["success", "failure"])
def test_a_chord_part_that_was_stored_and_not_counted_is_counted(result: Any) -> None:
    """The run died in between; the next one does not run it, but counts it."""
    counted: list[tuple[str, str]] = []
    ran: list[int] = []

    def function(requests: list[SimpleRequest]) -> list[Any]:
        ran.append(len(requests))
        return [result] * len(requests)

    with in_process(function, 1, results=fakeredis.FakeServer()) as here:
        backend = here.task.backend
        part = here.task.apply_async((1,), chord=here.task.s(), group_id="g")
        (group,) = here.task.inspector._store.groups()
        answer_and_die(here, backend, "on_chord_part_return")
        state = part.state
        backend.on_chord_part_return = lambda request, state, *_, **__: counted.append(
            (request.id, state)
        )
        answer_until_acked(here, group, 1)

        assert ran == [1]
        assert counted == [(part.id, state)]


def test_a_step_that_runs_twice_sends_the_next_one_once() -> None:
    """The run died after it had sent the next step: that is the same call, no duplicate."""
    with in_process(returns_more, 1, results=fakeredis.FakeServer()) as here:
        last = chain(here.task.s(1), here.task.s()).apply_async()
        (group,) = here.task.inspector._store.groups()
        answer_and_die(here, report, "success")
        assert here.task.stats()["waiting"] == 1
        answer_until_acked(here, group, 2)

        assert (last.parent.state, last.parent.result) == ("SUCCESS", 2)
        assert (last.state, last.result) == ("SUCCESS", 3)
        assert here.task.stats()["pushed"] == 2


def returns_more(requests: list[SimpleRequest]) -> list[int]:
    """Adds one."""
    return [request.args[0] + 1 for request in requests]


def test_a_lease_that_ends_while_the_next_step_is_sent_tells_nothing() -> None:
    """That it was lost is no outcome of the call, which runs again."""
    with in_process(returns_more, 1, results=fakeredis.FakeServer()) as here:
        store = here.task.inspector._store

        def go_on(task: Any, request: SimpleRequest, value: Any) -> None:
            lease = request.settler.lease
            store.reclaim(lease.token, lease.group, here.task.trigger, seen_dead=True)
            lease.extend()

        first = here.task.apply_async((1,), chain=[here.task.s()])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(canvas, "go_on", go_on)
            with pytest.raises(LeaseLost):
                here.answer()

        assert first.state == "PENDING"
        assert here.task.stats()["waiting"] == 1
