"""cancel: what waits is leased to whoever revokes it; what runs is not run again."""

from __future__ import annotations

import pytest
import redis

from redis_batches.buffer import lease as lease_module
from redis_batches.buffer import store as store_module
from redis_batches.buffer.chunks import CANCEL_CHUNK, chunked
from redis_batches.buffer.index import PAGE
from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.outcomes import Found, Idle, Place
from redis_batches.core.requests import Status
from redis_batches.core.triggers import Trigger
from redis_batches.operate.revoke import Canceller
from redis_batches.testing.clock import Clock
from tests.support import raw, steps

pytestmark = pytest.mark.usefixtures("sound")

COMMON = {
    "group": steps.GROUP.id,
    "route": steps.GROUP.route,
    "trigger": steps.TRIGGER.packed,
}


def cancel(store: Store, *ids: str, token: str = "") -> Lease:
    """Cancels what waits in the group."""
    lease, _ = store.cancel(steps.GROUP.id, ids, steps.TRIGGER, token=token)
    assert lease is not None
    return lease


def find(store: Store, *ids: str) -> list[Place]:
    """Returns where a cancel, that asks for the group first, finds ids; forgets what it leased."""
    places = Canceller(store, steps.TRIGGER, steps.ack_all).cancel(ids)
    return [places[task_id] for task_id in ids]


def revoked(store: Store, task_id: str) -> bool:
    """Returns whether a request is marked."""
    return steps.read(store).attempts.get(task_id, "").split(":")[6:7] == ["1"]


# -- Where a request is


def test_what_waits_is_leased(store: Store) -> None:
    """Like a batch: nobody else can claim it, and an ack forgets it."""
    steps.push(store, "a", "b")
    lease = cancel(store, "a")

    assert steps.ids_of(lease) == ["a"]
    assert lease.requests[0].attempts.revoked
    assert steps.ids_of(steps.claim(store, force=True)) == ["b"]
    assert steps.ack_all(lease) == 1
    assert list(steps.read(store).items) == ["b"]


def test_what_is_delayed_is_leased(store: Store, clock: Clock) -> None:
    """A call with an eta and a retry; nothing is left that a sweep could promote."""
    lease = steps.push_and_claim(store, "a")
    lease.release(steps.retry("a", delay_ms=steps.HOUR))
    steps.ack_all(lease)
    steps.push(store, steps.call("b", eta_ms=clock.now_ms + steps.HOUR))
    steps.ack_all(cancel(store, "a", "b"))

    state = steps.read(store)
    assert (state.items, state.delayed, state.eta, state.stale) == ({}, {}, {}, {})
    assert state.routes == {}
    clock.advance(2 * steps.HOUR)
    swept = store.sweep(steps.TRIGGER)
    assert swept is not None
    assert swept.ready == ()


def test_what_runs_goes_on(store: Store) -> None:
    """It is marked, and its run may finish it."""
    lease = steps.push_and_claim(store, "a")

    assert find(store, "a") == [Place.IN_FLIGHT]
    assert revoked(store, "a")
    assert lease.extend()
    assert steps.ack_all(lease) == 1
    assert steps.read(store).attempts == {}


def test_a_dead_letter_stays(store: Store) -> None:
    """Its caller was told that it failed; an operator may still let it run."""
    steps.bury(store, "a")

    assert find(store, "a") == [Place.DEAD]
    assert steps.place(store, "a") == "dead"
    assert not revoked(store, "a")


def test_what_is_not_stored_is_gone(store: Store) -> None:
    """It ended, or was never called."""
    steps.ack_all(steps.push_and_claim(store, "a"))

    assert find(store, "a", "b") == [Place.GONE, Place.GONE]
    assert steps.read(store).leases == {}


def test_requests_are_found_in_whatever_group(store: Store) -> None:
    """In one go; who asks for a group is only told of those in others."""
    steps.push(store, "a")
    steps.push(store, "b", group=steps.OTHER)
    lease, found = store.cancel(steps.GROUP.id, ["b"], steps.TRIGGER)
    assert (lease, found) == (None, (Found("b", Place.ELSEWHERE, steps.OTHER.id),))

    assert find(store, "a", "b", "c") == [Place.LEASED, Place.LEASED, Place.GONE]
    assert steps.read(store).items == {}


def test_any_number_of_ids_can_be_cancelled(store: Store) -> None:
    """Some at a time."""
    ids = steps.push_many(store, 2 * CANCEL_CHUNK + 1)

    assert set(find(store, *ids, ids[0])) == {Place.LEASED}
    assert steps.read(store).items == {}
    assert store.stats()["revoked"] == len(ids)


