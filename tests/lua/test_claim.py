"""claim: which requests make a batch, when, and whose it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import Any

import pytest
import redis

from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.model import Attempts, Idle, Trigger
from redis_batches.core.settings import Settings
from tests.support.clock import Clock
from tests.support.steps import (
    GROUP,
    HOUR,
    INTERVAL_MS,
    LEASE_MS,
    MAX_BELLS,
    MIN_PAUSE_MS,
    OTHER,
    SECOND,
    TRIGGER,
    ack_all,
    attention,
    call,
    claim,
    ids_of,
    limit,
    place,
    push,
    push_and_claim,
    push_many,
    put_back,
    read,
    retry,
    try_claim,
    waiting,
)

pytestmark = pytest.mark.usefixtures("sound")


def test_a_batch_has_the_oldest_requests(store: Store, clock: Clock) -> None:
    """In the order of their calls, each with its envelope and since when it waited."""
    push(store, call("b", body=b"1"), call("a", body=b"2"))
    clock.advance(SECOND)
    push(store, "c", "d")

    lease = claim(store)
    since_ms = clock.now_ms - SECOND
    assert [(one.id, one.envelope, one.since_ms) for one in lease.requests] == [
        ("b", b"1", since_ms),
        ("a", b"2", since_ms),
        ("c", b"{}", since_ms + SECOND),
    ]
    assert lease.started_ms == clock.now_ms
    assert all(request.attempts == Attempts() for request in lease.requests)


@pytest.mark.usefixtures("stray_keys")
def test_a_batch_that_is_finished_leaves_nothing(store: Store) -> None:
    """Not even where to ring for its group."""
    push(store, *"abc")
    ack_all(claim(store, bell="bell"))


# -- How many


@pytest.mark.parametrize("size", [1, 2, 5, 10])
def test_a_batch_is_never_larger_than_its_claimers_flush_every(store: Store, size: int) -> None:
    """Whatever the callers' was."""
    push(store, *"abcdefghij")

    assert len(claim(store, Trigger(size, INTERVAL_MS)).requests) == size


def test_a_batch_of_10000(store: Store) -> None:
    """The largest that is allowed."""
    largest = Trigger(10_000, INTERVAL_MS)
    ids = push_many(store, 10_001, largest)

    assert ids_of(claim(store, largest)) == ids[:-1]
    assert waiting(store) == ids[-1:]


def test_a_batch_has_at_most_flush_bytes(store: Store) -> None:
    """The rest does not wait for others: it is due at once, and rung for."""
    limit(store, flush_bytes=250)
    push(store, *(call(task_id, body=b"x" * 80) for task_id in "abc"))

    lease = claim(store, bell="bell")
    assert ids_of(lease) == ["a", "b"]
    assert lease.bells.count == 1
    assert ids_of(claim(store)) == ["c"]


def test_a_batch_is_full_at_flush_bytes(store: Store) -> None:
    """Before there are flush_every requests, and before the interval is over."""
    limit(store, flush_bytes=250)
    push(store, *(call(task_id, body=b"x" * 80) for task_id in "abc"))

    assert len(claim(store, Trigger(10, INTERVAL_MS)).requests) == 2


def test_a_request_that_is_larger_goes_alone(store: Store) -> None:
    """It does not block the others."""
    limit(store, flush_bytes=100)
    push(store, call("a", body=b"x" * 1000), "b", "c")

    assert ids_of(claim(store)) == ["a"]
    assert ids_of(claim(store)) == ["b", "c"]


def test_a_request_that_would_not_fit_is_not_due_for_that(store: Store) -> None:
    """If the batch before it was full without it."""
    limit(store, flush_bytes=300)
    push(store, *"abc", call("d", body=b"x" * 290))
    claim(store)

    assert try_claim(store) == Idle("not_due", INTERVAL_MS)


# -- When


@pytest.mark.parametrize("early_ms", [1, INTERVAL_MS])
def test_a_batch_is_not_due_before_its_time(store: Store, clock: Clock, early_ms: int) -> None:
    """The claimer learns how long it takes."""
    push(store, "a", "b")
    clock.advance(INTERVAL_MS - early_ms)

    assert try_claim(store) == Idle("not_due", early_ms)
    assert waiting(store) == ["a", "b"]


def test_a_batch_is_due_when_the_interval_is_over(store: Store, clock: Clock) -> None:
    """To the millisecond."""
    push(store, "a", "b")
    clock.advance(INTERVAL_MS)

    assert ids_of(claim(store)) == ["a", "b"]


