"""Who tries again, how often, and for how long: no server, and a clock that only tests move."""

from __future__ import annotations

from collections.abc import Callable
from errno import ENETDOWN, ENOENT
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from redis_batches.core.errors import BacklogFull, LeaseLost, StoreError
from redis_batches.runs.state_writer import TRIES, StateWriter, is_transient
from redis_batches.runs.states import Changed, Guard

LEASE = 30.0
BACKEND: Any = SimpleNamespace(exception_safe_to_retry=lambda exc: False)


class Lease:
    """A lease that a test loses."""

    token = "t"

    def __init__(self) -> None:
        self.age, self.lost, self.extended = 0.0, False, 0
        self.loses: bool | Exception = False

    def extend(self) -> bool:
        self.extended += 1
        if isinstance(self.loses, Exception):
            raise self.loses
        self.lost = self.loses
        return not self.lost


class Time:
    """A clock, and a pause that moves it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def lease() -> Lease:
    """The run's."""
    return Lease()


@pytest.fixture
def time() -> Time:
    """That of the writer."""
    return Time()


@pytest.fixture
def writer(lease: Lease, time: Time) -> StateWriter:
    """A writer that is patient for ten seconds."""
    task: Any = SimpleNamespace(name="task", lease=LEASE, backend=BACKEND)
    held: Any = lease
    return StateWriter(task, held, 10.0, clock=lambda: time.now, pause=time.pause)


def fails(*errors: Exception) -> Callable[[Guard], str]:
    """Returns a step that raises some errors, one each time, and then is through."""
    rest = list(errors)

    def step(guard: Guard) -> str:
        if rest:
            raise rest.pop(0)
        return "through"

    return step


def test_an_outage_is_waited_for(writer: StateWriter, time: Time) -> None:
    """Longer each time, but never for long."""
    assert writer.write(fails(*[ConnectionError()] * 6)) == "through"

    assert time.pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert writer.outage is None


def test_patience_ends_and_is_not_had_twice(writer: StateWriter, time: Time) -> None:
    """What is written next is not waited for as long again."""
    down = ConnectionError("down")
    for _ in range(2):
        with pytest.raises(ConnectionError):
            writer.write(fails(*[down] * 100))

    assert sum(time.pauses) <= 10.0
    assert len(time.pauses) == 8
    assert writer.outage is down
    assert writer.write(fails()) == "through"


def test_what_does_not_pass_is_raised_at_once(writer: StateWriter, time: Time) -> None:
    """It is the fault of what was to be written."""
    with pytest.raises(ValueError, match="odd"):
        writer.write(fails(ValueError("odd")))

    assert (time.pauses, writer.outage) == ([], None)


def test_who_lost_the_lease_waits_for_nothing(
    writer: StateWriter, lease: Lease, time: Time
) -> None:
    """Another run reports."""
    lease.lost = True

    with pytest.raises(ConnectionError):
        writer.write(fails(ConnectionError()))

    assert time.pauses == []


def test_a_state_that_somebody_else_stored_is_read_and_written_again(
    writer: StateWriter, lease: Lease, time: Time
) -> None:
    """At once, and after Redis was asked whose batch it is: that may have been a newer run."""
    guards: list[bool] = []

    def step(guard: Guard) -> str:
        guards.append(guard.first)
        return fails(*[Changed()] * (len(guards) < 3))(guard)

    assert writer.write(step) == "through"

    assert guards == [True, False, False]
    assert (lease.extended, time.pauses) == (2, [])


def test_a_newer_run_has_the_word(writer: StateWriter, lease: Lease) -> None:
    """What it stored is not written over."""
    lease.loses = True

    with pytest.raises(LeaseLost):
        writer.write(fails(Changed(), AssertionError()))


def test_a_state_that_never_is_what_was_read_is_an_outage(writer: StateWriter, time: Time) -> None:
    """A replica that lags: tried again for a while, and not for ever."""
    assert writer.write(fails(*[Changed()] * TRIES)) == "through"
    assert time.pauses == [0.1]

    with pytest.raises(OperationalError, match="replica"):
        writer.write(fails(*[Changed()] * TRIES * 100))


def test_a_step_is_given_what_confirms_the_lease(writer: StateWriter, lease: Lease) -> None:
    """It asks whenever it is about to store something."""
    lease.age, lease.loses = LEASE, True

    with pytest.raises(LeaseLost, match="batch t of task"):
        writer.write(lambda guard: guard.confirm())


@pytest.mark.parametrize(
    ("age", "anew", "asked"),
    [(0.0, False, 0), (LEASE / 3 + 1, False, 1), (0.0, True, 1)],
    ids=["a moment ago", "long ago", "anew"],
)
def test_a_lease_is_confirmed_now_and_then(
    writer: StateWriter, lease: Lease, age: float, anew: bool, asked: int
) -> None:
    """Redis is asked only if the last answer is old, or may be no more true."""
    lease.age = age
    writer.confirm(anew=anew)

    assert lease.extended == asked


def test_a_store_that_cannot_be_asked_is_to_blame(writer: StateWriter, lease: Lease) -> None:
    """Not the function, in whatever way it passes the error on."""
    down = StoreError("down")
    lease.age, lease.loses = LEASE, down

    with pytest.raises(StoreError):
        writer.confirm()

    assert writer.outage is down


def test_outside_redis_nothing_is_confirmed() -> None:
    """Nobody else runs the call."""
    task: Any = SimpleNamespace(name="task", lease=LEASE, backend=BACKEND)
    writer = StateWriter(task, None)
    writer.confirm(anew=True)

    assert not writer.lost
    assert writer.patiently(lambda: 7) == 7


@pytest.mark.parametrize(
    ("exc", "passes"),
    [
        (ConnectionError(), True),
        (TimeoutError(), True),
        (OperationalError(), True),
        (BacklogFull("task", 1, ["a"]), True),
        (OSError(ENETDOWN, "down"), True),
        (OSError(ENOENT, "no such file"), False),
        (redis.exceptions.ReadOnlyError("You can't write against a read only replica."), True),
        (KeyError("tenant"), False),
        (ValueError(), False),
        (LeaseLost("lost"), False),
    ],
    ids=repr,
)
def test_what_passes_by_itself(exc: Exception, passes: bool) -> None:
    """A server that is down or refuses for now, and nothing that a request is to blame for."""
    assert is_transient(BACKEND, exc) is passes


def test_a_backend_knows_errors_of_its_own() -> None:
    """Those count, but for a KeyError, which any code may raise."""

    class Own(Exception):
        pass

    backend: Any = SimpleNamespace(
        connection_errors=(Own, KeyError), exception_safe_to_retry=lambda exc: False
    )

    assert is_transient(backend, Own())
    assert not is_transient(backend, KeyError())


@pytest.mark.parametrize("exc", [LeaseLost("lost"), SoftTimeLimitExceeded(), ConnectionError()])
def test_what_is_no_fault_of_an_outcome(writer: StateWriter, exc: Exception) -> None:
    """It fails no request."""
    assert writer.may_pass(exc)
    assert not writer.may_pass(ValueError())
