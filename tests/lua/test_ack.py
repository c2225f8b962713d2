"""ack: what is finished goes, and is remembered for a while."""

from __future__ import annotations

import pytest

from redis_batches.buffer import lease as lease_module
from redis_batches.buffer.store import Store
from redis_batches.core.errors import LeaseLost
from redis_batches.core.requests import Status
from redis_batches.core.triggers import Trigger
from redis_batches.testing.clock import Clock
from tests.support import steps

pytestmark = pytest.mark.usefixtures("sound")


@pytest.mark.usefixtures("stray_keys")
def test_the_end_of_a_batch_forgets_all_of_it(store: Store) -> None:
    """It says how many."""
    assert steps.ack_all(steps.push_and_claim(store, *"abc")) == 3
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
    lease = steps.push_and_claim(store, *"abc")

    assert lease.ack(["c", "a"]) == 2
    assert list(steps.read(store).items) == ["b"]
    assert lease.extend()
    assert steps.ack_all(lease) == 1


def test_what_is_finished_does_not_run_again_after_a_crash(store: Store) -> None:
    """Only the rest of the batch comes back."""
    lease = steps.push_and_claim(store, *"abc")
    lease.ack(["b"])
    store.reclaim(lease.token, steps.GROUP.id, steps.TRIGGER, seen_dead=True)

    assert steps.waiting(store) == ["a", "c"]


def test_a_part_that_is_acked_again_changes_nothing(store: Store) -> None:
    """A reply was lost."""
    lease = steps.push_and_claim(store, *"abc")
    lease.ack(["a"])
    before = steps.read(store)

    assert lease.ack(["a"]) == 0
    assert steps.read(store) == before


def test_a_batch_that_is_acked_again_changes_nothing(store: Store) -> None:
    """A reply was lost: that is no error, as the batch had ended by itself."""
    lease = steps.push_and_claim(store, *"abc")
    steps.ack_all(lease)
    before = steps.read(store)

    assert steps.ack_all(lease) == 0
    assert not lease.lost
    assert steps.read(store) == before


def test_an_ack_after_another_worker_took_over_changes_nothing(store: Store, clock: Clock) -> None:
    """The worker slept past its lease: it is told."""
    lease = steps.push_and_claim(store, *"abc")
    clock.advance(steps.LEASE_MS)
    store.reclaim(lease.token, steps.GROUP.id, steps.TRIGGER)
    steps.claim(store)
    before = steps.read(store)

    with pytest.raises(LeaseLost, match=r"shop\.click"):
        steps.ack_all(lease)
    with pytest.raises(LeaseLost):
        lease.ack(["a"])
    assert lease.lost
    assert steps.read(store) == before


def test_a_worker_that_nobody_missed_may_still_ack(store: Store, clock: Clock) -> None:
    """It slept past its lease, and woke before any sweep."""
    lease = steps.push_and_claim(store, *"abc")
    clock.advance(steps.LEASE_MS + 1)

    assert steps.ack_all(lease) == 3


def test_requests_of_others_are_left_alone(store: Store) -> None:
    """Whatever ids are named."""
    steps.push(store, *"abcdef")
    mine, theirs = steps.claim(store), steps.claim(store)

    assert mine.ack(["a", "d", "nobody"]) == 1
    assert steps.ack_all(theirs) == 3


def test_what_was_given_back_is_left_alone(store: Store) -> None:
    """It is not the batch's any more."""
    lease = steps.push_and_claim(store, *"abc")
    lease.release(steps.retry("b"))

    assert steps.ack_all(lease) == 2
    assert steps.waiting(store) == ["b"]


def test_a_request_that_its_batch_called_again_is_left_alone(store: Store) -> None:
    """Its retry waits."""
    lease = steps.push_and_claim(store, *"abc")
    steps.push(store, steps.call("b", "again"), caller=lease.token)

    assert lease.ack(["a", "b"]) == 1
    assert steps.ack_all(lease) == 1
    assert steps.place(store, "b") == "pending"


def test_the_record_of_a_request_goes_with_it(store: Store) -> None:
    """Its attempts and its last error."""
    steps.push_and_claim(store, "a").release(steps.retry("a", error="ValueError()"))
    assert {**steps.read(store).attempts, **steps.read(store).errors}
    steps.ack_all(steps.claim(store))

    assert not {**steps.read(store).attempts, **steps.read(store).errors}


