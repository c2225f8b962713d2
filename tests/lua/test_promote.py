"""promote: what was delayed waits with the others."""

from __future__ import annotations

import pytest

from redis_batches.buffer.store import Store
from redis_batches.core.model import Bells, Trigger
from tests.support.clock import Clock
from tests.support.steps import (
    GROUP,
    INTERVAL_MS,
    OTHER,
    SECOND,
    TRIGGER,
    ack_all,
    attention,
    call,
    claim,
    ids_of,
    place,
    push,
    push_and_claim,
    put_back,
    read,
    retry,
    waiting,
)

pytestmark = pytest.mark.usefixtures("sound")


def delay(store: Store, *ids: str, delay_ms: int = SECOND) -> None:
    """Lets requests wait for their retry."""
    lease = push_and_claim(store, *ids)
    lease.release(retry(*ids, delay_ms=delay_ms))
    ack_all(lease)


def promote(store: Store, *ids: str) -> Bells:
    """Promotes ids, as a sweeper that was told them."""
    return store.promote(GROUP.id, ids, TRIGGER)


def test_a_retry_whose_delay_is_over_is_due_at_once(store: Store, clock: Clock) -> None:
    """It has waited as long as it asked for: it goes first, and takes along who waits."""
    delay(store, "a")
    push(store, "b")
    clock.advance(SECOND)
    promote(store, "a")

    assert waiting(store) == ["a", "b"]
    assert ids_of(claim(store)) == ["a", "b"]


def test_a_call_whose_eta_is_reached_waits_with_the_others(store: Store, clock: Clock) -> None:
    """It may have to wait for more of them."""
    push(store, call("a", eta_ms=clock.now_ms + SECOND))
    clock.advance(SECOND)
    promote(store, "a")

    assert waiting(store) == ["a"]
    assert attention(store) == clock.now_ms + INTERVAL_MS


def test_what_is_promoted_fills_a_batch(store: Store, clock: Clock) -> None:
    """Which is rung for, as its callers said."""
    push(store, *(call(task_id, eta_ms=clock.now_ms + SECOND) for task_id in "abc"))
    clock.advance(SECOND)

    assert promote(store, *"abc") == Bells(GROUP.id, GROUP.route, 1, 0)
    assert ids_of(claim(store)) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["retry", "eta"])
def test_what_is_not_ready_is_left_alone(store: Store, clock: Clock, kind: str) -> None:
    """The clock went back since the sweep, or it was delayed again."""
    if kind == "retry":
        delay(store, "a")
    else:
        push(store, call("a", eta_ms=clock.now_ms + SECOND))
    clock.advance(SECOND - 1)
    before = read(store)

    assert promote(store, "a").count == 0
    assert read(store) == before


def test_what_is_promoted_twice_waits_once(store: Store, clock: Clock) -> None:
    """Another sweeper was faster, or a reply was lost: nothing changes."""
    delay(store, "a", "b", "c")
    clock.advance(SECOND)
    promote(store, *"abc")
    before = read(store)

    assert promote(store, *"abc").count == 0
    assert read(store) == before


def test_what_runs_by_now_is_left_alone(store: Store, clock: Clock) -> None:
    """A very late sweeper finds it promoted and claimed."""
    delay(store, "a")
    clock.advance(SECOND)
    promote(store, "a")
    claim(store, force=True)
    promote(store, "a")

    assert place(store, "a") == "owned"


def test_ids_of_other_groups_are_left_alone(store: Store, clock: Clock) -> None:
    """They are promoted with their own."""
    push(store, call("a", eta_ms=clock.now_ms + SECOND), group=OTHER)
    clock.advance(SECOND)
    promote(store, "a", "nobody")

    assert place(store, "a") == "eta"


def test_a_half_that_is_promoted_stays_a_half(store: Store, clock: Clock) -> None:
    """It is under suspicion, and due at once, before those that were never claimed."""
    four = Trigger(4, INTERVAL_MS)
    lease = push_and_claim(store, *"abcd", trigger=four)
    store.reclaim(lease.token, GROUP.id, four, seen_dead=True)
    claim(store, four).release(retry("a", "b", delay_ms=SECOND))
    ack_all(claim(store, four))
    push(store, *"efgh", trigger=four)
    clock.advance(SECOND)
    store.promote(GROUP.id, ["a", "b"], four)

    assert waiting(store) == list("abefgh")
    assert ids_of(claim(store, four)) == ["a", "b"]


def test_what_was_put_back_with_a_delay_counts_a_run_but_no_try(store: Store, clock: Clock) -> None:
    """It comes back as it went."""
    push_and_claim(store, "a").release(put_back("a", delay_ms=SECOND))
    clock.advance(SECOND)
    promote(store, "a")

    (request,) = claim(store, force=True).requests
    assert (request.attempts.number, request.attempts.tries) == (2, 0)


def test_thousands_are_promoted(store: Store, clock: Clock) -> None:
    """In chunks."""
    ids = [str(number) for number in range(1100)]
    for first in range(0, 1100, 500):
        chunk = ids[first : first + 500]
        push(store, *(call(one, eta_ms=clock.now_ms + SECOND) for one in chunk))
    clock.advance(SECOND)
    bells = promote(store, *ids)

    assert len(waiting(store)) == 1100
    assert bells.count == 16
