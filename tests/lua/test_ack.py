"""ack: what is finished goes, and is remembered for a while."""

from __future__ import annotations

import pytest

from redis_batches.buffer import lease as lease_module
from redis_batches.buffer.store import Store
from redis_batches.core.errors import LeaseLost
from redis_batches.core.model import Status, Trigger
from tests.support.clock import Clock
from tests.support.steps import (
    GROUP,
    HOUR,
    LEASE_MS,
    SECOND,
    TRIGGER,
    WINDOW_MS,
    ack_all,
    call,
    claim,
    ids_of,
    place,
    push,
    push_and_claim,
    push_many,
    put_back,
    read,
    retry,
    waiting,
)

pytestmark = pytest.mark.usefixtures("sound")


@pytest.mark.usefixtures("stray_keys")
def test_the_end_of_a_batch_forgets_all_of_it(store: Store) -> None:
    """It says how many."""
    assert ack_all(push_and_claim(store, *"abc")) == 3
    assert store.stats() == {
        "waiting": 0,
        "running": 0,
        "delayed": 0,
        "dead": 0,
        "pushed": 3,
        "acked": 3,
        "claimed": 1,
        "reclaimed": 0,
        "dropped": 0,
        "revoked": 0,
        "put_backs": 0,
        "postponed": 0,
    }


def test_a_part_of_a_batch_is_finished_before_the_rest(store: Store) -> None:
    """The batch goes on with the rest."""
    lease = push_and_claim(store, *"abc")

    assert lease.ack(["c", "a"]) == 2
    assert list(read(store).items) == ["b"]
    assert lease.extend()
    assert ack_all(lease) == 1


def test_what_is_finished_does_not_run_again_after_a_crash(store: Store) -> None:
    """Only the rest of the batch comes back."""
    lease = push_and_claim(store, *"abc")
    lease.ack(["b"])
    store.reclaim(lease.token, GROUP.id, TRIGGER, seen_dead=True)

    assert waiting(store) == ["a", "c"]


def test_a_part_that_is_acked_again_changes_nothing(store: Store) -> None:
    """A reply was lost."""
    lease = push_and_claim(store, *"abc")
    lease.ack(["a"])
    before = read(store)

    assert lease.ack(["a"]) == 0
    assert read(store) == before


def test_a_batch_that_is_acked_again_changes_nothing(store: Store) -> None:
    """A reply was lost: that is no error, as the batch had ended by itself."""
    lease = push_and_claim(store, *"abc")
    ack_all(lease)
    before = read(store)

    assert ack_all(lease) == 0
    assert not lease.lost
    assert read(store) == before


def test_an_ack_after_another_worker_took_over_changes_nothing(store: Store, clock: Clock) -> None:
    """The worker slept past its lease: it is told."""
    lease = push_and_claim(store, *"abc")
    clock.advance(LEASE_MS)
    store.reclaim(lease.token, GROUP.id, TRIGGER)
    claim(store)
    before = read(store)

    with pytest.raises(LeaseLost, match=r"shop\.click"):
        ack_all(lease)
    with pytest.raises(LeaseLost):
        lease.ack(["a"])
    assert lease.lost
    assert read(store) == before


def test_a_worker_that_nobody_missed_may_still_ack(store: Store, clock: Clock) -> None:
    """It slept past its lease, and woke before any sweep."""
    lease = push_and_claim(store, *"abc")
    clock.advance(LEASE_MS + 1)

    assert ack_all(lease) == 3


def test_requests_of_others_are_left_alone(store: Store) -> None:
    """Whatever ids are named."""
    push(store, *"abcdef")
    mine, theirs = claim(store), claim(store)

    assert mine.ack(["a", "d", "nobody"]) == 1
    assert ack_all(theirs) == 3


def test_what_was_given_back_is_left_alone(store: Store) -> None:
    """It is not the batch's any more."""
    lease = push_and_claim(store, *"abc")
    lease.release(retry("b"))

    assert ack_all(lease) == 2
    assert waiting(store) == ["b"]


def test_a_request_that_its_batch_called_again_is_left_alone(store: Store) -> None:
    """Its retry waits."""
    lease = push_and_claim(store, *"abc")
    push(store, call("b", "again"), caller=lease.token)

    assert lease.ack(["a", "b"]) == 1
    assert ack_all(lease) == 1
    assert place(store, "b") == "pending"


