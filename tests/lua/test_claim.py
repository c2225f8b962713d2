"""claim: which requests make a batch, when, and whose it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import Any

import pytest
import redis

from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.outcomes import Idle
from redis_batches.core.requests import Attempts
from redis_batches.core.settings import Settings
from redis_batches.core.triggers import Trigger
from redis_batches.testing.clock import Clock
from tests.support import raw, steps

pytestmark = pytest.mark.usefixtures("sound")


def test_a_batch_has_the_oldest_requests(store: Store, clock: Clock) -> None:
    """In the order of their calls, each with its envelope and since when it waited."""
    steps.push(store, steps.call("b", body=b"1"), steps.call("a", body=b"2"))
    clock.advance(steps.SECOND)
    steps.push(store, "c", "d")

    lease = steps.claim(store)
    since_ms = clock.now_ms - steps.SECOND
    assert [(one.id, one.envelope, one.since_ms) for one in lease.requests] == [
        ("b", b"1", since_ms),
        ("a", b"2", since_ms),
        ("c", b"{}", since_ms + steps.SECOND),
    ]
    assert lease.started_ms == clock.now_ms
    assert all(request.attempts == Attempts() for request in lease.requests)


@pytest.mark.usefixtures("stray_keys")
def test_a_batch_that_is_finished_leaves_nothing(store: Store) -> None:
    """Not even where to ring for its group."""
    steps.push(store, *"abc")
    steps.ack_all(steps.claim(store, bell="bell"))


# -- How many


@pytest.mark.parametrize("size", [1, 2, 5, 10])
def test_a_batch_is_never_larger_than_its_claimers_flush_every(store: Store, size: int) -> None:
    """Whatever the callers' was."""
    steps.push(store, *"abcdefghij")

    assert len(steps.claim(store, Trigger(size, steps.INTERVAL_MS)).requests) == size


def test_a_batch_of_10000(store: Store) -> None:
    """The largest that is allowed."""
    largest = Trigger(10_000, steps.INTERVAL_MS)
    ids = steps.push_many(store, 10_001, largest)

    assert steps.ids_of(steps.claim(store, largest)) == ids[:-1]
    assert steps.waiting(store) == ids[-1:]


def test_a_batch_has_at_most_flush_bytes(store: Store) -> None:
    """The rest does not wait for others: it is due at once, and rung for."""
    steps.limit(store, flush_bytes=250)
    steps.push(store, *(steps.call(task_id, body=b"x" * 80) for task_id in "abc"))

    lease = steps.claim(store, bell="bell")
    assert steps.ids_of(lease) == ["a", "b"]
    assert lease.bells.count == 1
    assert steps.ids_of(steps.claim(store)) == ["c"]


def test_a_batch_is_full_at_flush_bytes(store: Store) -> None:
    """Before there are flush_every requests, and before the interval is over."""
    steps.limit(store, flush_bytes=250)
    steps.push(store, *(steps.call(task_id, body=b"x" * 80) for task_id in "abc"))

    assert len(steps.claim(store, Trigger(10, steps.INTERVAL_MS)).requests) == 2


def test_a_request_that_is_larger_goes_alone(store: Store) -> None:
    """It does not block the others."""
    steps.limit(store, flush_bytes=100)
    steps.push(store, steps.call("a", body=b"x" * 1000), "b", "c")

    assert steps.ids_of(steps.claim(store)) == ["a"]
    assert steps.ids_of(steps.claim(store)) == ["b", "c"]


def test_a_request_that_would_not_fit_is_not_due_for_that(store: Store) -> None:
    """If the batch before it was full without it."""
    steps.limit(store, flush_bytes=300)
    steps.push(store, *"abc", steps.call("d", body=b"x" * 290))
    steps.claim(store)

    assert steps.try_claim(store) == Idle("not_due", steps.INTERVAL_MS)


# -- When


@pytest.mark.parametrize("early_ms", [1, steps.INTERVAL_MS])
def test_a_batch_is_not_due_before_its_time(store: Store, clock: Clock, early_ms: int) -> None:
    """The claimer learns how long it takes."""
    steps.push(store, "a", "b")
    clock.advance(steps.INTERVAL_MS - early_ms)

    assert steps.try_claim(store) == Idle("not_due", early_ms)
    assert steps.waiting(store) == ["a", "b"]


