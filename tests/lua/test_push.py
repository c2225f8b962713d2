"""push: what is accepted, what it is told, and who is woken for it."""

from __future__ import annotations

import pytest

from redis_batches.buffer.store import Store
from redis_batches.core.requests import Outgoing, Status
from redis_batches.core.triggers import Trigger
from redis_batches.testing.clock import Clock
from tests.support import steps

pytestmark = pytest.mark.usefixtures("sound")

NEW, AGAIN, DONE = Status.NEW, Status.AGAIN, Status.DONE
DUPLICATE, FULL = Status.DUPLICATE, Status.FULL


def status(store: Store, one: str | Outgoing, **options: str) -> Status:
    """Pushes one call; returns what it is told."""
    return steps.push(store, one, **options).statuses[0]


def test_new_calls_wait_in_their_order(store: Store) -> None:
    """Each is told that it is new."""
    pushed = steps.push(store, "c", "a", "b")

    assert pushed.statuses == (NEW, NEW, NEW)
    assert steps.waiting(store) == ["c", "a", "b"]
    assert store.stats()["pushed"] == 3


# -- Signals


def test_a_batch_that_is_not_full_wakes_nobody(store: Store) -> None:
    """Nobody is woken before the batch is full or the interval is over."""
    assert steps.push(store, "a", "b").bells.count == 0


def test_the_call_that_fills_a_batch_wakes_a_worker(store: Store, clock: Clock) -> None:
    """The signal says for which group, where, and since when."""
    steps.push(store, "a", "b")
    bells = steps.push(store, "c").bells

    assert (bells.count, bells.group, bells.route) == (1, steps.GROUP.id, steps.GROUP.route)
    assert bells.rung_ms == clock.now_ms


def test_every_full_batch_wakes_a_worker(store: Store) -> None:
    """What is left over does not."""
    assert steps.push(store, *"abcdefgh").bells.count == 2


def test_a_doorbell_that_is_out_is_not_rung_again(store: Store) -> None:
    """Until there is one batch more."""
    assert steps.push(store, *"abc").bells.count == 1
    assert steps.push(store, "d", "e").bells.count == 0
    assert steps.push(store, "f").bells.count == 1


def test_a_backlog_does_not_flood_the_broker(store: Store) -> None:
    """At most 16 doorbells of a group are out."""
    assert steps.push(store, *map(str, range(300))).bells.count == 16


def test_a_lost_doorbell_is_made_good_by_the_next_call(store: Store, clock: Clock) -> None:
    """As soon as it counts as lost."""
    steps.push(store, *"abc")
    clock.advance(steps.MIN_PAUSE_MS - 1)
    assert steps.push(store, "d").bells.count == 0
    clock.advance(1)
    assert steps.push(store, "e").bells.count == 1


def test_a_doorbell_that_is_lost_again_is_waited_for_twice_as_long(
    store: Store, clock: Clock
) -> None:
    """So that a broker that is down is not kept busy."""
    steps.push(store, *"abc")
    clock.advance(steps.MIN_PAUSE_MS)
    steps.push(store, "d")
    clock.advance(2 * steps.MIN_PAUSE_MS - 1)
    assert steps.push(store, "e").bells.count == 0
    clock.advance(1)
    assert steps.push(store, "f").bells.count == 1