def test_a_search_by_stamps_reads_every_request(store: Store) -> None:
    """Page by page; what has another stamp, or none, stays."""
    stamped = b'1{"stamped_headers":["tenant"],"stamps":{"tenant":"%s"}}\n[[],{}]'
    calls = [steps.call(f"{n:04}", body=stamped % (b"b", b"a")[n % 2]) for n in range(2 * PAGE)]
    steps.push(store, *calls[:PAGE])
    steps.push(store, *calls[PAGE:])
    steps.push(store, steps.call("none", body=b"1\n[[],{}]"), steps.call("broken", body=b"?"))
    canceller = Canceller(store, steps.TRIGGER, steps.ack_all)
    pages = [page for page in canceller.cancel_stamped({"tenant": "a"}) if page]

    assert len(pages) > 1
    assert {task_id for page in pages for task_id in page} == {each.id for each in calls[1::2]}
    assert len(steps.read(store).items) == PAGE + 2


# -- It stays revoked


def test_a_canceller_that_dies_does_not_undo_it(store: Store, clock: Clock) -> None:
    """Its lease ends, and whoever claims the request next sees that it was revoked."""
    steps.push(store, "a")
    lease = cancel(store, "a")
    clock.advance(steps.LEASE_MS)
    store.reclaim(lease.token, steps.GROUP.id, steps.TRIGGER)

    (request,) = steps.claim(store).requests
    assert (request.id, request.attempts.revoked) == ("a", True)


@pytest.mark.parametrize("times", [1, 2])
def test_what_comes_back_is_due_at_once(store: Store, clock: Clock, times: int) -> None:
    """Although the entries that were left behind lie further back, and are skipped in the end."""
    steps.push(store, "x", "a")
    for _ in range(times):
        lease = cancel(store, "a")
        clock.advance(steps.LEASE_MS)
        store.reclaim(lease.token, steps.GROUP.id, Trigger(3, steps.HOUR))

    assert steps.waiting(store) == ["a", "x"]
    assert steps.ids_of(steps.claim(store, Trigger(1, steps.HOUR))) == ["a"]
    assert steps.try_claim(store, Trigger(9, steps.HOUR)) == Idle(
        "not_due", steps.HOUR - times * steps.LEASE_MS
    )
    assert steps.ids_of(steps.claim(store, force=True)) == ["x"]
    assert (steps.read(store).stale, steps.read(store).lists[steps.GROUP.id]) == ({}, [])


def test_what_was_put_back_is_due_when_its_delay_is_over(store: Store, clock: Clock) -> None:
    """Nobody could tell that it was revoked for a while."""
    steps.push(store, "a")
    lease = cancel(store, "a")
    lease.release(steps.put_back("a", delay_ms=steps.SECOND))
    steps.ack_all(lease)
    assert steps.try_claim(store, force=True) == Idle("empty")
    clock.advance(steps.SECOND)
    store.promote(steps.GROUP.id, ["a"], steps.TRIGGER)

    assert steps.ids_of(steps.claim(store)) == ["a"]


def test_what_runs_is_marked_for_the_claim_after_a_crash(store: Store) -> None:
    """Celery's workers discard a redelivered message of a revoked id, too."""
    lease = steps.push_and_claim(store, "a")
    find(store, "a")
    store.reclaim(lease.token, steps.GROUP.id, steps.TRIGGER, seen_dead=True)

    (request,) = steps.claim(store).requests
    assert request.attempts.revoked


@pytest.mark.parametrize("give_back", [steps.retry, steps.retry_batch])
def test_a_retry_of_what_was_revoked_does_not_wait(store: Store, give_back: object) -> None:
    """It is only to be told so; another request of its batch waits as long as it said."""
    lease = steps.push_and_claim(store, "a", "b")
    find(store, "a")
    outcomes = give_back("a", "b")  # type: ignore[operator]
    lease.release([type(each)(each.id, each.verb, steps.HOUR) for each in outcomes])

    assert (steps.place(store, "a"), steps.place(store, "b")) == ("pending", "delayed")
    (request,) = steps.claim(store).requests
    assert request.attempts.revoked


def test_what_is_put_back_for_a_while_waits(store: Store) -> None:
    """Whoever could not tell that it was revoked tries again later."""
    steps.push(store, "a")
    lease = cancel(store, "a")
    lease.release(steps.put_back("a", delay_ms=steps.SECOND))
    steps.ack_all(lease)

    assert steps.place(store, "a") == "delayed"
    assert revoked(store, "a")