def test_a_batch_is_due_when_the_interval_is_over(store: Store, clock: Clock) -> None:
    """To the millisecond."""
    steps.push(store, "a", "b")
    clock.advance(steps.INTERVAL_MS)

    assert steps.ids_of(steps.claim(store)) == ["a", "b"]


def test_the_claimers_interval_counts(store: Store, clock: Clock) -> None:
    """A sweep looks again when it is over, whatever the caller's was."""
    steps.push(store, "a", trigger=Trigger(3, steps.SECOND))
    clock.advance(steps.SECOND)

    assert steps.try_claim(store, Trigger(3, steps.HOUR)) == Idle(
        "not_due", steps.HOUR - steps.SECOND
    )
    assert steps.attention(store) == clock.now_ms + steps.HOUR - steps.SECOND


def test_what_is_not_due_stays_in_its_order(store: Store) -> None:
    """A doorbell too many does not disturb it."""
    ids = steps.push_many(store, 50, Trigger(100, steps.INTERVAL_MS))
    steps.try_claim(store, Trigger(100, steps.INTERVAL_MS))

    assert steps.waiting(store) == ids


def test_a_claim_by_force_takes_what_waits(store: Store) -> None:
    """Due or not."""
    steps.push(store, "a")

    assert steps.ids_of(steps.claim(store, force=True)) == ["a"]


def test_nothing_waits(store: Store) -> None:
    """The claim says so, and leaves nothing behind."""
    assert steps.try_claim(store, bell="bell") == Idle("empty")
    assert steps.read(store).bells == {}


def test_what_waits_since_a_time_to_come_is_due(store: Store, clock: Clock) -> None:
    """The clock went back: nobody waits for hours."""
    steps.push(store, "a")
    clock.advance(-5 * steps.HOUR)

    assert steps.ids_of(steps.claim(store)) == ["a"]


def test_with_less_than_it_was_called_for_the_claimers_size_counts(store: Store) -> None:
    """A deploy made batches larger: two are not full any more."""
    steps.push(store, "a", "b", trigger=Trigger(2, steps.INTERVAL_MS))

    assert steps.try_claim(store, Trigger(3, steps.INTERVAL_MS)) == Idle(
        "not_due", steps.INTERVAL_MS
    )


# -- Halves


def test_a_half_is_not_filled_up(store: Store) -> None:
    """What is under suspicion after a crash goes with nothing else."""
    four = Trigger(4, steps.INTERVAL_MS)
    lease = steps.push_and_claim(store, *"abcd", trigger=four)
    store.reclaim(lease.token, steps.GROUP.id, four, seen_dead=True)
    steps.push(store, *"efgh", trigger=four)

    assert [steps.ids_of(steps.claim(store, four)) for _ in range(3)] == [
        ["a", "b"],
        ["c", "d"],
        list("efgh"),
    ]


def test_the_other_half_is_rung_for_at_once(store: Store) -> None:
    """By the claim that leaves it behind."""
    four = Trigger(4, steps.INTERVAL_MS)
    lease = steps.push_and_claim(store, *"abcd", trigger=four)
    store.reclaim(lease.token, steps.GROUP.id, four, seen_dead=True)

    assert steps.claim(store, four, bell="bell").bells.count == 1


def test_what_was_put_back_is_filled_up(store: Store) -> None:
    """It is under no suspicion."""
    steps.push_and_claim(store, "a").release(steps.put_back("a"))
    steps.push(store, "b", "c", "d")

    assert steps.ids_of(steps.claim(store)) == ["a", "b", "c"]


def test_a_suspect_does_not_fill_a_batch_up(store: Store) -> None:
    """Those before it, which are under no suspicion, go without it."""
    four = Trigger(4, steps.INTERVAL_MS)
    innocent = steps.push_and_claim(store, "x", trigger=four)
    lease = steps.push_and_claim(store, *"abcd", trigger=four)
    store.reclaim(lease.token, steps.GROUP.id, four, seen_dead=True)
    innocent.release(steps.put_back("x"))

    assert [steps.ids_of(steps.claim(store, four)) for _ in range(3)] == [
        ["x"],
        ["a", "b"],
        ["c", "d"],
    ]


