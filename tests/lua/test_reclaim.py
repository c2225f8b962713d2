"""reclaim: a batch comes back from a worker that died."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.triggers import Bells, Trigger
from redis_batches.testing.clock import Clock
from tests.support import raw, steps

pytestmark = pytest.mark.usefixtures("sound")


def reclaim(store: Store, lease: Lease, *, trigger: Trigger = steps.TRIGGER) -> Bells:
    """Takes a batch back whose worker is known to be dead."""
    return store.reclaim(lease.token, steps.GROUP.id, trigger, seen_dead=True)


def reply(store: Store, token: str, *, seen_dead: bool = False) -> list:
    """Returns what the script answers."""
    return raw.run(
        store,
        "reclaim",
        group=steps.GROUP.id,
        token=token,
        trigger=steps.TRIGGER.packed,
        window_ms=1,
        seen_dead=int(seen_dead),
        step=1000,
    )


def test_a_batch_comes_back_when_its_lease_has_expired(store: Store, clock: Clock) -> None:
    """It waits again, at the head and due at once."""
    lease = steps.push_and_claim(store, *"abc")
    clock.advance(steps.LEASE_MS)
    steps.push(store, "d")

    assert reply(store, lease.token)[:2] == ["reclaimed", 3]
    assert steps.waiting(store) == ["a", "b", "c", "d"]
    assert steps.ids_of(steps.claim(store)) == ["a"]


def test_a_batch_whose_worker_is_alive_stays(store: Store, clock: Clock) -> None:
    """The worker extended its lease after the sweep had seen it."""
    lease = steps.push_and_claim(store, *"abc")
    clock.advance(steps.LEASE_MS)
    lease.extend()
    clock.advance(steps.SECOND)
    before = steps.read(store)

    assert reply(store, lease.token) == ["alive", str(steps.LEASE_MS - steps.SECOND).encode()]
    assert steps.read(store) == before


def test_a_batch_that_is_gone_stays_gone(store: Store) -> None:
    """It was acked, or another sweeper was faster."""
    lease = steps.push_and_claim(store, *"abc")
    reclaim(store, lease)
    before = steps.read(store)

    assert reply(store, lease.token, seen_dead=True) == ["gone"]
    assert reclaim(store, lease).count == 0
    assert steps.read(store) == before


def test_a_batch_comes_back_at_once_from_a_worker_that_was_seen_to_die(store: Store) -> None:
    """Nobody waits for its lease."""
    reclaim(store, steps.push_and_claim(store, *"abc"))

    assert steps.waiting(store) == ["a", "b", "c"]
    assert store.stats()["reclaimed"] == 1


def test_what_came_back_is_rung_for(store: Store) -> None:
    """By whoever took it back, though the claim had emptied the group."""
    lease = steps.push_and_claim(store, *"abc")

    assert reclaim(store, lease) == Bells(steps.GROUP.id, steps.GROUP.route, 1, 0)
    assert store.groups() == {steps.GROUP.id: steps.GROUP.route}


def test_what_comes_back_is_ordered_by_age(store: Store, clock: Clock) -> None:
    """Whichever batch comes back first."""
    one = Trigger(1, steps.INTERVAL_MS)
    leases = []
    for task_id in "abc":
        leases.append(steps.push_and_claim(store, task_id, trigger=one))
        clock.advance(1)
    for number in (1, 2, 0):
        reclaim(store, leases[number])

    assert steps.waiting(store) == ["a", "b", "c"]


# -- What is still the batch's


def test_what_the_batch_has_settled_does_not_come_back(store: Store) -> None:
    """Neither what it finished nor what it gave back."""
    lease = steps.push_and_claim(store, *"abc")
    lease.ack(["a"])
    lease.release(steps.put_back("b"))
    reclaim(store, lease)

    assert sorted(steps.waiting(store)) == ["b", "c"]


def test_what_another_worker_runs_by_now_does_not_come_back(store: Store) -> None:
    """The batch gave it back before it died."""
    dying = steps.push_and_claim(store, *"abc")
    dying.release(steps.put_back("b"))
    running = steps.claim(store)
    assert steps.ids_of(running) == ["b"]
    reclaim(store, dying)

    assert steps.place(store, "b") == "owned"
    assert steps.ack_all(running) == 1


def test_what_the_batch_called_again_does_not_come_back_twice(store: Store) -> None:
    """Its retry waits."""
    lease = steps.push_and_claim(store, *"abc")
    steps.push(store, steps.call("b", "again"), caller=lease.token)
    reclaim(store, lease)

    assert sorted(steps.waiting(store)) == ["a", "b", "c"]


def test_a_batch_that_had_settled_everything_leaves_nothing(store: Store, clock: Clock) -> None:
    """Its worker died before it could say so."""
    lease = steps.push_and_claim(store, *"abc")
    lease.ack(["a", "b", "c"])
    clock.advance(steps.LEASE_MS)

    assert reply(store, lease.token)[:3] == ["reclaimed", 0, 0]
    assert steps.read(store).claims == {}


def test_a_lease_that_began_in_the_future_is_no_lease(store: Store, clock: Clock) -> None:
    """The clock went back, and no sweep has bounded it yet."""
    lease = steps.push_and_claim(store, *"abc")
    clock.advance(-steps.HOUR)

    assert reply(store, lease.token)[0] == "reclaimed"


# -- Halves


def levels(store: Store) -> list[str]:
    """Returns the split levels of what waits."""
    return [entry.split for entry in steps.read(store).pending[steps.GROUP.id]]


def test_a_crash_halves(store: Store) -> None:
    """10, 5, 2, 1: down to a single request."""
    ten = Trigger(10, steps.INTERVAL_MS)
    lease = steps.push_and_claim(store, *"abcdefghij", trigger=ten)
    sizes = [len(lease.requests)]
    while sizes[-1] > 1:
        reclaim(store, lease, trigger=ten)
        lease = steps.claim(store, ten)
        sizes.append(len(lease.requests))

    assert sizes == [10, 5, 2, 1]


def test_a_half_is_half_of_what_the_batch_had(store: Store) -> None:
    """Not of the batches that somebody else makes."""
    lease = steps.push_and_claim(store, *"abcd", trigger=Trigger(100, steps.INTERVAL_MS))
    reclaim(store, lease, trigger=Trigger(100, steps.INTERVAL_MS))

    assert len(steps.claim(store, Trigger(100, steps.INTERVAL_MS)).requests) <= 2


def test_only_what_was_in_the_batch_is_halved(store: Store) -> None:
    """Not what the batch had settled."""
    lease = steps.push_and_claim(store, *"abcd", trigger=Trigger(4, steps.INTERVAL_MS))
    lease.ack(["a", "b"])
    reclaim(store, lease, trigger=Trigger(4, steps.INTERVAL_MS))

    assert levels(store) == ["2", "2"]


def test_a_crash_alone_is_counted_as_such(store: Store) -> None:
    """There is nobody else to blame."""
    lease = steps.push_and_claim(store, "a", "b")
    for _ in range(3):
        reclaim(store, lease)
        lease = steps.claim(store)

    (request,) = lease.requests
    assert (request.attempts.crashes, request.attempts.alone) == (3, 2)


def test_a_request_that_died_alone_stays_alone(store: Store) -> None:
    """It is not mixed with new ones."""
    four = Trigger(4, steps.INTERVAL_MS)
    lease = steps.push_and_claim(store, "a", "b", trigger=four)
    for _ in range(2):
        reclaim(store, lease, trigger=four)
        lease = steps.claim(store, four)
    reclaim(store, lease, trigger=four)
    steps.push(store, *"cdef", trigger=four)

    assert [steps.ids_of(steps.claim(store, four)) for _ in range(3)] == [
        ["a"],
        ["b"],
        ["c", "d", "e", "f"],
    ]


def test_a_request_that_died_alone_runs_with_no_other(store: Store) -> None:
    """Those that follow are innocent."""
    reclaim(store, steps.push_and_claim(store, "a", "b"))
    poison, innocent = steps.claim(store), steps.claim(store)
    steps.ack_all(innocent)
    reclaim(store, poison)
    steps.push(store, "c", "d")

    assert [steps.ids_of(steps.claim(store, force=True)) for _ in range(2)] == [["a"], ["c", "d"]]


def test_a_run_that_must_not_be_repeated_is_marked(store: Store) -> None:
    """Whoever claims it next tells its caller, and does not run it."""
    lease = steps.push_and_claim(store, "a", once=True)
    assert not lease.requests[0].attempts.lost
    reclaim(store, lease)

    assert steps.claim(store).requests[0].attempts.lost


@pytest.mark.parametrize("size", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("place_of", [lambda n: 0, lambda n: n // 2, lambda n: n - 1])
def test_a_request_that_kills_its_worker_is_isolated(
    store: Store, size: int, place_of: Callable[[int], int]
) -> None:
    """After at most log2(n) + 3 crashes; no other request has died alone."""
    trigger = Trigger(size, steps.INTERVAL_MS)
    ids = [f"{number:03}" for number in range(size)]
    poison = ids[place_of(size)]
    steps.push(store, *ids, trigger=trigger)
    crashes = 0
    while isinstance(lease := steps.try_claim(store, trigger, force=True), Lease):
        suspects = [one for one in lease.requests if one.attempts.alone >= 3]
        if suspects:
            assert [one.id for one in suspects] == [poison]
            steps.ack_all(lease)
        elif poison in steps.ids_of(lease):
            crashes += 1
            reclaim(store, lease, trigger=trigger)
        else:
            assert all(one.attempts.alone == 0 for one in lease.requests)
            steps.ack_all(lease)

    assert crashes <= math.log2(size) + 3
    assert store.stats()["acked"] == size
