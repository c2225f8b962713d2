"""A server that does not answer is asked now and then, and the log says so now and then."""

from __future__ import annotations

from contextlib import suppress

import pytest

from redis_batches.buffer.store import Store
from redis_batches.core.errors import StoreError, Unanswered
from redis_batches.core.outage import Breaker, Quiet
from redis_batches.core.settings import Settings
from redis_batches.core.triggers import Trigger
from redis_batches.driver.connection import connect
from redis_batches.driver.patience import guard


class Time:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Returns the time."""
        return self.now


@pytest.fixture
def time() -> Time:
    """A clock."""
    return Time()


def breaker_of(time: Time, *followers: Breaker, longest: float = 20.0) -> Breaker:
    """Returns a breaker whose first pause is five seconds."""
    return Breaker("it", slow=0.5, pause=5, longest=longest, followers=followers, clock=time)


def fail(breaker: Breaker, time: Time, took: float) -> bool:
    """Fails after some seconds; returns whether the attempt was let through."""
    try:
        with breaker.attempt():
            time.now += took
            raise StoreError("no answer")
    except Unanswered:
        return False
    except StoreError:
        return True


def test_who_fails_quickly_is_let_through_again(time: Time) -> None:
    """A server that refuses keeps nobody waiting."""
    breaker = breaker_of(time)
    assert [fail(breaker, time, 0.4) for _ in range(3)] == [True] * 3


def test_after_a_slow_failure_the_next_fail_at_once(time: Time) -> None:
    """With an error that says until when; one attempt is made after each pause, which doubles."""
    breaker = breaker_of(time)
    assert fail(breaker, time, 1)
    with pytest.raises(Unanswered, match=r"it did not answer .* again in 5.0 s"), breaker.attempt():
        raise AssertionError("it was let through")
    made, began = [], time.now
    while time.now < began + 60:
        time.now += 1
        if fail(breaker, time, 0.0 if time.now < breaker._until else 1):
            made.append(round(time.now - began))

    assert made == [6, 17, 38, 59]


def test_one_attempt_is_made_at_a_time(time: Time) -> None:
    """Who comes while it is made does not wait, too."""
    breaker = breaker_of(time)
    fail(breaker, time, 1)
    time.now += 5
    with breaker.attempt():
        assert not fail(breaker, time, 0)


@pytest.mark.parametrize("quick", [True, False], ids=["refused", "answered"])
def test_the_first_that_need_not_wait_lets_all_through(time: Time, quick: bool) -> None:
    """Whether the server answers again, or refuses now."""
    breaker = breaker_of(time)
    fail(breaker, time, 1)
    time.now += 5
    if quick:
        fail(breaker, time, 0)
    else:
        with breaker.attempt():
            pass

    assert fail(breaker, time, 1)
    time.now += 5
    assert fail(breaker, time, 0), "the pause is the first one again"


def test_an_interrupted_attempt_says_nothing_of_the_server(time: Time) -> None:
    """A signal's exception that comes late is no failure."""
    breaker = breaker_of(time)
    with suppress(KeyboardInterrupt), breaker.attempt():
        time.now += 10
        raise KeyboardInterrupt

    assert fail(breaker, time, 0)


def test_what_one_learns_of_a_server_others_know(time: Time) -> None:
    """Who may wait asks for those who may not."""
    follower = Breaker("it", slow=0.5, pause=50, longest=50, clock=time)
    breaker = breaker_of(time, follower)
    fail(breaker, time, 1)
    assert not fail(follower, time, 0)
    time.now += 5
    with breaker.attempt():
        pass
    assert fail(follower, time, 0)


def test_a_cause_is_named_once_a_minute(time: Time) -> None:
    """Each for itself."""
    quiet = Quiet(time)
    said = []
    for _ in range(100):
        said.append((quiet.may_say("one"), quiet.may_say("other")))
        time.now += 1

    assert [number for number, each in enumerate(said) if any(each)] == [0, 60]
    assert said[60] == (True, True)


def test_causes_are_forgotten_in_the_end(time: Time) -> None:
    """Their number is bounded."""
    quiet = Quiet(time)
    for number in range(2 * Quiet.MOST + 1):
        assert quiet.may_say(str(number))
    assert len(quiet._said) <= Quiet.MOST


def test_a_guarded_client_sends_nothing_while_it_is_open(time: Time) -> None:
    """Neither commands nor scripts; the error is one that passes by itself."""
    client = connect("redis://127.0.0.1:1/0", 1, 0)
    breaker = breaker_of(time)
    guard(client, breaker)
    store = Store(client, Settings(), "shop.click")
    with pytest.raises(StoreError, match="could not be reached"):
        store.waiting("group")
    fail(breaker, time, 1)

    for ask in (lambda: store.waiting("group"), lambda: store.sweep(Trigger(3, 1000))):
        with pytest.raises(Unanswered) as raised:
            ask()
        assert raised.value.passes_by_itself