def test_a_half_is_at_most_half_of_the_claimers_batch(store: Store) -> None:
    """Whatever the batch was that died."""
    ten = Trigger(10, steps.INTERVAL_MS)
    lease = steps.push_and_claim(store, *"abcdefghij", trigger=ten)
    store.reclaim(lease.token, steps.GROUP.id, ten, seen_dead=True)

    assert steps.ids_of(steps.claim(store, Trigger(5, steps.INTERVAL_MS))) == ["a", "b"]


def test_a_half_that_was_cut_at_flush_bytes_stays_a_half(store: Store) -> None:
    """The rest of it is claimed with its own kind."""
    steps.limit(store, flush_bytes=250)
    eight = Trigger(8, steps.INTERVAL_MS)
    steps.push(store, *(steps.call(task_id, body=b"x" * 80) for task_id in "abcd"), trigger=eight)
    steps.limit(store, flush_bytes=1000)
    lease = steps.claim(store, eight, force=True)
    store.reclaim(lease.token, steps.GROUP.id, eight, seen_dead=True)
    steps.limit(store, flush_bytes=150)
    steps.claim(store, eight)

    splits = [entry.split for entry in steps.read(store).pending[steps.GROUP.id]]
    assert splits == ["2", "2", "2"]


# -- Whose


def test_the_same_token_gets_the_same_batch(store: Store, clock: Clock) -> None:
    """The reply was lost; nothing else is claimed."""
    steps.push(store, *"abcdef")
    first = steps.claim(store, token="token", bell="bell")
    clock.advance(steps.SECOND)
    before = steps.read(store)
    again = steps.claim(store, token="token", bell="bell")

    assert again.requests == first.requests
    assert (again.fence, again.started_ms) == (first.fence, first.started_ms)
    assert again.bells.route == first.bells.route
    assert steps.read(store) == before


def test_the_same_token_gets_what_is_left_of_its_batch(store: Store) -> None:
    """What it has finished is not run again."""
    steps.push(store, *"abc")
    steps.claim(store, token="token").ack(["a"])

    assert steps.ids_of(steps.claim(store, token="token")) == ["b", "c"]


def test_a_token_whose_batch_has_ended_gets_no_other(store: Store) -> None:
    """A claim that was delayed on its way would leave one that nobody runs."""
    steps.push(store, *"abcdef")
    steps.ack_all(steps.claim(store, token="token"))

    assert steps.try_claim(store, token="token") == Idle("ended")


def test_a_token_whose_batch_was_taken_back_gets_no_other(store: Store) -> None:
    """Else its late ack could end a batch that it never saw."""
    steps.push(store, *"abcdef")
    steps.claim(store, token="token")
    store.reclaim("token", steps.GROUP.id, steps.TRIGGER, seen_dead=True)

    assert steps.try_claim(store, token="token") == Idle("ended")


def test_a_doorbell_whose_batch_runs_starts_no_other(store: Store) -> None:
    """It was delivered twice."""
    steps.push(store, *"abcdef")
    steps.claim(store, token="first", bell="bell")

    assert steps.try_claim(store, token="second", bell="bell") == Idle("busy")


def test_a_doorbell_whose_worker_died_starts_another(store: Store, clock: Clock) -> None:
    """With what is due now; the dead batch is taken back by a sweep."""
    steps.push(store, *"abcdef")
    steps.claim(store, token="first", bell="bell")
    clock.advance(steps.LEASE_MS)

    assert steps.ids_of(steps.claim(store, token="second", bell="bell")) == ["d", "e", "f"]


def test_the_end_of_a_batch_leaves_the_next_one_of_its_doorbell(store: Store, clock: Clock) -> None:
    """The doorbell still names the run that it started last."""
    steps.push(store, *"abcdef")
    steps.claim(store, token="first", bell="bell")
    clock.advance(steps.LEASE_MS)
    steps.claim(store, token="second", bell="bell")
    store.reclaim("first", steps.GROUP.id, steps.TRIGGER)

    assert store.find_token("bell") == "second"


