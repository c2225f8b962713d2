"""push, sent again: a call whose end may be forgotten is refused, never run a second time."""

from __future__ import annotations

import pytest

from redis_batches.buffer.store import Store
from redis_batches.core.age import Age
from redis_batches.core.requests import Outgoing, Status
from redis_batches.core.settings import DEDUPLICATION_WINDOW_MS
from redis_batches.testing.clock import Clock
from tests.support import raw, steps

pytestmark = pytest.mark.usefixtures("sound")


def resend(store: Store, *calls: str | Outgoing, age_ms: int, caller: str = "") -> list[Status]:
    """Sends calls again that were first sent so long ago."""
    outgoing = [steps.call(each) if isinstance(each, str) else each for each in calls]
    pushed = store.push(steps.GROUP, steps.TRIGGER, outgoing, caller, age=lambda: age_ms)
    return list(pushed.statuses)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets three ends be remembered: of two calls and of their batch."""
    monkeypatch.setattr("redis_batches.buffer.lease.DEDUPLICATION_CALLS", 3)


def end(store: Store, clock: Clock, *ids: str) -> None:
    """Lets calls run, and time pass."""
    steps.ack_all(steps.push_and_claim(store, *ids))
    clock.advance(steps.SECOND)


@pytest.mark.usefixtures("few")
def test_what_may_have_ended_and_be_forgotten_is_refused(store: Store, clock: Clock) -> None:
    """Too many have ended since: whether it ran nobody knows, and nothing is stored."""
    end(store, clock, "a")
    end(store, clock, "b", "c")
    end(store, clock, "d", "e")

    assert resend(store, "a", age_ms=3 * steps.SECOND) == [Status.FORGOTTEN]
    assert resend(store, "d", age_ms=3 * steps.SECOND) == [Status.DONE]
    assert store.stats()["waiting"] == 0


@pytest.mark.usefixtures("few")
def test_what_was_first_sent_since_then_is_stored(store: Store, clock: Clock) -> None:
    """Whatever was forgotten had ended before."""
    end(store, clock, "a")
    end(store, clock, "b", "c")
    end(store, clock, "d", "e")
    clock.advance(10 * steps.SECOND)

    assert resend(store, "new", age_ms=9 * steps.SECOND) == [Status.NEW]
    assert resend(store, "new", age_ms=15 * steps.SECOND) == [Status.AGAIN]


def test_what_is_older_than_the_window_is_refused(store: Store) -> None:
    """To the millisecond."""
    assert resend(store, "a", age_ms=DEDUPLICATION_WINDOW_MS) == [Status.FORGOTTEN]
    assert resend(store, "a", age_ms=DEDUPLICATION_WINDOW_MS - 1) == [Status.NEW]


def test_what_is_sent_first_is_never_refused(store: Store) -> None:
    """It has no age."""
    raw.client(store).hset(raw.key(store, "stats"), "forgotten_ms", "9" * 13)

    assert resend(store, "a", age_ms=0) == [Status.NEW]


def test_an_id_that_waits_for_another_call_tells_nothing(store: Store) -> None:
    """This one may have run before that."""
    steps.push(store, steps.call("a", "other"))

    assert resend(store, steps.call("a", "mine"), age_ms=10**9) == [Status.FORGOTTEN]


def test_a_full_backlog_tells_nothing(store: Store) -> None:
    """As long as it may have run."""
    steps.limit(store, max_pending=0)

    assert resend(store, "a", age_ms=10**9) == [Status.FORGOTTEN]
    assert resend(store, "a", age_ms=1) == [Status.FULL]


def test_the_retry_of_what_its_batch_still_owns_was_not_stored(store: Store) -> None:
    """Else the batch would not own it any more."""
    lease = steps.push_and_claim(store, "a")

    again = steps.call("a", "retry")
    assert resend(store, again, age_ms=10**9, caller=lease.token) == [Status.NEW]


def test_a_letter_that_was_dropped_does_not_run_again(store: Store) -> None:
    """Its call is remembered from its death on."""
    steps.bury(store, "a")
    raw.run(store, "drop", members=[f"{steps.GROUP.id}:a"])

    assert resend(store, "a", age_ms=steps.SECOND) == [Status.DONE]


def test_a_clock_that_went_back_does_not_refuse_for_hours(store: Store, clock: Clock) -> None:
    """What was forgotten before it was set had ended before the sweep that sees it."""
    ahead_ms = clock.now_ms + 5 * 3600 * steps.SECOND + DEDUPLICATION_WINDOW_MS
    raw.client(store).hset(raw.key(store, "stats"), "forgotten_ms", str(ahead_ms))
    assert resend(store, "a", age_ms=steps.SECOND) == [Status.FORGOTTEN]

    store.sweep(steps.TRIGGER)
    clock.advance(2 * steps.SECOND)
    assert resend(store, "a", age_ms=steps.SECOND) == [Status.NEW]


def test_each_attempt_tells_how_old_the_call_is() -> None:
    """The first has no age; the others have that which they have when the reply comes."""
    now = [100.0]
    age = Age(2.0, lambda: now[0])

    assert age() == 0
    now[0] += 1.5
    assert age() == 3501


def test_a_claim_after_a_resend_gets_it_once(store: Store) -> None:
    """The second attempt of one push finds what the first has stored."""
    age = Age(1.0)
    for _ in range(2):
        store.push(steps.GROUP, steps.TRIGGER, [steps.call("a")], age=age)

    assert [request.id for request in steps.claim(store, force=True).requests] == ["a"]
    assert steps.read(store).stats["pushed"] == "1"
