"""release: a batch gives requests back."""

from __future__ import annotations

import pytest

from redis_batches.buffer.store import Store
from redis_batches.core.errors import LeaseLost
from redis_batches.core.model import Idle, Outcome, Trigger, Verb
from tests.support.clock import Clock
from tests.support.steps import (
    GROUP,
    HOUR,
    INTERVAL_MS,
    OTHER,
    SECOND,
    TRIGGER,
    ack_all,
    bury,
    claim,
    dead,
    ids_of,
    limit,
    place,
    push,
    push_and_claim,
    push_many,
    put_back,
    read,
    retry,
    retry_batch,
    try_claim,
    waiting,
)

pytestmark = pytest.mark.usefixtures("sound")

FOUR = Trigger(4, INTERVAL_MS)


def test_a_retry_is_due_at_once(store: Store) -> None:
    """It does not wait for others once more, and it is rung for."""
    (bells,) = push_and_claim(store, "a").release(retry("a"))

    assert (bells.count, bells.group, bells.route) == (1, GROUP.id, GROUP.route)
    (request,) = claim(store).requests
    assert request.attempts.tries == 1


def test_a_retry_may_be_delayed(store: Store, clock: Clock) -> None:
    """It waits apart until then."""
    (bells,) = push_and_claim(store, "a").release(retry("a", delay_ms=SECOND))

    assert bells.count == 0
    assert read(store).delayed == {f"{GROUP.id}:a": clock.now_ms + SECOND}


@pytest.mark.parametrize("verb", [Verb.PUT_BACK, Verb.POSTPONE])
def test_what_is_put_back_counts_a_run_but_no_try(store: Store, verb: Verb) -> None:
    """It is due at once, and the counters tell of it."""
    push_and_claim(store, "a").release([Outcome("a", verb)])

    (request,) = claim(store).requests
    assert (request.attempts.number, request.attempts.tries) == (2, 0)
    counted = (request.attempts.put_backs, request.attempts.postponed)
    assert counted == ((1, 0) if verb is Verb.PUT_BACK else (0, 1))
    stats = store.stats()
    assert (stats["put_backs"], stats["postponed"]) == counted


