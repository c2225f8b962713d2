"""release: a batch gives requests back."""

from __future__ import annotations

import pytest

from redis_batches.buffer.store import Store
from redis_batches.core.errors import LeaseLost
from redis_batches.core.outcomes import Idle, Outcome, Verb
from redis_batches.core.triggers import Trigger
from redis_batches.testing.clock import Clock
from tests.support import steps

pytestmark = pytest.mark.usefixtures("sound")

FOUR = Trigger(4, steps.INTERVAL_MS)


def test_a_retry_is_due_at_once(store: Store) -> None:
    """It does not wait for others once more, and it is rung for."""
    (bells,) = steps.push_and_claim(store, "a").release(steps.retry("a"))

    assert (bells.count, bells.group, bells.route) == (1, steps.GROUP.id, steps.GROUP.route)
    (request,) = steps.claim(store).requests
    assert request.attempts.tries == 1


def test_a_retry_may_be_delayed(store: Store, clock: Clock) -> None:
    """It waits apart until then."""
    (bells,) = steps.push_and_claim(store, "a").release(steps.retry("a", delay_ms=steps.SECOND))

    assert bells.count == 0
    assert steps.read(store).delayed == {f"{steps.GROUP.id}:a": clock.now_ms + steps.SECOND}


@pytest.mark.parametrize("verb", [Verb.PUT_BACK, Verb.POSTPONE])
def test_what_is_put_back_counts_a_run_but_no_try(store: Store, verb: Verb) -> None:
    """It is due at once, and the counters tell of it."""
    steps.push_and_claim(store, "a").release([Outcome("a", verb)])

    (request,) = steps.claim(store).requests
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
    steps.push(store, "a")
    found = []
    for _ in waits:
        steps.claim(store, force=True).release([Outcome("a", verb, delay_ms)])
        ready_ms = steps.read(store).delayed.get(f"{steps.GROUP.id}:a", clock.now_ms)
        found.append((ready_ms - clock.now_ms) // steps.SECOND)
        clock.now_ms = ready_ms
        store.promote(steps.GROUP.id, ["a"], steps.TRIGGER)

    assert found == waits


def test_what_is_put_back_again_is_halved(store: Store, clock: Clock) -> None:
    """One of the batch may be to blame: in the end it is alone."""
    steps.push(store, *"abcd")
    sizes = []
    for _ in range(7):
        lease = steps.claim(store, FOUR, force=True)
        sizes.append(len(lease.requests))
        lease.release(steps.put_back(*steps.ids_of(lease)))
        clock.advance(steps.HOUR)
        store.promote(steps.GROUP.id, steps.ids_of(lease), FOUR)

    assert sizes[:3] == [4, 4, 2]
    assert sizes[3:] == [1] * 4


def test_an_outage_halves_nothing(store: Store, clock: Clock) -> None:
    """However often what waits is put back for it."""
    steps.push(store, *"abcd")
    for _ in range(5):
        lease = steps.claim(store, FOUR, force=True)
        assert steps.ids_of(lease) == list("abcd")
        lease.release([Outcome(task_id, Verb.POSTPONE) for task_id in "abcd"])
        clock.advance(steps.HOUR)
        store.promote(steps.GROUP.id, list("abcd"), FOUR)


def test_what_is_put_back_may_be_delayed(store: Store) -> None:
    """A worker that cannot read it leaves it to a newer one."""
    steps.push_and_claim(store, "a").release(steps.put_back("a", delay_ms=steps.SECOND))

    assert steps.place(store, "a") == "delayed"


def test_a_dead_letter_is_kept(store: Store, clock: Clock) -> None:
    """With its error and its tries, for an operator; it is not rung for."""
    (bells,) = steps.push_and_claim(store, "a").release(steps.dead("a", error="ValueError()"))

    state = steps.read(store)
    assert bells.count == 0
    assert state.dead == {f"{steps.GROUP.id}:a": clock.now_ms}
    assert state.errors == {"a": "ValueError()"}
    assert state.items["a"].envelope == b"{}"
    assert store.stats()["dead"] == 1


def test_only_so_many_dead_letters_are_kept(store: Store, clock: Clock) -> None:
    """The oldest go, with all that is known of them, and are counted."""
    steps.limit(store, max_dead=2)
    steps.bury(store, "a")
    steps.bury(store, "b")
    assert store.stats()["dropped"] == 0
    clock.advance(steps.SECOND)
    steps.bury(store, "c", "d", "e", "f")

    state = steps.read(store)
    assert len(state.dead) == 2
    assert state.items.keys() == {member.partition(":")[2] for member in state.dead}
    assert state.items.keys() <= {"c", "d", "e", "f"}
    assert store.stats()["dropped"] == 4


def test_no_dead_letters_are_kept(store: Store) -> None:
    """With a bound of 0."""
    steps.limit(store, max_dead=0)
    steps.bury(store, "a")

    assert steps.read(store).items == {}


def test_a_long_error_is_cut(store: Store) -> None:
    """Its text is for people."""
    steps.push_and_claim(store, "a").release(steps.retry("a", error="x" * 5000))

    assert len(steps.read(store).errors["a"]) == 2048


def test_an_error_may_be_any_text(store: Store) -> None:
    """Also one that cannot be encoded."""
    steps.push_and_claim(store, "a").release(steps.retry("a", error="half a pair: \ud800"))

    assert steps.read(store).errors == {"a": "half a pair: ?"}


def test_a_retry_may_have_any_delay(store: Store, clock: Clock) -> None:
    """It is honoured, as Celery does it; also by the sweeps."""
    year_ms = 365 * 24 * 3600 * steps.SECOND
    lease = steps.push_and_claim(store, "a")
    lease.release(steps.retry("a", delay_ms=year_ms))
    lease.ack(ends=True)

    for passed_ms in (0, steps.SECOND, year_ms // 2):
        clock.advance(passed_ms)
        store.sweep(steps.TRIGGER)
        assert steps.read(store).delayed[f"{steps.GROUP.id}:a"] == 1_800_000_000_000 + year_ms


def test_the_batch_goes_on(store: Store) -> None:
    """With what it did not give back; its end is an ack."""
    lease = steps.push_and_claim(store, *"abc")
    lease.release(steps.retry("b"))

    assert lease.extend()
    assert steps.ack_all(lease) == 2


def test_what_is_given_back_twice_is_there_once(store: Store) -> None:
    """A reply was lost; nothing changes."""
    lease = steps.push_and_claim(store, *"abc")
    lease.release(steps.retry("a") + steps.dead("b"))
    before = steps.read(store)
    (bells,) = lease.release(steps.retry("a") + steps.dead("b"))

    assert bells.count == 0
    assert steps.read(store) == before


def test_a_batch_that_was_taken_back_gives_nothing_back(store: Store) -> None:
    """Its worker is told; nothing changes."""
    lease = steps.push_and_claim(store, *"abc")
    store.reclaim(lease.token, steps.GROUP.id, steps.TRIGGER, seen_dead=True)
    before = steps.read(store)

    with pytest.raises(LeaseLost):
        lease.release(steps.retry(*"abc"))
    assert lease.lost
    assert steps.read(store) == before


def test_requests_of_others_are_not_given_back(store: Store) -> None:
    """Whatever ids are named."""
    steps.push(store, *"abcdef")
    mine, theirs = steps.claim(store), steps.claim(store)
    mine.release(steps.retry("d", "nobody"))

    assert steps.ack_all(theirs) == 3


def test_a_batch_of_thousands_is_given_back(store: Store) -> None:
    """In chunks, and in the order in which it came."""
    large = Trigger(10_000, steps.INTERVAL_MS)
    ids = steps.push_many(store, 1300, large)
    lease = steps.claim(store, large, force=True)
    lease.release(steps.retry(*ids))
    steps.ack_all(lease)

    assert steps.ids_of(steps.claim(store, large)) == ids


# -- Order


def test_what_is_given_back_goes_first(store: Store) -> None:
    """It was claimed first, too."""
    steps.push(store, *"abcdef")
    steps.claim(store).release(steps.put_back("b", "c"))

    assert steps.waiting(store) == ["b", "c", "d", "e", "f"]


def test_what_is_given_back_is_ordered_by_age(store: Store, clock: Clock) -> None:
    """Whoever gives it back first."""
    one = Trigger(1, steps.INTERVAL_MS)
    leases = []
    for task_id in "abc":
        leases.append(steps.push_and_claim(store, task_id, trigger=one))
        clock.advance(1)
    for number in (1, 2, 0):
        leases[number].release(steps.put_back("abc"[number]))

    assert steps.waiting(store) == ["a", "b", "c"]


def test_calls_of_one_millisecond_stay_in_order(store: Store) -> None:
    """Given back and claimed again, however often."""
    large = Trigger(100, steps.INTERVAL_MS)
    ids = steps.push_many(store, 100, large)
    for _ in range(3):
        steps.claim(store, large).release(steps.retry(*ids))

    assert steps.waiting(store) == ids


def test_calls_of_one_millisecond_stay_in_order_behind_older_ones(
    store: Store, clock: Clock
) -> None:
    """Which were given back before them."""
    two = Trigger(2, steps.INTERVAL_MS)
    older = steps.push_and_claim(store, "a", "b", trigger=two)
    clock.advance(1)
    newer = steps.push_and_claim(store, "c", "d", trigger=two)
    older.release(steps.put_back("a", "b"))
    newer.release(steps.put_back("c", "d"))

    assert steps.waiting(store) == ["a", "b", "c", "d"]


def test_what_is_given_back_keeps_its_age(store: Store, clock: Clock) -> None:
    """A user sees since when it waited."""
    since_ms = clock.now_ms
    lease = steps.push_and_claim(store, "a")
    clock.advance(steps.SECOND)
    lease.release(steps.retry("a"))

    assert steps.claim(store).requests[0].since_ms == since_ms


def test_what_comes_after_it_is_not_due_for_that(store: Store) -> None:
    """It is claimed with it if there is room, and waits for its own time if not."""
    steps.push(store, *"abcd")
    steps.claim(store).release(steps.put_back(*"abc"))

    assert steps.ids_of(steps.claim(store)) == ["a", "b", "c"]
    assert steps.try_claim(store) == Idle("not_due", steps.INTERVAL_MS)


def test_it_is_known_where_to_ring_for_it(store: Store) -> None:
    """Though the claim had emptied the group."""
    steps.push_and_claim(store, "a").release(steps.retry("a", delay_ms=steps.SECOND))

    assert store.groups() == {steps.GROUP.id: steps.GROUP.route}


# -- A batch that failed


def splits(store: Store) -> list[str]:
    """Returns the levels of what waits."""
    return [entry.split for entry in steps.read(store).pending[steps.GROUP.id]]


def fail(store: Store, clock: Clock) -> None:
    """Lets the next batch fail as a whole."""
    lease = steps.claim(store, FOUR)
    lease.release(steps.retry_batch(*steps.ids_of(lease)))
    steps.ack_all(lease)
    clock.advance(steps.SECOND)


def go_well(store: Store, clock: Clock) -> None:
    """Lets another batch of the task go well."""
    steps.push(store, f"well-{clock.now_ms}", group=steps.OTHER)
    steps.ack_all(steps.claim(store, FOUR, force=True, group=steps.OTHER), well=True)
    clock.advance(steps.SECOND)


def test_a_batch_that_failed_is_retried_whole(store: Store, clock: Clock) -> None:
    """The first time."""
    go_well(store, clock)
    steps.push(store, *"abcd", trigger=FOUR)
    go_well(store, clock)
    fail(store, clock)

    assert splits(store) == ["0"] * 4


def test_a_batch_that_failed_again_is_halved(store: Store, clock: Clock) -> None:
    """If another one went well meanwhile: one of its requests is to blame."""
    steps.push(store, *"abcd", trigger=FOUR)
    fail(store, clock)
    go_well(store, clock)
    fail(store, clock)

    assert splits(store) == ["1"] * 4
    assert steps.ids_of(steps.claim(store, FOUR)) == ["a", "b"]


def test_an_outage_does_not_halve_batches(store: Store, clock: Clock) -> None:
    """Nothing goes well: no request is to blame."""
    go_well(store, clock)
    steps.push(store, *"abcd", trigger=FOUR)
    for _ in range(5):
        fail(store, clock)

    assert splits(store) == ["0"] * 4


def test_a_batch_that_did_not_go_well_is_no_sign(store: Store, clock: Clock) -> None:
    """Though its requests are finished."""
    steps.push(store, *"abcd", trigger=FOUR)
    fail(store, clock)
    steps.push(store, "bad", group=steps.OTHER)
    steps.ack_all(steps.claim(store, FOUR, force=True, group=steps.OTHER))
    clock.advance(steps.SECOND)
    fail(store, clock)

    assert splits(store) == ["0"] * 4


def test_a_request_that_is_retried_by_itself_is_not_halved(store: Store, clock: Clock) -> None:
    """Its function chose it: the others are not to blame."""
    steps.push(store, *"abcd", trigger=FOUR)
    for _ in range(3):
        lease = steps.claim(store, FOUR)
        lease.release([Outcome(task_id, Verb.RETRY) for task_id in steps.ids_of(lease)])
        steps.ack_all(lease)
        clock.advance(steps.SECOND)
        go_well(store, clock)

    assert splits(store) == ["0"] * 4


def test_a_half_that_is_delayed_stays_a_half(store: Store, clock: Clock) -> None:
    """Its level is kept with its tries."""
    steps.push(store, *"abcd", trigger=FOUR)
    fail(store, clock)
    go_well(store, clock)
    lease = steps.claim(store, FOUR)
    lease.release([Outcome(one, Verb.RETRY_BATCH, steps.SECOND) for one in steps.ids_of(lease)])
    clock.advance(steps.SECOND)
    store.promote(steps.GROUP.id, list("abcd"), FOUR)

    assert splits(store) == ["1"] * 4