def test_the_record_of_a_request_goes_with_it(store: Store) -> None:
    """Its attempts and its last error."""
    push_and_claim(store, "a").release(retry("a", error="ValueError()"))
    assert {**read(store).attempts, **read(store).errors}
    ack_all(claim(store))

    assert not {**read(store).attempts, **read(store).errors}


def test_a_batch_of_thousands_is_acked_by_its_ids(store: Store) -> None:
    """In chunks."""
    ids = [str(number) for number in range(2100)]
    for first in range(0, 2100, 500):
        push(store, *ids[first : first + 500])
    lease = claim(store, Trigger(10_000, 0))

    assert lease.ack(ids_of(lease)) == 2100


def test_what_nobody_decided_is_left_to_the_lease(store: Store, clock: Clock) -> None:
    """Only what is named is forgotten: a release may have been lost with the tail of a failover."""
    lease = push_and_claim(store, *"abc")

    assert lease.ack(["a", "c"], ends=True) == 2
    assert place(store, "b") == "owned"
    clock.advance(LEASE_MS)
    store.reclaim(lease.token, GROUP.id, TRIGGER)
    assert waiting(store) == ["b"]


@pytest.mark.parametrize("left", [0, 1])
def test_a_batch_of_thousands_ends_in_steps(store: Store, left: int) -> None:
    """What it gave back stays, and so does its lease while anything of it is owned."""
    large = Trigger(10_000, 0)
    ids = push_many(store, 5000, large)
    lease = claim(store, large)
    lease.release(put_back(*ids[: 4000 - left]))

    assert lease.ack(ids[4000:], ends=True) == 1000
    assert lease.ack(ids[4000:], ends=True) == 0
    assert bool(read(store).claims) == bool(left)
    assert len(read(store).items) == 4000


def test_an_id_that_is_named_twice_ends_no_batch(store: Store) -> None:
    """It is counted once, so that another one is not taken to be settled."""
    lease = push_and_claim(store, "a", "b")

    assert lease.ack(["a", "a"], ends=True) == 1
    assert place(store, "b") == "owned"


def test_a_claim_that_was_held_up_for_hours_does_not_let_its_old_run_settle(
    store: Store, clock: Clock
) -> None:
    """Its token is forgotten by then; what it claims has not run."""
    zombie = push_and_claim(store, "a", token="token")
    store.reclaim(zombie.token, GROUP.id, TRIGGER, seen_dead=True)
    ack_all(claim(store))
    clock.advance(HOUR)
    store.sweep(TRIGGER.interval_ms)
    push_and_claim(store, "b", token="token")
    before = read(store)

    with pytest.raises(LeaseLost):
        ack_all(zombie)
    with pytest.raises(LeaseLost):
        zombie.release(retry("b"))
    assert not zombie.extend()
    assert zombie.lost
    assert read(store) == before


# -- The memory of finished calls


def test_finished_calls_are_forgotten_after_the_window(store: Store, clock: Clock) -> None:
    """Each ack takes away more of them than it adds."""
    for task_id in "abc":
        push_and_claim(store, task_id).ack(["a", "b", "c"])
    clock.advance(WINDOW_MS)
    push_and_claim(store, *"de").ack(["d", "e"])

    assert set(read(store).done) == {"d", "e"}
    assert push(store, "a").statuses == (Status.NEW,)


def test_only_so_many_finished_calls_are_remembered(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go first."""
    monkeypatch.setattr(lease_module, "DEDUPLICATION_CALLS", 3)
    remembered = []
    for task_id in "abcde":
        push_and_claim(store, task_id).ack([task_id])
        clock.advance(SECOND)
        remembered.append("".join(sorted(read(store).done)))

    assert remembered == ["a", "ab", "abc", "bcd", "cde"]


def test_an_ack_of_nothing_forgets_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many calls are remembered."""
    lease = push_and_claim(store, *"abc")
    lease.ack(["a", "b"])
    monkeypatch.setattr(lease_module, "DEDUPLICATION_CALLS", 1)
    lease.ack(["a"])

    assert set(read(store).done) == {"a", "b"}


def test_the_end_of_a_batch_is_remembered_after_the_clock_went_back(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ack that is sent again, because its reply was lost, is told so, not that it came late."""
    monkeypatch.setattr(lease_module, "DEDUPLICATION_CALLS", 2)
    for task_id in "ab":
        ack_all(push_and_claim(store, task_id))
    lease = push_and_claim(store, "c")
    clock.advance(-HOUR)
    ack_all(lease)
    ack_all(lease)

    assert not lease.lost
    assert "c" in read(store).done