def test_the_claimers_interval_counts(store: Store, clock: Clock) -> None:
    """A sweep looks again when it is over, whatever the caller's was."""
    push(store, "a", trigger=Trigger(3, SECOND))
    clock.advance(SECOND)

    assert try_claim(store, Trigger(3, HOUR)) == Idle("not_due", HOUR - SECOND)
    assert attention(store) == clock.now_ms + HOUR - SECOND


def test_what_is_not_due_stays_in_its_order(store: Store) -> None:
    """A doorbell too many does not disturb it."""
    ids = push_many(store, 50, Trigger(100, INTERVAL_MS))
    try_claim(store, Trigger(100, INTERVAL_MS))

    assert waiting(store) == ids


def test_a_claim_by_force_takes_what_waits(store: Store) -> None:
    """Due or not."""
    push(store, "a")

    assert ids_of(claim(store, force=True)) == ["a"]


def test_nothing_waits(store: Store) -> None:
    """The claim says so, and leaves nothing behind."""
    assert try_claim(store, bell="bell") == Idle("empty")
    assert read(store).bells == {}


def test_what_waits_since_a_time_to_come_is_due(store: Store, clock: Clock) -> None:
    """The clock went back: nobody waits for hours."""
    push(store, "a")
    clock.advance(-5 * HOUR)

    assert ids_of(claim(store)) == ["a"]


def test_with_less_than_it_was_called_for_the_claimers_size_counts(store: Store) -> None:
    """A deploy made batches larger: two are not full any more."""
    push(store, "a", "b", trigger=Trigger(2, INTERVAL_MS))

    assert try_claim(store, Trigger(3, INTERVAL_MS)) == Idle("not_due", INTERVAL_MS)


# -- Halves


def test_a_half_is_not_filled_up(store: Store) -> None:
    """What is under suspicion after a crash goes with nothing else."""
    four = Trigger(4, INTERVAL_MS)
    lease = push_and_claim(store, *"abcd", trigger=four)
    store.reclaim(lease.token, GROUP.id, four, seen_dead=True)
    push(store, *"efgh", trigger=four)

    assert [ids_of(claim(store, four)) for _ in range(3)] == [["a", "b"], ["c", "d"], list("efgh")]


def test_the_other_half_is_rung_for_at_once(store: Store) -> None:
    """By the claim that leaves it behind."""
    four = Trigger(4, INTERVAL_MS)
    lease = push_and_claim(store, *"abcd", trigger=four)
    store.reclaim(lease.token, GROUP.id, four, seen_dead=True)

    assert claim(store, four, bell="bell").bells.count == 1


def test_what_was_put_back_is_filled_up(store: Store) -> None:
    """It is under no suspicion."""
    push_and_claim(store, "a").release(put_back("a"))
    push(store, "b", "c", "d")

    assert ids_of(claim(store)) == ["a", "b", "c"]


def test_a_suspect_does_not_fill_a_batch_up(store: Store) -> None:
    """Those before it, which are under no suspicion, go without it."""
    four = Trigger(4, INTERVAL_MS)
    innocent = push_and_claim(store, "x", trigger=four)
    lease = push_and_claim(store, *"abcd", trigger=four)
    store.reclaim(lease.token, GROUP.id, four, seen_dead=True)
    innocent.release(put_back("x"))

    assert [ids_of(claim(store, four)) for _ in range(3)] == [["x"], ["a", "b"], ["c", "d"]]


def test_a_half_is_at_most_half_of_the_claimers_batch(store: Store) -> None:
    """Whatever the batch was that died."""
    ten = Trigger(10, INTERVAL_MS)
    lease = push_and_claim(store, *"abcdefghij", trigger=ten)
    store.reclaim(lease.token, GROUP.id, ten, seen_dead=True)

    assert ids_of(claim(store, Trigger(5, INTERVAL_MS))) == ["a", "b"]


def test_a_half_that_was_cut_at_flush_bytes_stays_a_half(store: Store) -> None:
    """The rest of it is claimed with its own kind."""
    limit(store, flush_bytes=250)
    eight = Trigger(8, INTERVAL_MS)
    push(store, *(call(task_id, body=b"x" * 80) for task_id in "abcd"), trigger=eight)
    limit(store, flush_bytes=1000)
    lease = claim(store, eight, force=True)
    store.reclaim(lease.token, GROUP.id, eight, seen_dead=True)
    limit(store, flush_bytes=150)
    claim(store, eight)

    splits = [entry.split for entry in read(store).pending[GROUP.id]]
    assert splits == ["2", "2", "2"]


# -- Whose