def test_a_call_from_its_own_batch_does_not_undo_it(store: Store, clock: Clock) -> None:
    """That call is its retry."""
    steps.push_and_claim(store, "a", token="held")
    find(store, "a")
    clock.advance(steps.REVOKED_WINDOW_MS)
    steps.push(store, steps.call("a", "again", eta_ms=clock.now_ms + steps.HOUR), caller="held")

    (request,) = steps.claim(store, force=True).requests
    assert request.attempts.revoked


@pytest.mark.parametrize("ended", [True, False], ids=["after", "before"])
def test_a_call_with_a_revoked_id_is_revoked(store: Store, clock: Clock, ended: bool) -> None:
    """For a while; Celery's workers remember ids, too. Its eta is not waited for."""
    if ended:
        steps.push(store, "a")
    find(store, "a")
    pushed = steps.push(store, steps.call("a", "n", eta_ms=clock.now_ms + steps.HOUR))
    assert pushed.statuses == (Status.NEW,)
    (request,) = steps.claim(store, force=True).requests
    assert request.attempts.revoked

    steps.push(store, steps.call("b", "n"))
    (request,) = steps.claim(store, force=True).requests
    assert not request.attempts.revoked


def test_an_id_is_not_remembered_for_ever(store: Store, clock: Clock) -> None:
    """After the window it is an id like any other."""
    find(store, "a")
    clock.advance(steps.REVOKED_WINDOW_MS)
    steps.push(store, steps.call("a", "n"))

    (request,) = steps.claim(store, force=True).requests
    assert not request.attempts.revoked