def test_a_doorbell_names_its_run(store: Store) -> None:
    """While it has one."""
    steps.push(store, *"abc")
    assert store.find_token("bell") is None
    lease = steps.claim(store, token="token", bell="bell")
    assert store.find_token("bell") == "token"
    steps.ack_all(lease)
    assert store.find_token("bell") is None


@pytest.mark.parametrize("passed_ms", [0, steps.SECOND, -steps.HOUR])
def test_a_fence_is_larger_than_any_before(store: Store, clock: Clock, passed_ms: int) -> None:
    """Also when the clock stood still, or went back."""
    steps.push(store, *"abcdef")
    first = steps.claim(store).fence
    clock.advance(passed_ms)

    assert steps.claim(store).fence > first


def test_a_fence_is_at_least_the_time(store: Store, clock: Clock) -> None:
    """So that it grows even if a failover lost the last one."""
    steps.push(store, *"abc")

    assert steps.claim(store).fence >= clock.now_ms


# -- Doorbells


def test_what_a_claim_leaves_behind_is_rung_for(store: Store) -> None:
    """As many as can be claimed, but for those that are out."""
    steps.push(store, *"abcdef")
    assert steps.read(store).bell(steps.GROUP.id)[0] == 2

    assert steps.claim(store, Trigger(2, steps.INTERVAL_MS), bell="bell").bells.count == 1


def test_what_is_not_due_is_not_rung_for(store: Store) -> None:
    """Its interval has not begun to matter."""
    steps.push(store, *"abcd")

    assert steps.claim(store, bell="bell").bells.count == 0


def test_a_claim_in_vain_answers_its_doorbell_too(store: Store) -> None:
    """It is not out any more."""
    steps.push(store, *"abc")
    steps.claim(store, Trigger(2, steps.INTERVAL_MS))
    assert steps.read(store).bell(steps.GROUP.id)[0] == 1

    assert steps.try_claim(store, bell="bell") == Idle("not_due", steps.INTERVAL_MS)
    assert steps.read(store).bell(steps.GROUP.id)[0] == 0


def test_a_doorbell_that_is_delivered_twice_counts_once(store: Store) -> None:
    """While its batch runs."""
    steps.push(store, *"abcdefghi")
    steps.claim(store, bell="bell")
    out = steps.read(store).bell(steps.GROUP.id)[0]
    steps.try_claim(store, bell="bell")

    assert steps.read(store).bell(steps.GROUP.id)[0] == out


def test_an_answer_ends_the_pause_of_the_others(store: Store, clock: Clock) -> None:
    """A slow queue is not taken for a dead one: nothing more is rung while it answers."""
    steps.push(store, *"abcdefghi")
    for bell in ("first", "second"):
        clock.advance(steps.MIN_PAUSE_MS - 1)
        assert steps.claim(store, bell=bell, rung_ms=clock.now_ms - steps.HOUR).bells.count == 0


def test_a_doorbell_that_overtakes_the_feared_for_shows_that_they_are_lost(
    store: Store, clock: Clock
) -> None:
    """Then all that are missing are rung at once."""
    steps.push(store, *(f"id{number}" for number in range(30)))
    clock.advance(steps.MIN_PAUSE_MS)
    again = steps.push(store, "late").bells
    assert again.count == 1

    assert steps.claim(store, bell="bell", rung_ms=again.rung_ms).bells.count == 9


def test_a_late_doorbell_shows_that_the_others_are_only_slow(store: Store, clock: Clock) -> None:
    """So no more are rung than are out."""
    first = steps.push(store, *(f"id{number}" for number in range(30))).bells
    clock.advance(steps.MIN_PAUSE_MS)
    assert steps.push(store, "late").bells.count == 1

    assert steps.claim(store, bell="bell", rung_ms=first.rung_ms).bells.count == 0


# -- What is in the way


def test_entries_of_requests_that_are_gone_are_skipped(store: Store) -> None:
    """They go with the claim that meets them."""
    steps.push(store, *"abcde")
    raw.client(store).hdel(raw.key(store, "items"), "a", "c")
    raw.client(store).hincrby(raw.key(store, "stats"), "dropped", 2)

    assert steps.ids_of(steps.claim(store)) == ["b", "d", "e"]
    assert steps.waiting(store) == []