def test_the_same_token_gets_the_same_batch(store: Store, clock: Clock) -> None:
    """The reply was lost; nothing else is claimed."""
    push(store, *"abcdef")
    first = claim(store, token="token", bell="bell")
    clock.advance(SECOND)
    before = read(store)
    again = claim(store, token="token", bell="bell")

    assert again.requests == first.requests
    assert (again.fence, again.started_ms) == (first.fence, first.started_ms)
    assert again.bells.route == first.bells.route
    assert read(store) == before


def test_the_same_token_gets_what_is_left_of_its_batch(store: Store) -> None:
    """What it has finished is not run again."""
    push(store, *"abc")
    claim(store, token="token").ack(["a"])

    assert ids_of(claim(store, token="token")) == ["b", "c"]


def test_a_token_whose_batch_has_ended_gets_no_other(store: Store) -> None:
    """A claim that was delayed on its way would leave one that nobody runs."""
    push(store, *"abcdef")
    ack_all(claim(store, token="token"))

    assert try_claim(store, token="token") == Idle("ended")


def test_a_token_whose_batch_was_taken_back_gets_no_other(store: Store) -> None:
    """Else its late ack could end a batch that it never saw."""
    push(store, *"abcdef")
    claim(store, token="token")
    store.reclaim("token", GROUP.id, TRIGGER, seen_dead=True)

    assert try_claim(store, token="token") == Idle("ended")


def test_a_doorbell_whose_batch_runs_starts_no_other(store: Store) -> None:
    """It was delivered twice."""
    push(store, *"abcdef")
    claim(store, token="first", bell="bell")

    assert try_claim(store, token="second", bell="bell") == Idle("busy")


def test_a_doorbell_whose_worker_died_starts_another(store: Store, clock: Clock) -> None:
    """With what is due now; the dead batch is taken back by a sweep."""
    push(store, *"abcdef")
    claim(store, token="first", bell="bell")
    clock.advance(LEASE_MS)

    assert ids_of(claim(store, token="second", bell="bell")) == ["d", "e", "f"]


def test_the_end_of_a_batch_leaves_the_next_one_of_its_doorbell(store: Store, clock: Clock) -> None:
    """The doorbell still names the run that it started last."""
    push(store, *"abcdef")
    claim(store, token="first", bell="bell")
    clock.advance(LEASE_MS)
    claim(store, token="second", bell="bell")
    store.reclaim("first", GROUP.id, TRIGGER)

    assert store.find_token("bell") == "second"


def test_a_doorbell_names_its_run(store: Store) -> None:
    """While it has one."""
    push(store, *"abc")
    assert store.find_token("bell") is None
    lease = claim(store, token="token", bell="bell")
    assert store.find_token("bell") == "token"
    ack_all(lease)
    assert store.find_token("bell") is None


@pytest.mark.parametrize("passed_ms", [0, SECOND, -HOUR])
def test_a_fence_is_larger_than_any_before(store: Store, clock: Clock, passed_ms: int) -> None:
    """Also when the clock stood still, or went back."""
    push(store, *"abcdef")
    first = claim(store).fence
    clock.advance(passed_ms)

    assert claim(store).fence > first


def test_a_fence_is_at_least_the_time(store: Store, clock: Clock) -> None:
    """So that it grows even if a failover lost the last one."""
    push(store, *"abc")

    assert claim(store).fence >= clock.now_ms


# -- Doorbells


def test_what_a_claim_leaves_behind_is_rung_for(store: Store) -> None:
    """As many as can be claimed, but for those that are out."""
    push(store, *"abcdef")
    assert read(store).bell(GROUP.id)[0] == 2

    assert claim(store, Trigger(2, INTERVAL_MS), bell="bell").bells.count == 1


def test_what_is_not_due_is_not_rung_for(store: Store) -> None:
    """Its interval has not begun to matter."""
    push(store, *"abcd")

    assert claim(store, bell="bell").bells.count == 0


def test_a_claim_in_vain_answers_its_doorbell_too(store: Store) -> None:
    """It is not out any more."""
    push(store, *"abc")
    claim(store, Trigger(2, INTERVAL_MS))
    assert read(store).bell(GROUP.id)[0] == 1

    assert try_claim(store, bell="bell") == Idle("not_due", INTERVAL_MS)
    assert read(store).bell(GROUP.id)[0] == 0


def test_a_doorbell_that_is_delivered_twice_counts_once(store: Store) -> None:
    """While its batch runs."""
    push(store, *"abcdefghi")
    claim(store, bell="bell")
    out = read(store).bell(GROUP.id)[0]
    try_claim(store, bell="bell")

    assert read(store).bell(GROUP.id)[0] == out