def test_calls_that_end_do_not_make_an_id_forgotten(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many, and for as long as Celery's workers remember it."""
    monkeypatch.setattr(lease_module, "DEDUPLICATION_CALLS", 1)
    find(store, "a")
    clock.advance(steps.WINDOW_MS)
    steps.ack_all(steps.push_and_claim(store, *"bcd"))
    clock.advance(steps.REVOKED_WINDOW_MS - steps.WINDOW_MS - 1)
    store.sweep(steps.TRIGGER)
    steps.push(store, steps.call("a", "n"))

    (request,) = steps.claim(store, force=True).requests
    assert request.attempts.revoked


def test_only_so_many_ids_are_remembered(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go first, and whatever has expired."""
    monkeypatch.setattr(store_module, "REVOKED_IDS", 3)
    remembered = []
    for task_id in "abcde":
        find(store, task_id)
        clock.advance(steps.SECOND)
        remembered.append("".join(sorted(steps.read(store).revoked)))
    assert remembered == ["a", "ab", "abc", "bcd", "cde"]

    clock.advance(steps.REVOKED_WINDOW_MS)
    for _ in range(2):
        find(store, "f")
    assert "".join(steps.read(store).revoked) == "f"
    clock.advance(steps.REVOKED_WINDOW_MS - 1)
    store.sweep(steps.TRIGGER)
    assert "".join(steps.read(store).revoked) == "f"
    clock.advance(1)
    store.sweep(steps.TRIGGER)
    assert steps.read(store).revoked == {}


def test_an_operator_may_let_it_run_all_the_same(store: Store) -> None:
    """A dead letter that is requeued has a clean record."""
    lease = steps.push_and_claim(store, "a")
    find(store, "a")
    lease.release(steps.dead("a"))
    steps.ack_all(lease)
    raw.run(store, "requeue", **COMMON, ids=["a"])

    (request,) = steps.claim(store, force=True).requests
    assert not request.attempts.revoked


def test_each_request_is_counted_once(store: Store) -> None:
    """However often, and wherever, it is revoked."""
    lease = steps.push_and_claim(store, "a")
    steps.push(store, "b")
    cancel(store, "b")
    for _ in range(3):
        find(store, "a", "b", "nobody")

    assert store.stats()["revoked"] == 2
    steps.ack_all(lease)
    assert store.ledger() == (1, 1)


# -- Calls that arrive twice, or late


def test_the_same_token_again_has_the_same_lease(store: Store) -> None:
    """Its first reply was lost."""
    steps.push(store, "a", "b")
    first = cancel(store, "a", token="mine")
    before = steps.read(store)
    second = cancel(store, "a", token="mine")

    assert second.requests == first.requests
    assert (second.fence, second.started_ms) == (first.fence, first.started_ms)
    assert steps.read(store) == before


@pytest.mark.parametrize("dies", [True, False])
def test_a_call_that_arrives_after_its_end_changes_nothing(
    store: Store, clock: Clock, dies: bool
) -> None:
    """Whether the canceller told, or its lease ended."""
    steps.push(store, "a", "b")
    lease = cancel(store, "a", token="mine")
    if dies:
        clock.advance(steps.LEASE_MS)
        store.reclaim(lease.token, steps.GROUP.id, steps.TRIGGER)
    else:
        steps.ack_all(lease)
    before = steps.read(store)

    assert store.cancel(steps.GROUP.id, ["a", "b"], steps.TRIGGER, token="mine") == (None, ())
    assert steps.read(store) == before


def test_one_of_several_cancellers_wins(store: Store) -> None:
    """The others see that the request is in somebody's hands."""
    steps.push(store, "a")
    cancel(store, "a")

    assert store.cancel(steps.GROUP.id, ["a"], steps.TRIGGER) == (
        None,
        (Found("a", Place.IN_FLIGHT, steps.GROUP.id),),
    )


# -- What it leaves behind in the pending list


def test_a_claim_skips_what_was_cancelled(store: Store) -> None:
    """It is no part of a batch, makes none full, and goes at the first claim."""
    steps.push(store, "a", "b", "c", "d")
    steps.ack_all(cancel(store, "b"))

    assert steps.ids_of(steps.claim(store)) == ["a", "c", "d"]
    assert (steps.read(store).stale, steps.waiting(store)) == ({}, [])


def test_a_claim_passes_any_number_of_cancelled_requests(store: Store) -> None:
    """One call of its script clears only so many; what is behind does not wait for sweeps."""
    ids = steps.push_many(store, 12_000)
    for chunk in chunked(ids, CANCEL_CHUNK):
        steps.ack_all(cancel(store, *chunk))
    steps.push(store, "a")

    assert steps.ids_of(steps.claim(store, Trigger(3, 0), bell="bell")) == ["a"]
    assert (steps.read(store).stale, steps.waiting(store)) == ({}, [])


def test_what_is_left_wakes_a_worker_once(store: Store) -> None:
    """Then the group is as if it had never been."""
    steps.push(store, *"abc")
    steps.ack_all(cancel(store, "a", "b", "c"))

    assert steps.try_claim(store, bell="bell") == Idle("empty")
    state = steps.read(store)
    assert (state.lists[steps.GROUP.id], state.groups, state.bells, state.stale) == ([], {}, {}, {})
    assert store.sweep(steps.TRIGGER).bells == ()  # type: ignore[union-attr]


def test_what_is_left_makes_no_batch_full(store: Store) -> None:
    """The others wait for their time."""
    steps.push(store, "a", "b")
    steps.ack_all(cancel(store, "a"))
    steps.push(store, "c")

    assert steps.try_claim(store, bell="bell") == Idle("not_due", steps.INTERVAL_MS)
    assert [entry.id for entry in steps.read(store).lists[steps.GROUP.id]] == ["b", "c"]


def test_an_id_that_waits_again_is_not_taken_for_what_is_left(store: Store, clock: Clock) -> None:
    """Its old entry would let it run before its time, or in a place that is not its own."""
    steps.push(store, "x", "a", "b")
    steps.ack_all(cancel(store, "a"))
    clock.advance(steps.REVOKED_WINDOW_MS)
    steps.push(store, steps.call("a", "n", eta_ms=clock.now_ms + steps.HOUR))

    assert steps.ids_of(steps.claim(store)) == ["x", "b"]
    assert steps.try_claim(store, force=True) == Idle("empty")
    assert steps.place(store, "a") == "eta"


def test_an_id_that_waits_again_is_claimed_in_its_place(store: Store, clock: Clock) -> None:
    """Behind those that came between."""
    steps.push(store, "a", "b")
    for nonce in ("n", "m"):
        steps.ack_all(cancel(store, "a"))
        clock.advance(steps.REVOKED_WINDOW_MS)
        steps.push(store, steps.call("a", nonce))
    assert steps.read(store).stale == {f"{steps.GROUP.id}:a": "ss"}

    lease = steps.claim(store, Trigger(1, 0))
    assert steps.ids_of(lease) == ["b"]
    assert steps.ids_of(steps.claim(store, Trigger(1, 0))) == ["a"]


def test_repair_forgets_what_is_left_of_a_list_that_was_deleted(
    client: redis.Redis, store: Store, clock: Clock
) -> None:
    """Else it would skip a request for it."""
    steps.push(store, "a", "b")
    steps.ack_all(cancel(store, "a"))
    clock.advance(steps.REVOKED_WINDOW_MS)
    steps.push(store, steps.call("a", "n"))
    client.delete(raw.key(store, "pending", steps.GROUP.id))
    raw.run(store, "repair", **COMMON, noted=0, counted=0, lost=[":a", ":b"])

    assert steps.ids_of(steps.claim(store, force=True)) == ["a", "b"]