def test_a_claim_in_vain_takes_what_is_gone_out_of_the_way(store: Store) -> None:
    """And leaves the others in their order."""
    steps.push(store, *"abcd", trigger=Trigger(9, steps.INTERVAL_MS))
    raw.client(store).hdel(raw.key(store, "items"), "b")
    raw.client(store).hincrby(raw.key(store, "stats"), "dropped", 1)

    assert steps.try_claim(store, Trigger(9, steps.INTERVAL_MS)) == Idle(
        "not_due", steps.INTERVAL_MS
    )
    assert steps.waiting(store) == ["a", "c", "d"]


def test_a_second_entry_of_a_request_is_skipped(store: Store) -> None:
    """A batch has a request once; what is owned is in no other batch."""
    steps.push(store, "a", "b")
    pending = raw.key(store, "pending", steps.GROUP.id)
    raw.client(store).rpush(pending, *raw.client(store).lrange(pending, 0, -1))

    assert steps.ids_of(steps.claim(store, Trigger(2, 0))) == ["a", "b"]
    assert steps.try_claim(store, Trigger(2, 0)) == Idle("empty")


def test_a_request_is_in_a_batch_once(store: Store) -> None:
    """However often it waits."""
    steps.push(store, "a", "b")
    pending = raw.key(store, "pending", steps.GROUP.id)
    raw.client(store).rpush(pending, *raw.client(store).lrange(pending, 0, -1))

    assert steps.ids_of(steps.claim(store, Trigger(9, 0))) == ["a", "b"]


def test_an_entry_of_what_another_worker_runs_is_skipped(store: Store) -> None:
    """No request is in two live batches."""
    steps.push(store, "a")
    pending = raw.key(store, "pending", steps.GROUP.id)
    (entry,) = raw.client(store).lrange(pending, 0, -1)
    running = steps.claim(store, Trigger(1, 0))
    steps.push(store, "b")
    raw.client(store).lpush(pending, entry)

    assert steps.ids_of(steps.claim(store, Trigger(2, 0))) == ["b"]
    assert steps.ack_all(running) == 1


@pytest.mark.parametrize("interval_ms", [0, steps.HOUR], ids=["due", "not due"])
def test_a_long_row_of_entries_that_are_gone_is_cleared_in_steps(
    store: Store, clock: Clock, interval_ms: int
) -> None:
    """Each call of the script does a bounded part of it, and the claim goes on at once."""
    trigger = Trigger(3, interval_ms)
    steps.push(store, "a", trigger=trigger)
    pending = raw.key(store, "pending", steps.GROUP.id)
    for _ in range(30):
        raw.client(store).lpush(pending, *(f"{clock.now_ms}:-:9:gone" for _ in range(1000)))
    run, left = store._redis.run, [store.waiting(steps.GROUP.id)]

    def note(script: str, **values: Any) -> list[Any]:
        reply = run(script, **values)
        left.append(store.waiting(steps.GROUP.id))
        assert bells_out(store) == (1 if reply[0] == "more" else 0)
        return reply

    raw.client(store).hset(raw.key(store, "bells"), steps.GROUP.id, f"1:{clock.now_ms}:1000:0:0")
    store._redis.run = note  # type: ignore[method-assign]
    found = steps.try_claim(store, trigger, bell="bell")

    assert all(0 < one - other <= 5_010 for one, other in pairwise(left))
    if interval_ms:
        assert found == Idle("not_due", steps.HOUR)
    else:
        assert isinstance(found, Lease)
        assert steps.ids_of(found) == ["a"]


def test_a_worker_that_dies_while_it_clears_such_a_row_is_made_good(
    store: Store, clock: Clock
) -> None:
    """Its doorbell counts as out, so after a pause a sweep rings once more."""
    pending, trigger = raw.key(store, "pending", steps.GROUP.id), Trigger(3, 0)
    steps.push(store, "a", trigger=trigger)
    for _ in range(11):
        raw.client(store).lpush(pending, *(f"{clock.now_ms}:-:9:gone" for _ in range(1000)))
    run = store._redis.run

    def die_after(script: str, **values: Any) -> list[Any]:
        assert run(script, **values)[0] == "more"
        raise KeyboardInterrupt

    store._redis.run = die_after  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        steps.try_claim(store, trigger, bell="bell")
    store._redis.run = run  # type: ignore[method-assign]

    clock.advance(steps.MIN_PAUSE_MS)
    swept = store.sweep(trigger)
    assert swept is not None
    assert [bells.group for bells in swept.bells] == [steps.GROUP.id]
    assert steps.ids_of(steps.claim(store, trigger, bell="another")) == ["a"]