@pytest.mark.parametrize("verb", [Verb.PUT_BACK, Verb.POSTPONE])
@pytest.mark.parametrize(
    ("delay_ms", "waits"),
    [(0, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]), (5000, [5, 10, 20, 40, 80])],
)
def test_what_is_put_back_again_and_again_waits_longer_each_time(
    store: Store, clock: Clock, verb: Verb, delay_ms: int, waits: list[int]
) -> None:
    """Up to ten minutes."""
    push(store, "a")
    found = []
    for _ in waits:
        claim(store, force=True).release([Outcome("a", verb, delay_ms)])
        ready_ms = read(store).delayed.get(f"{GROUP.id}:a", clock.now_ms)
        found.append((ready_ms - clock.now_ms) // SECOND)
        clock.now_ms = ready_ms
        store.promote(GROUP.id, ["a"], TRIGGER)

    assert found == waits


def test_what_is_put_back_again_is_halved(store: Store, clock: Clock) -> None:
    """One of the batch may be to blame: in the end it is alone."""
    push(store, *"abcd")
    sizes = []
    for _ in range(7):
        lease = claim(store, FOUR, force=True)
        sizes.append(len(lease.requests))
        lease.release(put_back(*ids_of(lease)))
        clock.advance(HOUR)
        store.promote(GROUP.id, ids_of(lease), FOUR)

    assert sizes[:3] == [4, 4, 2]
    assert sizes[3:] == [1] * 4


def test_an_outage_halves_nothing(store: Store, clock: Clock) -> None:
    """However often what waits is put back for it."""
    push(store, *"abcd")
    for _ in range(5):
        lease = claim(store, FOUR, force=True)
        assert ids_of(lease) == list("abcd")
        lease.release([Outcome(task_id, Verb.POSTPONE) for task_id in "abcd"])
        clock.advance(HOUR)
        store.promote(GROUP.id, list("abcd"), FOUR)


def test_what_is_put_back_may_be_delayed(store: Store) -> None:
    """A worker that cannot read it leaves it to a newer one."""
    push_and_claim(store, "a").release(put_back("a", delay_ms=SECOND))

    assert place(store, "a") == "delayed"


def test_a_dead_letter_is_kept(store: Store, clock: Clock) -> None:
    """With its error and its tries, for an operator; it is not rung for."""
    (bells,) = push_and_claim(store, "a").release(dead("a", error="ValueError()"))

    state = read(store)
    assert bells.count == 0
    assert state.dead == {f"{GROUP.id}:a": clock.now_ms}
    assert state.errors == {"a": "ValueError()"}
    assert state.items["a"].envelope == b"{}"
    assert store.stats()["dead"] == 1


def test_only_so_many_dead_letters_are_kept(store: Store, clock: Clock) -> None:
    """The oldest go, with all that is known of them, and are counted."""
    limit(store, max_dead=2)
    bury(store, "a")
    bury(store, "b")
    assert store.stats()["dropped"] == 0
    clock.advance(SECOND)
    bury(store, "c", "d", "e", "f")

    state = read(store)
    assert len(state.dead) == 2
    assert state.items.keys() == {member.partition(":")[2] for member in state.dead}
    assert state.items.keys() <= {"c", "d", "e", "f"}
    assert store.stats()["dropped"] == 4


def test_no_dead_letters_are_kept(store: Store) -> None:
    """With a bound of 0."""
    limit(store, max_dead=0)
    bury(store, "a")

    assert read(store).items == {}


def test_a_long_error_is_cut(store: Store) -> None:
    """Its text is for people."""
    push_and_claim(store, "a").release(retry("a", error="x" * 5000))

    assert len(read(store).errors["a"]) == 2048


def test_an_error_may_be_any_text(store: Store) -> None:
    """Also one that cannot be encoded."""
    push_and_claim(store, "a").release(retry("a", error="half a pair: \ud800"))

    assert read(store).errors == {"a": "half a pair: ?"}


def test_a_retry_may_have_any_delay(store: Store, clock: Clock) -> None:
    """It is honoured, as Celery does it; also by the sweeps."""
    year_ms = 365 * 24 * 3600 * SECOND
    lease = push_and_claim(store, "a")
    lease.release(retry("a", delay_ms=year_ms))
    lease.ack(ends=True)

    for passed_ms in (0, SECOND, year_ms // 2):
        clock.advance(passed_ms)
        store.sweep(INTERVAL_MS)
        assert read(store).delayed[f"{GROUP.id}:a"] == 1_800_000_000_000 + year_ms


def test_the_batch_goes_on(store: Store) -> None:
    """With what it did not give back; its end is an ack."""
    lease = push_and_claim(store, *"abc")
    lease.release(retry("b"))

    assert lease.extend()
    assert ack_all(lease) == 2


def test_what_is_given_back_twice_is_there_once(store: Store) -> None:
    """A reply was lost; nothing changes."""
    lease = push_and_claim(store, *"abc")
    lease.release(retry("a") + dead("b"))
    before = read(store)
    (bells,) = lease.release(retry("a") + dead("b"))

    assert bells.count == 0
    assert read(store) == before


def test_a_batch_that_was_taken_back_gives_nothing_back(store: Store) -> None:
    """Its worker is told; nothing changes."""
    lease = push_and_claim(store, *"abc")
    store.reclaim(lease.token, GROUP.id, TRIGGER, seen_dead=True)
    before = read(store)

    with pytest.raises(LeaseLost):
        lease.release(retry(*"abc"))
    assert lease.lost
    assert read(store) == before


def test_requests_of_others_are_not_given_back(store: Store) -> None:
    """Whatever ids are named."""
    push(store, *"abcdef")
    mine, theirs = claim(store), claim(store)
    mine.release(retry("d", "nobody"))

    assert ack_all(theirs) == 3


def test_a_batch_of_thousands_is_given_back(store: Store) -> None:
    """In chunks, and in the order in which it came."""
    large = Trigger(10_000, INTERVAL_MS)
    ids = push_many(store, 1300, large)
    lease = claim(store, large, force=True)
    lease.release(retry(*ids))
    ack_all(lease)

    assert ids_of(claim(store, large)) == ids


# -- Order


def test_what_is_given_back_goes_first(store: Store) -> None:
    """It was claimed first, too."""
    push(store, *"abcdef")
    claim(store).release(put_back("b", "c"))

    assert waiting(store) == ["b", "c", "d", "e", "f"]


def test_what_is_given_back_is_ordered_by_age(store: Store, clock: Clock) -> None:
    """Whoever gives it back first."""
    one = Trigger(1, INTERVAL_MS)
    leases = []
    for task_id in "abc":
        leases.append(push_and_claim(store, task_id, trigger=one))
        clock.advance(1)
    for number in (1, 2, 0):
        leases[number].release(put_back("abc"[number]))

    assert waiting(store) == ["a", "b", "c"]


def test_calls_of_one_millisecond_stay_in_order(store: Store) -> None:
    """Given back and claimed again, however often."""
    large = Trigger(100, INTERVAL_MS)
    ids = push_many(store, 100, large)
    for _ in range(3):
        claim(store, large).release(retry(*ids))

    assert waiting(store) == ids


def test_calls_of_one_millisecond_stay_in_order_behind_older_ones(
    store: Store, clock: Clock
) -> None:
    """Which were given back before them."""
    two = Trigger(2, INTERVAL_MS)
    older = push_and_claim(store, "a", "b", trigger=two)
    clock.advance(1)
    newer = push_and_claim(store, "c", "d", trigger=two)
    older.release(put_back("a", "b"))
    newer.release(put_back("c", "d"))

    assert waiting(store) == ["a", "b", "c", "d"]


def test_what_is_given_back_keeps_its_age(store: Store, clock: Clock) -> None:
    """A user sees since when it waited."""
    since_ms = clock.now_ms
    lease = push_and_claim(store, "a")
    clock.advance(SECOND)
    lease.release(retry("a"))

    assert claim(store).requests[0].since_ms == since_ms


def test_what_comes_after_it_is_not_due_for_that(store: Store) -> None:
    """It is claimed with it if there is room, and waits for its own time if not."""
    push(store, *"abcd")
    claim(store).release(put_back(*"abc"))

    assert ids_of(claim(store)) == ["a", "b", "c"]
    assert try_claim(store) == Idle("not_due", INTERVAL_MS)


def test_it_is_known_where_to_ring_for_it(store: Store) -> None:
    """Though the claim had emptied the group."""
    push_and_claim(store, "a").release(retry("a", delay_ms=SECOND))

    assert store.groups() == {GROUP.id: GROUP.route}


# -- A batch that failed


def splits(store: Store) -> list[str]:
    """Returns the levels of what waits."""
    return [entry.split for entry in read(store).pending[GROUP.id]]


def fail(store: Store, clock: Clock) -> None:
    """Lets the next batch fail as a whole."""
    lease = claim(store, FOUR)
    lease.release(retry_batch(*ids_of(lease)))
    ack_all(lease)
    clock.advance(SECOND)


def go_well(store: Store, clock: Clock) -> None:
    """Lets another batch of the task go well."""
    push(store, f"well-{clock.now_ms}", group=OTHER)
    ack_all(claim(store, FOUR, force=True, group=OTHER), well=True)
    clock.advance(SECOND)


def test_a_batch_that_failed_is_retried_whole(store: Store, clock: Clock) -> None:
    """The first time."""
    go_well(store, clock)
    push(store, *"abcd", trigger=FOUR)
    go_well(store, clock)
    fail(store, clock)

    assert splits(store) == ["0"] * 4


def test_a_batch_that_failed_again_is_halved(store: Store, clock: Clock) -> None:
    """If another one went well meanwhile: one of its requests is to blame."""
    push(store, *"abcd", trigger=FOUR)
    fail(store, clock)
    go_well(store, clock)
    fail(store, clock)

    assert splits(store) == ["1"] * 4
    assert ids_of(claim(store, FOUR)) == ["a", "b"]


def test_an_outage_does_not_halve_batches(store: Store, clock: Clock) -> None:
    """Nothing goes well: no request is to blame."""
    go_well(store, clock)
    push(store, *"abcd", trigger=FOUR)
    for _ in range(5):
        fail(store, clock)

    assert splits(store) == ["0"] * 4


def test_a_batch_that_did_not_go_well_is_no_sign(store: Store, clock: Clock) -> None:
    """Though its requests are finished."""
    push(store, *"abcd", trigger=FOUR)
    fail(store, clock)
    push(store, "bad", group=OTHER)
    ack_all(claim(store, FOUR, force=True, group=OTHER))
    clock.advance(SECOND)
    fail(store, clock)

    assert splits(store) == ["0"] * 4


def test_a_request_that_is_retried_by_itself_is_not_halved(store: Store, clock: Clock) -> None:
    """Its function chose it: the others are not to blame."""
    push(store, *"abcd", trigger=FOUR)
    for _ in range(3):
        lease = claim(store, FOUR)
        lease.release([Outcome(task_id, Verb.RETRY) for task_id in ids_of(lease)])
        ack_all(lease)
        clock.advance(SECOND)
        go_well(store, clock)

    assert splits(store) == ["0"] * 4


def test_a_half_that_is_delayed_stays_a_half(store: Store, clock: Clock) -> None:
    """Its level is kept with its tries."""
    push(store, *"abcd", trigger=FOUR)
    fail(store, clock)
    go_well(store, clock)
    lease = claim(store, FOUR)
    lease.release([Outcome(one, Verb.RETRY_BATCH, SECOND) for one in ids_of(lease)])
    clock.advance(SECOND)
    store.promote(GROUP.id, list("abcd"), FOUR)

    assert splits(store) == ["1"] * 4