def test_an_answer_ends_the_pause_of_the_others(store: Store, clock: Clock) -> None:
    """A slow queue is not taken for a dead one: nothing more is rung while it answers."""
    push(store, *"abcdefghi")
    for bell in ("first", "second"):
        clock.advance(MIN_PAUSE_MS - 1)
        assert claim(store, bell=bell, rung_ms=clock.now_ms - HOUR).bells.count == 0


def test_a_doorbell_that_overtakes_the_feared_for_shows_that_they_are_lost(
    store: Store, clock: Clock
) -> None:
    """Then all that are missing are rung at once."""
    push(store, *(f"id{number}" for number in range(30)))
    clock.advance(MIN_PAUSE_MS)
    again = push(store, "late").bells
    assert again.count == 1

    assert claim(store, bell="bell", rung_ms=again.rung_ms).bells.count == 9


def test_a_late_doorbell_shows_that_the_others_are_only_slow(store: Store, clock: Clock) -> None:
    """So no more are rung than are out."""
    first = push(store, *(f"id{number}" for number in range(30))).bells
    clock.advance(MIN_PAUSE_MS)
    assert push(store, "late").bells.count == 1

    assert claim(store, bell="bell", rung_ms=first.rung_ms).bells.count == 0


# -- What is in the way


def test_entries_of_requests_that_are_gone_are_skipped(store: Store) -> None:
    """They go with the claim that meets them."""
    push(store, *"abcde")
    store.client.hdel(store.keys.resolve("items"), "a", "c")
    store.client.hincrby(store.keys.resolve("stats"), "dropped", 2)

    assert ids_of(claim(store)) == ["b", "d", "e"]
    assert waiting(store) == []


def test_a_claim_in_vain_takes_what_is_gone_out_of_the_way(store: Store) -> None:
    """And leaves the others in their order."""
    push(store, *"abcd", trigger=Trigger(9, INTERVAL_MS))
    store.client.hdel(store.keys.resolve("items"), "b")
    store.client.hincrby(store.keys.resolve("stats"), "dropped", 1)

    assert try_claim(store, Trigger(9, INTERVAL_MS)) == Idle("not_due", INTERVAL_MS)
    assert waiting(store) == ["a", "c", "d"]


def test_a_second_entry_of_a_request_is_skipped(store: Store) -> None:
    """A batch has a request once; what is owned is in no other batch."""
    push(store, "a", "b")
    pending = store.keys.pending(GROUP.id)
    store.client.rpush(pending, *store.client.lrange(pending, 0, -1))

    assert ids_of(claim(store, Trigger(2, 0))) == ["a", "b"]
    assert try_claim(store, Trigger(2, 0)) == Idle("empty")


def test_a_request_is_in_a_batch_once(store: Store) -> None:
    """However often it waits."""
    push(store, "a", "b")
    pending = store.keys.pending(GROUP.id)
    store.client.rpush(pending, *store.client.lrange(pending, 0, -1))

    assert ids_of(claim(store, Trigger(9, 0))) == ["a", "b"]


def test_an_entry_of_what_another_worker_runs_is_skipped(store: Store) -> None:
    """No request is in two live batches."""
    push(store, "a")
    pending = store.keys.pending(GROUP.id)
    (entry,) = store.client.lrange(pending, 0, -1)
    running = claim(store, Trigger(1, 0))
    push(store, "b")
    store.client.lpush(pending, entry)

    assert ids_of(claim(store, Trigger(2, 0))) == ["b"]
    assert ack_all(running) == 1


@pytest.mark.parametrize("interval_ms", [0, HOUR], ids=["due", "not due"])
def test_a_long_row_of_entries_that_are_gone_is_cleared_in_steps(
    store: Store, clock: Clock, interval_ms: int
) -> None:
    """Each call of the script does a bounded part of it, and the claim goes on at once."""
    trigger = Trigger(3, interval_ms)
    push(store, "a", trigger=trigger)
    pending = store.keys.pending(GROUP.id)
    for _ in range(30):
        store.client.lpush(pending, *(f"{clock.now_ms}:-:9:gone" for _ in range(1000)))
    run, left = store.run, [store.waiting(GROUP.id)]

    def note(script: str, **values: Any) -> list[Any]:
        reply = run(script, **values)
        left.append(store.waiting(GROUP.id))
        assert bells_out(store) == (1 if reply[0] == "more" else 0)
        return reply

    store.client.hset(store.keys.resolve("bells"), GROUP.id, f"1:{clock.now_ms}:1000:0:0")
    store.run = note  # type: ignore[method-assign]
    found = try_claim(store, trigger, bell="bell")

    assert all(0 < one - other <= 5_010 for one, other in pairwise(left))
    if interval_ms:
        assert found == Idle("not_due", HOUR)
    else:
        assert isinstance(found, Lease)
        assert ids_of(found) == ["a"]