def test_calls_do_not_put_off_a_lost_doorbell(store: Store, clock: Clock) -> None:
    """A sweep rings when its pause is over, however many calls come meanwhile."""
    steps.push(store, *"abc")
    due_ms = clock.now_ms + steps.MIN_PAUSE_MS
    clock.advance(steps.MIN_PAUSE_MS // 2)
    steps.push(store, "d")

    assert steps.attention(store) == due_ms


def test_a_doorbell_that_was_answered_long_ago_is_not_taken_for_lost(
    store: Store, clock: Clock
) -> None:
    """Every full batch is rung for, though the last doorbell was an hour ago."""
    slow = Trigger(3, 100 * steps.HOUR)
    steps.push(store, *"abcd", trigger=slow)
    steps.claim(store, slow, bell="bell")
    clock.advance(steps.HOUR)

    assert steps.push(store, *"efghi", trigger=slow).bells.count == 2


def test_without_an_interval_whatever_waits_is_due(store: Store) -> None:
    """One doorbell is out at a time, and the batch grows until it is answered."""
    natural = Trigger(10, 0)

    assert steps.push(store, "a", trigger=natural).bells.count == 1
    assert steps.push(store, "b", trigger=natural).bells.count == 0


def test_the_interval_begins_at_the_oldest_request(store: Store, clock: Clock) -> None:
    """A sweep looks when the oldest is due, whatever came after it."""
    steps.push(store, "a")
    due_ms = clock.now_ms + steps.INTERVAL_MS
    clock.advance(steps.SECOND)
    steps.push(store, "b")

    assert steps.attention(store) == due_ms


def test_a_shorter_interval_holds_from_the_next_call_on(store: Store, clock: Clock) -> None:
    """Also for what waits: a task's options are changed while its requests wait."""
    group, longer = steps.GROUP, Trigger(steps.TRIGGER.flush_every, 100 * steps.INTERVAL_MS)
    store.push(group, longer, [steps.call("a")])
    due_ms = clock.now_ms + steps.INTERVAL_MS

    store.push(group, steps.TRIGGER, [steps.call("b")])

    assert steps.attention(store) == due_ms


def test_a_call_after_the_clock_went_back_is_not_put_off(store: Store, clock: Clock) -> None:
    """What was rung in the future does not count as rung."""
    steps.push(store, "a", "b", "c")
    clock.now_ms -= 1000 * steps.INTERVAL_MS

    assert steps.push(store, "d").bells.count == 1


def test_a_call_finds_due_what_waited_out_its_interval(store: Store, clock: Clock) -> None:
    """Before any sweep."""
    steps.push(store, "a")
    clock.advance(steps.INTERVAL_MS)

    assert steps.push(store, "b").bells.count == 1


# -- The same call twice


def test_a_call_that_waits_arrives_again(store: Store) -> None:
    """Nothing changes, and its caller is told so."""
    steps.push(store, "a")
    before = steps.read(store)

    assert status(store, "a") is AGAIN
    assert steps.read(store) == before


def test_a_call_that_runs_arrives_again(store: Store) -> None:
    """It is not enqueued beside its run."""
    steps.push_and_claim(store, "a")

    assert status(store, "a") is AGAIN
    assert steps.waiting(store) == []


@pytest.mark.usefixtures("stray_keys")
def test_a_call_that_has_run_arrives_again(store: Store, clock: Clock) -> None:
    """It does not run a second time within the window."""
    steps.ack_all(steps.push_and_claim(store, "a"))
    clock.advance(steps.WINDOW_MS - 1)

    assert status(store, "a") is DONE


def test_a_call_that_arrives_in_another_group_again(store: Store) -> None:
    """A redeployed caller's route may differ: the stored one stands."""
    steps.push(store, "a")

    assert steps.push(store, "a", group=steps.OTHER).statuses == (AGAIN,)
    assert steps.waiting(store, steps.OTHER) == []


def test_a_call_twice_in_one_push(store: Store) -> None:
    """It is stored once."""
    assert steps.push(store, "a", "a").statuses == (NEW, AGAIN)
    assert steps.waiting(store) == ["a"]


def test_two_calls_with_one_id_in_one_push(store: Store) -> None:
    """The first is kept."""
    assert steps.push(store, steps.call("a", "1"), steps.call("a", "2")).statuses == (
        NEW,
        DUPLICATE,
    )
    assert steps.read(store).items["a"].nonce == "1"


# -- Another call with the same id


@pytest.mark.parametrize("where", ["pending", "owned", "eta", "delayed"])
def test_another_call_with_the_id_of_a_request(store: Store, clock: Clock, where: str) -> None:
    """While that one waits or runs, it is refused and changes nothing."""
    steps.push(
        store, steps.call("a", eta_ms=clock.now_ms + steps.SECOND if where == "eta" else None)
    )
    if where in ("owned", "delayed"):
        lease = steps.claim(store, force=True)
        if where == "delayed":
            lease.release(steps.retry("a", delay_ms=steps.SECOND))
    assert steps.place(store, "a") == where
    before = steps.read(store)

    assert status(store, steps.call("a", "other")) is DUPLICATE
    assert steps.read(store) == before


def test_another_call_with_the_id_of_a_finished_request(store: Store) -> None:
    """It runs, as in Celery."""
    steps.ack_all(steps.push_and_claim(store, "a"))

    assert status(store, steps.call("a", "other")) is NEW


def test_another_call_with_the_id_of_a_dead_letter(store: Store) -> None:
    """It takes its place, with a clean record."""
    steps.push_and_claim(store, "a").release(steps.retry("a"))
    lease = steps.claim(store)
    lease.release(steps.dead("a", error="ValueError()"))
    steps.ack_all(lease)

    assert status(store, steps.call("a", "other", body=b"other")) is NEW
    (request,) = steps.claim(store, force=True).requests
    assert request.envelope == b"other"
    assert request.attempts.number == 1
    assert store.stats()["dead"] == 0


def test_a_dead_call_arrives_again_though_another_took_its_place(store: Store) -> None:
    """It ran: it is neither a duplicate nor new."""
    steps.bury(store, "a")
    steps.push(store, steps.call("a", "other"))
    assert status(store, "a") is DONE
    steps.ack_all(steps.claim(store, force=True))
    assert status(store, "a") is DONE


def test_two_calls_with_the_id_of_a_dead_letter_in_one_push(store: Store) -> None:
    """The first takes its place."""
    steps.bury(store, "a")

    assert steps.push(store, steps.call("a", "1"), steps.call("a", "2")).statuses == (
        NEW,
        DUPLICATE,
    )
    assert steps.waiting(store) == ["a"]


# -- A retry from inside the batch


@pytest.mark.parametrize("body", [b"{}", b"other"], ids=["same", "other"])
def test_a_batch_calls_its_own_request_again(store: Store, body: bytes) -> None:
    """That is its retry, with the same bytes as with others; the batch's ack does not undo it."""
    lease = steps.push_and_claim(store, "a", "b")

    assert status(store, steps.call("a", "again", body=body), caller=lease.token) is NEW
    assert steps.ack_all(lease) == 1
    (request,) = steps.claim(store, force=True).requests
    assert (request.id, request.envelope) == ("a", body)
    assert store.stats()["pushed"] == 2


def test_a_retry_by_a_call_counts_its_own_tries(store: Store) -> None:
    """Its envelope says how many; what Redis counted are earlier runs."""
    steps.push_and_claim(store, "a").release(steps.retry("a", error="ValueError()"))
    lease = steps.claim(store)
    steps.push(store, steps.call("a", "again"), caller=lease.token)

    assert "a" not in steps.read(store).errors
    (request,) = steps.claim(store, force=True).requests
    assert (request.attempts.tries, request.attempts.number) == (0, 3)


def test_a_retry_by_a_call_may_wait_for_its_eta(store: Store, clock: Clock) -> None:
    """As any call."""
    lease = steps.push_and_claim(store, "a")
    steps.push(store, steps.call("a", "again", clock.now_ms + steps.SECOND), caller=lease.token)

    assert steps.place(store, "a") == "eta"


def test_a_retry_by_a_call_may_go_to_another_group(store: Store) -> None:
    """Where its route says."""
    lease = steps.push_and_claim(store, "a")
    steps.push(store, steps.call("a", "again"), group=steps.OTHER, caller=lease.token)

    assert steps.waiting(store, steps.OTHER) == ["a"]


def test_a_retry_by_a_call_arrives_again(store: Store) -> None:
    """A reply was lost: it is stored once."""
    lease = steps.push_and_claim(store, "a")
    again = steps.call("a", "again")
    steps.push(store, again, caller=lease.token)

    assert status(store, again, caller=lease.token) is AGAIN
    assert steps.waiting(store) == ["a"]


def test_two_retries_of_one_request_in_one_push(store: Store) -> None:
    """The first counts."""
    lease = steps.push_and_claim(store, "a")
    pushed = steps.push(
        store, steps.call("a", "1"), steps.call("a", "1"), steps.call("a", "2"), caller=lease.token
    )

    assert pushed.statuses == (NEW, AGAIN, DUPLICATE)
    assert steps.waiting(store) == ["a"]


def test_the_first_call_arrives_again_after_its_retry(store: Store) -> None:
    """It is told that it ran, while the retry waits and when that has run."""
    lease = steps.push_and_claim(store, "a")
    steps.push(store, steps.call("a", "again"), caller=lease.token)
    assert status(store, "a") is DONE
    steps.ack_all(lease)
    steps.ack_all(steps.claim(store, force=True))
    assert status(store, "a") is DONE


def test_a_batch_that_was_taken_back_cannot_retry_its_requests(store: Store) -> None:
    """They wait, or run elsewhere."""
    lease = steps.push_and_claim(store, "a")
    store.reclaim(lease.token, steps.GROUP.id, steps.TRIGGER, seen_dead=True)

    assert status(store, steps.call("a", "again"), caller=lease.token) is DUPLICATE


def test_a_batch_cannot_retry_what_another_runs(store: Store) -> None:
    """Only a request of its own is its retry."""
    steps.push(store, *"abcdef")
    mine, theirs = steps.claim(store), steps.claim(store)

    assert status(store, steps.call("d", "again"), caller=mine.token) is DUPLICATE
    assert steps.ack_all(theirs) == 3


def test_a_batch_may_call_others_too(store: Store) -> None:
    """Only its own requests are retries."""
    steps.push(store, "z")
    lease = steps.push_and_claim(store, "a", trigger=Trigger(1, 0))

    assert steps.ids_of(lease) == ["z"]
    assert status(store, steps.call("a", "other"), caller=lease.token) is DUPLICATE
    assert status(store, "b", caller=lease.token) is NEW


# -- Limits


def test_a_full_backlog_takes_what_fits(store: Store) -> None:
    """In order; the others are told, and nothing of them is stored."""
    steps.limit(store, max_pending=3)
    steps.push(store, "a")

    assert steps.push(store, *"bcde").statuses == (NEW, NEW, FULL, FULL)
    assert steps.waiting(store) == ["a", "b", "c"]


def test_what_runs_counts_as_waiting(store: Store) -> None:
    """It may come back."""
    steps.limit(store, max_pending=1)
    steps.push_and_claim(store, "a")

    assert status(store, "b") is FULL


def test_dead_letters_do_not_count_as_waiting(store: Store) -> None:
    """They are bounded by themselves."""
    steps.limit(store, max_pending=1)
    steps.bury(store, "a")

    assert status(store, "b") is NEW


def test_a_full_backlog_takes_the_retry_of_a_batch(store: Store) -> None:
    """It has its place already."""
    steps.limit(store, max_pending=1)
    lease = steps.push_and_claim(store, "a")

    assert status(store, steps.call("a", "again"), caller=lease.token) is NEW


# -- Eta, routes, size


def test_a_call_with_an_eta_waits_apart(store: Store, clock: Clock) -> None:
    """It fills no batch before its time."""
    pushed = steps.push(store, steps.call("a", eta_ms=clock.now_ms + 1), "b", "c")

    assert pushed.bells.count == 0
    assert steps.place(store, "a") == "eta"
    assert steps.waiting(store) == ["b", "c"]


def test_an_eta_that_is_over_does_not_matter(store: Store, clock: Clock) -> None:
    """It waits with the others."""
    steps.push(store, steps.call("a", eta_ms=clock.now_ms))

    assert steps.place(store, "a") == "pending"


def test_a_push_says_where_to_ring_for_its_group(store: Store) -> None:
    """So that a sweeper that never saw the caller can."""
    steps.push(store, "a")
    steps.push(store, "b", group=steps.OTHER)

    assert store.groups() == {steps.GROUP.id: steps.GROUP.route, steps.OTHER.id: steps.OTHER.route}


def test_groups_do_not_share_batches(store: Store) -> None:
    """Nor signals."""
    assert steps.push(store, "a", "b").bells.count == 0
    assert steps.push(store, "c", group=steps.OTHER).bells.count == 0


def test_a_push_takes_500_calls(store: Store) -> None:
    """That is what one call of the script is for."""
    pushed = steps.push(store, *map(str, range(500)))

    assert set(pushed.statuses) == {NEW}
    assert len(steps.waiting(store)) == 500


def test_many_calls_of_one_millisecond_keep_their_order(store: Store) -> None:
    """Across pushes."""
    ids = steps.push_many(store, 1200)

    assert steps.waiting(store) == ids


def test_an_envelope_is_opaque(store: Store) -> None:
    """Any bytes come back as they were."""
    envelope = bytes(range(256)) + b":::\r\n\x00"
    steps.push(store, steps.call("a:b", "n", body=envelope))

    (request,) = steps.claim(store, force=True).requests
    assert (request.id, request.envelope) == ("a:b", envelope)