def test_a_batch_of_thousands_is_acked_by_its_ids(store: Store) -> None:
    """In chunks."""
    ids = [str(number) for number in range(2100)]
    for first in range(0, 2100, 500):
        steps.push(store, *ids[first : first + 500])
    lease = steps.claim(store, Trigger(10_000, 0))

    assert lease.ack(steps.ids_of(lease)) == 2100


def test_what_nobody_decided_is_left_to_the_lease(store: Store, clock: Clock) -> None:
    """Only what is named is forgotten: a release may have been lost with the tail of a failover."""
    lease = steps.push_and_claim(store, *"abc")

    assert lease.ack(["a", "c"], ends=True) == 2
    assert steps.place(store, "b") == "owned"
    clock.advance(steps.LEASE_MS)
    store.reclaim(lease.token, steps.GROUP.id, steps.TRIGGER)
    assert steps.waiting(store) == ["b"]


@pytest.mark.parametrize("left", [0, 1])
def test_a_batch_of_thousands_ends_in_steps(store: Store, left: int) -> None:
    """What it gave back stays, and so does its lease while anything of it is owned."""
    large = Trigger(10_000, 0)
    ids = steps.push_many(store, 5000, large)
    lease = steps.claim(store, large)
    lease.release(steps.put_back(*ids[: 4000 - left]))

    assert lease.ack(ids[4000:], ends=True) == 1000
    assert lease.ack(ids[4000:], ends=True) == 0
    assert bool(steps.read(store).claims) == bool(left)
    assert len(steps.read(store).items) == 4000


def test_an_id_that_is_named_twice_ends_no_batch(store: Store) -> None:
    """It is counted once, so that another one is not taken to be settled."""
    lease = steps.push_and_claim(store, "a", "b")

    assert lease.ack(["a", "a"], ends=True) == 1
    assert steps.place(store, "b") == "owned"


def test_a_claim_that_was_held_up_for_hours_does_not_let_its_old_run_settle(
    store: Store, clock: Clock
) -> None:
    """Its token is forgotten by then; what it claims has not run."""
    zombie = steps.push_and_claim(store, "a", token="token")
    store.reclaim(zombie.token, steps.GROUP.id, steps.TRIGGER, seen_dead=True)
    steps.ack_all(steps.claim(store))
    clock.advance(steps.HOUR)
    store.sweep(steps.TRIGGER)
    steps.push_and_claim(store, "b", token="token")
    before = steps.read(store)

    with pytest.raises(LeaseLost):
        steps.ack_all(zombie)
    with pytest.raises(LeaseLost):
        zombie.release(steps.retry("b"))
    assert not zombie.extend()
    assert zombie.lost
    assert steps.read(store) == before


# -- The memory of finished calls


def test_finished_calls_are_forgotten_after_the_window(store: Store, clock: Clock) -> None:
    """Each ack takes away more of them than it adds."""
    for task_id in "abc":
        steps.push_and_claim(store, task_id).ack(["a", "b", "c"])
    clock.advance(steps.WINDOW_MS)
    steps.push_and_claim(store, *"de").ack(["d", "e"])

    assert set(steps.read(store).done) == {"d", "e"}
    assert steps.push(store, "a").statuses == (Status.NEW,)


def test_only_so_many_finished_calls_are_remembered(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go first."""
    monkeypatch.setattr(lease_module, "DEDUPLICATION_CALLS", 3)
    remembered = []
    for task_id in "abcde":
        steps.push_and_claim(store, task_id).ack([task_id])
        clock.advance(steps.SECOND)
        remembered.append("".join(sorted(steps.read(store).done)))

    assert remembered == ["a", "ab", "abc", "bcd", "cde"]


def test_an_ack_of_nothing_forgets_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many calls are remembered."""
    lease = steps.push_and_claim(store, *"abc")
    lease.ack(["a", "b"])
    monkeypatch.setattr(lease_module, "DEDUPLICATION_CALLS", 1)
    lease.ack(["a"])

    assert set(steps.read(store).done) == {"a", "b"}


def test_the_end_of_a_batch_is_remembered_after_the_clock_went_back(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ack that is sent again, because its reply was lost, is told so, not that it came late."""
    monkeypatch.setattr(lease_module, "DEDUPLICATION_CALLS", 2)
    for task_id in "ab":
        steps.ack_all(steps.push_and_claim(store, task_id))
    lease = steps.push_and_claim(store, "c")
    clock.advance(-steps.HOUR)
    steps.ack_all(lease)
    steps.ack_all(lease)

    assert not lease.lost
    assert "c" in steps.read(store).done
