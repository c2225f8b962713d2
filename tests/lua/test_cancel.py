"""cancel: what waits is leased to whoever revokes it; what runs is not run again."""

from __future__ import annotations

import pytest
import redis

from redis_batches.buffer import lease as lease_module
from redis_batches.buffer import store as store_module
from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.model import Found, Idle, Place, Status, Trigger
from redis_batches.driver.scripts import CANCEL_CHUNK, chunked
from redis_batches.operate.canceller import PAGE, Canceller
from tests.support.clock import Clock
from tests.support.steps import (
    GROUP,
    HOUR,
    INTERVAL_MS,
    LEASE_MS,
    OTHER,
    REVOKED_WINDOW_MS,
    SECOND,
    TRIGGER,
    WINDOW_MS,
    ack_all,
    bury,
    call,
    claim,
    dead,
    ids_of,
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

COMMON = {"group": GROUP.id, "route": GROUP.route, "flush_every": 3, "interval_ms": INTERVAL_MS}


def cancel(store: Store, *ids: str, token: str = "") -> Lease:
    """Cancels what waits in the group."""
    lease, _ = store.cancel(GROUP.id, ids, TRIGGER, token=token)
    assert lease is not None
    return lease


def find(store: Store, *ids: str) -> list[Place]:
    """Returns where a cancel, that asks for the group first, finds ids; forgets what it leased."""
    places = Canceller(store, TRIGGER, ack_all).cancel(ids)
    return [places[task_id] for task_id in ids]


def revoked(store: Store, task_id: str) -> bool:
    """Returns whether a request is marked."""
    return read(store).attempts.get(task_id, "").split(":")[6:7] == ["1"]


# -- Where a request is


def test_what_waits_is_leased(store: Store) -> None:
    """Like a batch: nobody else can claim it, and an ack forgets it."""
    push(store, "a", "b")
    lease = cancel(store, "a")

    assert ids_of(lease) == ["a"]
    assert lease.requests[0].attempts.revoked
    assert ids_of(claim(store, force=True)) == ["b"]
    assert ack_all(lease) == 1
    assert list(read(store).items) == ["b"]


def test_what_is_delayed_is_leased(store: Store, clock: Clock) -> None:
    """A call with an eta and a retry; nothing is left that a sweep could promote."""
    lease = push_and_claim(store, "a")
    lease.release(retry("a", delay_ms=HOUR))
    ack_all(lease)
    push(store, call("b", eta_ms=clock.now_ms + HOUR))
    ack_all(cancel(store, "a", "b"))

    state = read(store)
    assert (state.items, state.delayed, state.eta, state.stale) == ({}, {}, {}, {})
    assert state.routes == {}
    clock.advance(2 * HOUR)
    swept = store.sweep(INTERVAL_MS)
    assert swept is not None
    assert swept.ready == ()


def test_what_runs_goes_on(store: Store) -> None:
    """It is marked, and its run may finish it."""
    lease = push_and_claim(store, "a")

    assert find(store, "a") == [Place.IN_FLIGHT]
    assert revoked(store, "a")
    assert lease.extend()
    assert ack_all(lease) == 1
    assert read(store).attempts == {}


def test_a_dead_letter_stays(store: Store) -> None:
    """Its caller was told that it failed; an operator may still let it run."""
    bury(store, "a")

    assert find(store, "a") == [Place.DEAD]
    assert place(store, "a") == "dead"
    assert not revoked(store, "a")


def test_what_is_not_stored_is_gone(store: Store) -> None:
    """It ended, or was never called."""
    ack_all(push_and_claim(store, "a"))

    assert find(store, "a", "b") == [Place.GONE, Place.GONE]
    assert read(store).leases == {}


def test_requests_are_found_in_whatever_group(store: Store) -> None:
    """In one go; who asks for a group is only told of those in others."""
    push(store, "a")
    push(store, "b", group=OTHER)
    lease, found = store.cancel(GROUP.id, ["b"], TRIGGER)
    assert (lease, found) == (None, (Found("b", Place.ELSEWHERE, OTHER.id),))

    assert find(store, "a", "b", "c") == [Place.LEASED, Place.LEASED, Place.GONE]
    assert read(store).items == {}


def test_any_number_of_ids_can_be_cancelled(store: Store) -> None:
    """Some at a time."""
    ids = push_many(store, 2 * CANCEL_CHUNK + 1)

    assert set(find(store, *ids, ids[0])) == {Place.LEASED}
    assert read(store).items == {}
    assert store.stats()["revoked"] == len(ids)


def test_a_search_by_stamps_reads_every_request(store: Store) -> None:
    """Page by page; what has another stamp, or none, stays."""
    stamped = b'1{"stamped_headers":["tenant"],"stamps":{"tenant":"%s"}}\n[[],{}]'
    calls = [call(f"{n:04}", body=stamped % (b"b", b"a")[n % 2]) for n in range(2 * PAGE)]
    push(store, *calls[:PAGE])
    push(store, *calls[PAGE:])
    push(store, call("none", body=b"1\n[[],{}]"), call("broken", body=b"?"))
    canceller = Canceller(store, TRIGGER, ack_all)
    pages = [page for page in canceller.cancel_stamped({"tenant": "a"}) if page]

    assert len(pages) > 1
    assert {task_id for page in pages for task_id in page} == {each.id for each in calls[1::2]}
    assert len(read(store).items) == PAGE + 2


# -- It stays revoked


def test_a_canceller_that_dies_does_not_undo_it(store: Store, clock: Clock) -> None:
    """Its lease ends, and whoever claims the request next sees that it was revoked."""
    push(store, "a")
    lease = cancel(store, "a")
    clock.advance(LEASE_MS)
    store.reclaim(lease.token, GROUP.id, TRIGGER)

    (request,) = claim(store).requests
    assert (request.id, request.attempts.revoked) == ("a", True)


@pytest.mark.parametrize("times", [1, 2])
def test_what_comes_back_is_due_at_once(store: Store, clock: Clock, times: int) -> None:
    """Although the entries that were left behind lie further back, and are skipped in the end."""
    push(store, "x", "a")
    for _ in range(times):
        lease = cancel(store, "a")
        clock.advance(LEASE_MS)
        store.reclaim(lease.token, GROUP.id, Trigger(3, HOUR))

    assert waiting(store) == ["a", "x"]
    assert ids_of(claim(store, Trigger(1, HOUR))) == ["a"]
    assert try_claim(store, Trigger(9, HOUR)) == Idle("not_due", HOUR - times * LEASE_MS)
    assert ids_of(claim(store, force=True)) == ["x"]
    assert (read(store).stale, read(store).lists[GROUP.id]) == ({}, [])


def test_what_was_put_back_is_due_when_its_delay_is_over(store: Store, clock: Clock) -> None:
    """Nobody could tell that it was revoked for a while."""
    push(store, "a")
    lease = cancel(store, "a")
    lease.release(put_back("a", delay_ms=SECOND))
    ack_all(lease)
    assert try_claim(store, force=True) == Idle("empty")
    clock.advance(SECOND)
    store.promote(GROUP.id, ["a"], TRIGGER)

    assert ids_of(claim(store)) == ["a"]


def test_what_runs_is_marked_for_the_claim_after_a_crash(store: Store) -> None:
    """Celery's workers discard a redelivered message of a revoked id, too."""
    lease = push_and_claim(store, "a")
    find(store, "a")
    store.reclaim(lease.token, GROUP.id, TRIGGER, seen_dead=True)

    (request,) = claim(store).requests
    assert request.attempts.revoked


@pytest.mark.parametrize("give_back", [retry, retry_batch])
def test_a_retry_of_what_was_revoked_does_not_wait(store: Store, give_back: object) -> None:
    """It is only to be told so; another request of its batch waits as long as it said."""
    lease = push_and_claim(store, "a", "b")
    find(store, "a")
    outcomes = give_back("a", "b")  # type: ignore[operator]
    lease.release([type(each)(each.id, each.verb, HOUR) for each in outcomes])

    assert (place(store, "a"), place(store, "b")) == ("pending", "delayed")
    (request,) = claim(store).requests
    assert request.attempts.revoked


def test_what_is_put_back_for_a_while_waits(store: Store) -> None:
    """Whoever could not tell that it was revoked tries again later."""
    push(store, "a")
    lease = cancel(store, "a")
    lease.release(put_back("a", delay_ms=SECOND))
    ack_all(lease)

    assert place(store, "a") == "delayed"
    assert revoked(store, "a")


def test_a_call_from_its_own_batch_does_not_undo_it(store: Store, clock: Clock) -> None:
    """That call is its retry."""
    push_and_claim(store, "a", token="held")
    find(store, "a")
    clock.advance(REVOKED_WINDOW_MS)
    push(store, call("a", "again", eta_ms=clock.now_ms + HOUR), caller="held")

    (request,) = claim(store, force=True).requests
    assert request.attempts.revoked


@pytest.mark.parametrize("ended", [True, False], ids=["after", "before"])
def test_a_call_with_a_revoked_id_is_revoked(store: Store, clock: Clock, ended: bool) -> None:
    """For a while; Celery's workers remember ids, too. Its eta is not waited for."""
    if ended:
        push(store, "a")
    find(store, "a")
    pushed = push(store, call("a", "n", eta_ms=clock.now_ms + HOUR))
    assert pushed.statuses == (Status.NEW,)
    (request,) = claim(store, force=True).requests
    assert request.attempts.revoked

    push(store, call("b", "n"))
    (request,) = claim(store, force=True).requests
    assert not request.attempts.revoked


def test_an_id_is_not_remembered_for_ever(store: Store, clock: Clock) -> None:
    """After the window it is an id like any other."""
    find(store, "a")
    clock.advance(REVOKED_WINDOW_MS)
    push(store, call("a", "n"))

    (request,) = claim(store, force=True).requests
    assert not request.attempts.revoked


def test_calls_that_end_do_not_make_an_id_forgotten(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many, and for as long as Celery's workers remember it."""
    monkeypatch.setattr(lease_module, "DEDUPLICATION_CALLS", 1)
    find(store, "a")
    clock.advance(WINDOW_MS)
    ack_all(push_and_claim(store, *"bcd"))
    clock.advance(REVOKED_WINDOW_MS - WINDOW_MS - 1)
    store.sweep(INTERVAL_MS)
    push(store, call("a", "n"))

    (request,) = claim(store, force=True).requests
    assert request.attempts.revoked


def test_only_so_many_ids_are_remembered(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go first, and whatever has expired."""
    monkeypatch.setattr(store_module, "REVOKED_IDS", 3)
    remembered = []
    for task_id in "abcde":
        find(store, task_id)
        clock.advance(SECOND)
        remembered.append("".join(sorted(read(store).revoked)))
    assert remembered == ["a", "ab", "abc", "bcd", "cde"]

    clock.advance(REVOKED_WINDOW_MS)
    for _ in range(2):
        find(store, "f")
    assert "".join(read(store).revoked) == "f"
    clock.advance(REVOKED_WINDOW_MS - 1)
    store.sweep(INTERVAL_MS)
    assert "".join(read(store).revoked) == "f"
    clock.advance(1)
    store.sweep(INTERVAL_MS)
    assert read(store).revoked == {}


def test_an_operator_may_let_it_run_all_the_same(store: Store) -> None:
    """A dead letter that is requeued has a clean record."""
    lease = push_and_claim(store, "a")
    find(store, "a")
    lease.release(dead("a"))
    ack_all(lease)
    store.run("requeue", **COMMON, ids=["a"])

    (request,) = claim(store, force=True).requests
    assert not request.attempts.revoked


def test_each_request_is_counted_once(store: Store) -> None:
    """However often, and wherever, it is revoked."""
    lease = push_and_claim(store, "a")
    push(store, "b")
    cancel(store, "b")
    for _ in range(3):
        find(store, "a", "b", "nobody")

    assert store.stats()["revoked"] == 2
    ack_all(lease)
    assert store.ledger() == (1, 1)


# -- Calls that arrive twice, or late


def test_the_same_token_again_has_the_same_lease(store: Store) -> None:
    """Its first reply was lost."""
    push(store, "a", "b")
    first = cancel(store, "a", token="mine")
    before = read(store)
    second = cancel(store, "a", token="mine")

    assert second.requests == first.requests
    assert (second.fence, second.started_ms) == (first.fence, first.started_ms)
    assert read(store) == before


@pytest.mark.parametrize("dies", [True, False])
def test_a_call_that_arrives_after_its_end_changes_nothing(
    store: Store, clock: Clock, dies: bool
) -> None:
    """Whether the canceller told, or its lease ended."""
    push(store, "a", "b")
    lease = cancel(store, "a", token="mine")
    if dies:
        clock.advance(LEASE_MS)
        store.reclaim(lease.token, GROUP.id, TRIGGER)
    else:
        ack_all(lease)
    before = read(store)

    assert store.cancel(GROUP.id, ["a", "b"], TRIGGER, token="mine") == (None, ())
    assert read(store) == before


def test_one_of_several_cancellers_wins(store: Store) -> None:
    """The others see that the request is in somebody's hands."""
    push(store, "a")
    cancel(store, "a")

    assert store.cancel(GROUP.id, ["a"], TRIGGER) == (
        None,
        (Found("a", Place.IN_FLIGHT, GROUP.id),),
    )


# -- What it leaves behind in the pending list


def test_a_claim_skips_what_was_cancelled(store: Store) -> None:
    """It is no part of a batch, makes none full, and goes at the first claim."""
    push(store, "a", "b", "c", "d")
    ack_all(cancel(store, "b"))

    assert ids_of(claim(store)) == ["a", "c", "d"]
    assert (read(store).stale, waiting(store)) == ({}, [])


def test_a_claim_passes_any_number_of_cancelled_requests(store: Store) -> None:
    """One call of its script clears only so many; what is behind does not wait for sweeps."""
    ids = push_many(store, 12_000)
    for chunk in chunked(ids, CANCEL_CHUNK):
        ack_all(cancel(store, *chunk))
    push(store, "a")

    assert ids_of(claim(store, Trigger(3, 0), bell="bell")) == ["a"]
    assert (read(store).stale, waiting(store)) == ({}, [])


def test_what_is_left_wakes_a_worker_once(store: Store) -> None:
    """Then the group is as if it had never been."""
    push(store, *"abc")
    ack_all(cancel(store, "a", "b", "c"))

    assert try_claim(store, bell="bell") == Idle("empty")
    state = read(store)
    assert (state.lists[GROUP.id], state.groups, state.bells, state.stale) == ([], {}, {}, {})
    assert store.sweep(INTERVAL_MS).bells == ()  # type: ignore[union-attr]


def test_what_is_left_makes_no_batch_full(store: Store) -> None:
    """The others wait for their time."""
    push(store, "a", "b")
    ack_all(cancel(store, "a"))
    push(store, "c")

    assert try_claim(store, bell="bell") == Idle("not_due", INTERVAL_MS)
    assert [entry.id for entry in read(store).lists[GROUP.id]] == ["b", "c"]


def test_an_id_that_waits_again_is_not_taken_for_what_is_left(store: Store, clock: Clock) -> None:
    """Its old entry would let it run before its time, or in a place that is not its own."""
    push(store, "x", "a", "b")
    ack_all(cancel(store, "a"))
    clock.advance(REVOKED_WINDOW_MS)
    push(store, call("a", "n", eta_ms=clock.now_ms + HOUR))

    assert ids_of(claim(store)) == ["x", "b"]
    assert try_claim(store, force=True) == Idle("empty")
    assert place(store, "a") == "eta"


def test_an_id_that_waits_again_is_claimed_in_its_place(store: Store, clock: Clock) -> None:
    """Behind those that came between."""
    push(store, "a", "b")
    for nonce in ("n", "m"):
        ack_all(cancel(store, "a"))
        clock.advance(REVOKED_WINDOW_MS)
        push(store, call("a", nonce))
    assert read(store).stale == {f"{GROUP.id}:a": "ss"}

    lease = claim(store, Trigger(1, 0))
    assert ids_of(lease) == ["b"]
    assert ids_of(claim(store, Trigger(1, 0))) == ["a"]


def test_repair_forgets_what_is_left_of_a_list_that_was_deleted(
    client: redis.Redis, store: Store, clock: Clock
) -> None:
    """Else it would skip a request for it."""
    push(store, "a", "b")
    ack_all(cancel(store, "a"))
    clock.advance(REVOKED_WINDOW_MS)
    push(store, call("a", "n"))
    client.delete(store.keys.pending(GROUP.id))
    store.run("repair", **COMMON, noted=0, counted=0, lost=[":a", ":b"])

    assert ids_of(claim(store, force=True)) == ["a", "b"]