def test_a_worker_that_dies_while_it_clears_such_a_row_is_made_good(
    store: Store, clock: Clock
) -> None:
    """Its doorbell counts as out, so after a pause a sweep rings once more."""
    pending, trigger = store.keys.pending(GROUP.id), Trigger(3, 0)
    push(store, "a", trigger=trigger)
    for _ in range(11):
        store.client.lpush(pending, *(f"{clock.now_ms}:-:9:gone" for _ in range(1000)))
    run = store.run

    def die_after(script: str, **values: Any) -> list[Any]:
        assert run(script, **values)[0] == "more"
        raise KeyboardInterrupt

    store.run = die_after  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        try_claim(store, trigger, bell="bell")
    store.run = run  # type: ignore[method-assign]

    clock.advance(MIN_PAUSE_MS)
    swept = store.sweep(trigger.interval_ms)
    assert swept is not None
    assert [bells.group for bells in swept.bells] == [GROUP.id]
    assert ids_of(claim(store, trigger, bell="another")) == ["a"]


def bells_out(store: Store) -> int:
    """Returns how many doorbells are out."""
    return int(read(store).bells.get(GROUP.id, "0").partition(":")[0])


# -- Attempts, groups, races


def test_a_request_knows_what_it_went_through(store: Store) -> None:
    """Tries that ended with its retry, and runs that died."""
    push_and_claim(store, "a").release(retry("a"))
    lease = claim(store)
    store.reclaim(lease.token, GROUP.id, TRIGGER, seen_dead=True)

    (request,) = claim(store).requests
    assert (request.attempts.tries, request.attempts.crashes) == (1, 1)
    assert request.attempts.number == 3


def test_where_to_ring_is_kept_while_something_is_delayed(store: Store, clock: Clock) -> None:
    """The claim that empties the group leaves it."""
    push(store, "a", call("b", eta_ms=clock.now_ms + HOUR))
    ack_all(claim(store, force=True))

    assert store.groups() == {GROUP.id: GROUP.route}


def test_a_claim_of_one_group_leaves_the_others(store: Store) -> None:
    """Each has its own list."""
    push(store, "a")
    push(store, "b", group=OTHER)

    assert ids_of(claim(store, group=OTHER, force=True)) == ["b"]
    assert place(store, "a") == "pending"


def test_16_workers_at_once_get_different_requests(shared_url: str, namespace: str) -> None:
    """Every request is in exactly one of their batches."""
    client = redis.Redis.from_url(shared_url)
    store = Store(client, Settings(namespace=namespace), "shop.click")
    seven = Trigger(7, 0)
    ids = push_many(store, 1000, seven)

    def work(_: int) -> list[list[str]]:
        batches = []
        while isinstance(lease := store.claim(GROUP.id, seven), Lease):
            batches.append(ids_of(lease))
        return batches

    with ThreadPoolExecutor(16) as pool:
        batches = list(chain.from_iterable(pool.map(work, range(16))))
    assert sorted(chain.from_iterable(batches)) == ids
    assert max(map(len, batches)) == 7
    client.close()


def test_a_run_goes_on_while_more_waits_than_doorbells_are_out_for(store: Store) -> None:
    """The last batches are left to those that were rung already."""
    one = Trigger(1, INTERVAL_MS)
    ids = push_many(store, MAX_BELLS + 3, trigger=one)
    ack_all(claim(store, one, bell="d", token="first"))
    bells = read(store).bells[GROUP.id]

    second = claim(store, one, bell="d", token="second", follows=True)
    assert ids_of(second) == [ids[1]]
    assert store.find_token("d") == "second"
    ack_all(second)
    third = claim(store, one, bell="d", token="third", follows=True)
    ack_all(third)

    assert try_claim(store, one, bell="d", token="fourth", follows=True) == Idle("left")
    assert waiting(store) == ids[3:]
    assert (second.bells.count, third.bells.count) == (0, 0)
    assert read(store).bells[GROUP.id] == bells


def test_a_run_does_not_go_on_while_its_batch_is_open(store: Store) -> None:
    """One doorbell has one run, and that has one batch at a time."""
    one = Trigger(1, INTERVAL_MS)
    push_many(store, MAX_BELLS + 3, trigger=one)
    claim(store, one, bell="d", token="first")

    assert try_claim(store, one, bell="d", token="second", follows=True) == Idle("busy")