def bells_out(store: Store) -> int:
    """Returns how many doorbells are out."""
    return int(steps.read(store).bells.get(steps.GROUP.id, "0").partition(":")[0])


# -- Attempts, groups, races


def test_a_request_knows_what_it_went_through(store: Store) -> None:
    """Tries that ended with its retry, and runs that died."""
    steps.push_and_claim(store, "a").release(steps.retry("a"))
    lease = steps.claim(store)
    store.reclaim(lease.token, steps.GROUP.id, steps.TRIGGER, seen_dead=True)

    (request,) = steps.claim(store).requests
    assert (request.attempts.tries, request.attempts.crashes) == (1, 1)
    assert request.attempts.number == 3


def test_where_to_ring_is_kept_while_something_is_delayed(store: Store, clock: Clock) -> None:
    """The claim that empties the group leaves it."""
    steps.push(store, "a", steps.call("b", eta_ms=clock.now_ms + steps.HOUR))
    steps.ack_all(steps.claim(store, force=True))

    assert store.groups() == {steps.GROUP.id: steps.GROUP.route}


def test_a_claim_of_one_group_leaves_the_others(store: Store) -> None:
    """Each has its own list."""
    steps.push(store, "a")
    steps.push(store, "b", group=steps.OTHER)

    assert steps.ids_of(steps.claim(store, group=steps.OTHER, force=True)) == ["b"]
    assert steps.place(store, "a") == "pending"


def test_16_workers_at_once_get_different_requests(shared_url: str, namespace: str) -> None:
    """Every request is in exactly one of their batches."""
    client = redis.Redis.from_url(shared_url)
    store = Store(client, Settings(namespace=namespace), "shop.click")
    seven = Trigger(7, 0)
    ids = steps.push_many(store, 1000, seven)

    def work(_: int) -> list[list[str]]:
        batches = []
        while isinstance(lease := store.claim(steps.GROUP.id, seven), Lease):
            batches.append(steps.ids_of(lease))
        return batches

    with ThreadPoolExecutor(16) as pool:
        batches = list(chain.from_iterable(pool.map(work, range(16))))
    assert sorted(chain.from_iterable(batches)) == ids
    assert max(map(len, batches)) == 7
    client.close()


def test_a_run_goes_on_while_more_waits_than_doorbells_are_out_for(store: Store) -> None:
    """The last batches are left to those that were rung already."""
    one = Trigger(1, steps.INTERVAL_MS)
    ids = steps.push_many(store, steps.MAX_BELLS + 3, trigger=one)
    steps.ack_all(steps.claim(store, one, bell="d", token="first"))
    bells = steps.read(store).bells[steps.GROUP.id]

    second = steps.claim(store, one, bell="d", token="second", follows=True)
    assert steps.ids_of(second) == [ids[1]]
    assert store.find_token("d") == "second"
    steps.ack_all(second)
    third = steps.claim(store, one, bell="d", token="third", follows=True)
    steps.ack_all(third)

    assert steps.try_claim(store, one, bell="d", token="fourth", follows=True) == Idle("left")
    assert steps.waiting(store) == ids[3:]
    assert (second.bells.count, third.bells.count) == (0, 0)
    assert steps.read(store).bells[steps.GROUP.id] == bells


def test_a_run_does_not_go_on_while_its_batch_is_open(store: Store) -> None:
    """One doorbell has one run, and that has one batch at a time."""
    one = Trigger(1, steps.INTERVAL_MS)
    steps.push_many(store, steps.MAX_BELLS + 3, trigger=one)
    steps.claim(store, one, bell="d", token="first")

    assert steps.try_claim(store, one, bell="d", token="second", follows=True) == Idle("busy")
