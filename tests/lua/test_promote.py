"""promote: what was delayed waits with the others."""

from __future__ import annotations

import pytest

from redis_batches.buffer.store import Store
from redis_batches.core.triggers import Bells, Trigger
from redis_batches.testing.clock import Clock
from tests.support import steps

pytestmark = pytest.mark.usefixtures("sound")


def delay(store: Store, *ids: str, delay_ms: int = steps.SECOND) -> None:
    """Lets requests wait for their retry."""
    lease = steps.push_and_claim(store, *ids)
    lease.release(steps.retry(*ids, delay_ms=delay_ms))
    steps.ack_all(lease)


def promote(store: Store, *ids: str) -> Bells:
    """Promotes ids, as a sweeper that was told them."""
    return store.promote(steps.GROUP.id, ids, steps.TRIGGER)


def test_a_retry_whose_delay_is_over_is_due_at_once(store: Store, clock: Clock) -> None:
    """It has waited as long as it asked for: it goes first, and takes along who waits."""
    delay(store, "a")
    steps.push(store, "b")
    clock.advance(steps.SECOND)
    promote(store, "a")

    assert steps.waiting(store) == ["a", "b"]
    assert steps.ids_of(steps.claim(store)) == ["a", "b"]


def test_a_call_whose_eta_is_reached_waits_with_the_others(store: Store, clock: Clock) -> None:
    """It may have to wait for more of them."""
    steps.push(store, steps.call("a", eta_ms=clock.now_ms + steps.SECOND))
    clock.advance(steps.SECOND)
    promote(store, "a")

    assert steps.waiting(store) == ["a"]
    assert steps.attention(store) == clock.now_ms + steps.INTERVAL_MS


def test_what_is_promoted_fills_a_batch(store: Store, clock: Clock) -> None:
    """Which is rung for, as its callers said."""
    steps.push(
        store, *(steps.call(task_id, eta_ms=clock.now_ms + steps.SECOND) for task_id in "abc")
    )
    clock.advance(steps.SECOND)

    assert promote(store, *"abc") == Bells(steps.GROUP.id, steps.GROUP.route, 1, 0)
    assert steps.ids_of(steps.claim(store)) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["retry", "eta"])
def test_what_is_not_ready_is_left_alone(store: Store, clock: Clock, kind: str) -> None:
    """The clock went back since the sweep, or it was delayed again."""
    if kind == "retry":
        delay(store, "a")
    else:
        steps.push(store, steps.call("a", eta_ms=clock.now_ms + steps.SECOND))
    clock.advance(steps.SECOND - 1)
    before = steps.read(store)

    assert promote(store, "a").count == 0
    assert steps.read(store) == before


def test_what_is_promoted_twice_waits_once(store: Store, clock: Clock) -> None:
    """Another sweeper was faster, or a reply was lost: nothing changes."""
    delay(store, "a", "b", "c")
    clock.advance(steps.SECOND)
    promote(store, *"abc")
    before = steps.read(store)

    assert promote(store, *"abc").count == 0
    assert steps.read(store) == before


def test_what_runs_by_now_is_left_alone(store: Store, clock: Clock) -> None:
    """A very late sweeper finds it promoted and claimed."""
    delay(store, "a")
    clock.advance(steps.SECOND)
    promote(store, "a")
    steps.claim(store, force=True)
    promote(store, "a")

    assert steps.place(store, "a") == "owned"


def test_ids_of_other_groups_are_left_alone(store: Store, clock: Clock) -> None:
    """They are promoted with their own."""
    steps.push(store, steps.call("a", eta_ms=clock.now_ms + steps.SECOND), group=steps.OTHER)
    clock.advance(steps.SECOND)
    promote(store, "a", "nobody")

    assert steps.place(store, "a") == "eta"


def test_a_half_that_is_promoted_stays_a_half(store: Store, clock: Clock) -> None:
    """It is under suspicion, and due at once, before those that were never claimed."""
    four = Trigger(4, steps.INTERVAL_MS)
    lease = steps.push_and_claim(store, *"abcd", trigger=four)
    store.reclaim(lease.token, steps.GROUP.id, four, seen_dead=True)
    steps.claim(store, four).release(steps.retry("a", "b", delay_ms=steps.SECOND))
    steps.ack_all(steps.claim(store, four))
    steps.push(store, *"efgh", trigger=four)
    clock.advance(steps.SECOND)
    store.promote(steps.GROUP.id, ["a", "b"], four)

    assert steps.waiting(store) == list("abefgh")
    assert steps.ids_of(steps.claim(store, four)) == ["a", "b"]


def test_what_was_put_back_with_a_delay_counts_a_run_but_no_try(store: Store, clock: Clock) -> None:
    """It comes back as it went."""
    steps.push_and_claim(store, "a").release(steps.put_back("a", delay_ms=steps.SECOND))
    clock.advance(steps.SECOND)
    promote(store, "a")

    (request,) = steps.claim(store, force=True).requests
    assert (request.attempts.number, request.attempts.tries) == (2, 0)


def test_thousands_are_promoted(store: Store, clock: Clock) -> None:
    """In chunks."""
    ids = [str(number) for number in range(1100)]
    for first in range(0, 1100, 500):
        chunk = ids[first : first + 500]
        steps.push(store, *(steps.call(one, eta_ms=clock.now_ms + steps.SECOND) for one in chunk))
    clock.advance(steps.SECOND)
    bells = promote(store, *ids)

    assert len(steps.waiting(store)) == 1100
    assert bells.count == 16
