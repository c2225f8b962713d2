"""reclaim: a batch comes back from a worker that died."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.model import Bells, Trigger
from tests.support.clock import Clock
from tests.support.steps import (
    GROUP,
    HOUR,
    INTERVAL_MS,
    LEASE_MS,
    SECOND,
    TRIGGER,
    ack_all,
    call,
    claim,
    ids_of,
    place,
    push,
    push_and_claim,
    put_back,
    read,
    try_claim,
    waiting,
)

pytestmark = pytest.mark.usefixtures("sound")


def reclaim(store: Store, lease: Lease, *, trigger: Trigger = TRIGGER) -> Bells:
    """Takes a batch back whose worker is known to be dead."""
    return store.reclaim(lease.token, GROUP.id, trigger, seen_dead=True)


def reply(store: Store, token: str, *, seen_dead: bool = False) -> list:
    """Returns what the script answers."""
    return store.run(
        "reclaim",
        group=GROUP.id,
        token=token,
        flush_every=3,
        interval_ms=INTERVAL_MS,
        window_ms=1,
        seen_dead=int(seen_dead),
        step=1000,
    )


def test_a_batch_comes_back_when_its_lease_has_expired(store: Store, clock: Clock) -> None:
    """It waits again, at the head and due at once."""
    lease = push_and_claim(store, *"abc")
    clock.advance(LEASE_MS)
    push(store, "d")

    assert reply(store, lease.token)[:2] == ["reclaimed", 3]
    assert waiting(store) == ["a", "b", "c", "d"]
    assert ids_of(claim(store)) == ["a"]


def test_a_batch_whose_worker_is_alive_stays(store: Store, clock: Clock) -> None:
    """The worker extended its lease after the sweep had seen it."""
    lease = push_and_claim(store, *"abc")
    clock.advance(LEASE_MS)
    lease.extend()
    clock.advance(SECOND)
    before = read(store)

    assert reply(store, lease.token) == ["alive", str(LEASE_MS - SECOND).encode()]
    assert read(store) == before


def test_a_batch_that_is_gone_stays_gone(store: Store) -> None:
    """It was acked, or another sweeper was faster."""
    lease = push_and_claim(store, *"abc")
    reclaim(store, lease)
    before = read(store)

    assert reply(store, lease.token, seen_dead=True) == ["gone"]
    assert reclaim(store, lease).count == 0
    assert read(store) == before


def test_a_batch_comes_back_at_once_from_a_worker_that_was_seen_to_die(store: Store) -> None:
    """Nobody waits for its lease."""
    reclaim(store, push_and_claim(store, *"abc"))

    assert waiting(store) == ["a", "b", "c"]
    assert store.stats()["reclaimed"] == 1


def test_what_came_back_is_rung_for(store: Store) -> None:
    """By whoever took it back, though the claim had emptied the group."""
    lease = push_and_claim(store, *"abc")

    assert reclaim(store, lease) == Bells(GROUP.id, GROUP.route, 1, 0)
    assert store.groups() == {GROUP.id: GROUP.route}


def test_what_comes_back_is_ordered_by_age(store: Store, clock: Clock) -> None:
    """Whichever batch comes back first."""
    one = Trigger(1, INTERVAL_MS)
    leases = []
    for task_id in "abc":
        leases.append(push_and_claim(store, task_id, trigger=one))
        clock.advance(1)
    for number in (1, 2, 0):
        reclaim(store, leases[number])

    assert waiting(store) == ["a", "b", "c"]


# -- What is still the batch's


def test_what_the_batch_has_settled_does_not_come_back(store: Store) -> None:
    """Neither what it finished nor what it gave back."""
    lease = push_and_claim(store, *"abc")
    lease.ack(["a"])
    lease.release(put_back("b"))
    reclaim(store, lease)

    assert sorted(waiting(store)) == ["b", "c"]


def test_what_another_worker_runs_by_now_does_not_come_back(store: Store) -> None:
    """The batch gave it back before it died."""
    dying = push_and_claim(store, *"abc")
    dying.release(put_back("b"))
    running = claim(store)
    assert ids_of(running) == ["b"]
    reclaim(store, dying)

    assert place(store, "b") == "owned"
    assert ack_all(running) == 1


def test_what_the_batch_called_again_does_not_come_back_twice(store: Store) -> None:
    """Its retry waits."""
    lease = push_and_claim(store, *"abc")
    push(store, call("b", "again"), caller=lease.token)
    reclaim(store, lease)

    assert sorted(waiting(store)) == ["a", "b", "c"]


def test_a_batch_that_had_settled_everything_leaves_nothing(store: Store, clock: Clock) -> None:
    """Its worker died before it could say so."""
    lease = push_and_claim(store, *"abc")
    lease.ack(["a", "b", "c"])
    clock.advance(LEASE_MS)

    assert reply(store, lease.token)[:3] == ["reclaimed", 0, 0]
    assert read(store).claims == {}


def test_a_lease_that_began_in_the_future_is_no_lease(store: Store, clock: Clock) -> None:
    """The clock went back, and no sweep has bounded it yet."""
    lease = push_and_claim(store, *"abc")
    clock.advance(-HOUR)

    assert reply(store, lease.token)[0] == "reclaimed"


# -- Halves


def levels(store: Store) -> list[str]:
    """Returns the split levels of what waits."""
    return [entry.split for entry in read(store).pending[GROUP.id]]


def test_a_crash_halves(store: Store) -> None:
    """10, 5, 2, 1: down to a single request."""
    ten = Trigger(10, INTERVAL_MS)
    lease = push_and_claim(store, *"abcdefghij", trigger=ten)
    sizes = [len(lease.requests)]
    while sizes[-1] > 1:
        reclaim(store, lease, trigger=ten)
        lease = claim(store, ten)
        sizes.append(len(lease.requests))

    assert sizes == [10, 5, 2, 1]


def test_a_half_is_half_of_what_the_batch_had(store: Store) -> None:
    """Not of the batches that somebody else makes."""
    lease = push_and_claim(store, *"abcd", trigger=Trigger(100, INTERVAL_MS))
    reclaim(store, lease, trigger=Trigger(100, INTERVAL_MS))

    assert len(claim(store, Trigger(100, INTERVAL_MS)).requests) <= 2


def test_only_what_was_in_the_batch_is_halved(store: Store) -> None:
    """Not what the batch had settled."""
    lease = push_and_claim(store, *"abcd", trigger=Trigger(4, INTERVAL_MS))
    lease.ack(["a", "b"])
    reclaim(store, lease, trigger=Trigger(4, INTERVAL_MS))

    assert levels(store) == ["2", "2"]


def test_a_crash_alone_is_counted_as_such(store: Store) -> None:
    """There is nobody else to blame."""
    lease = push_and_claim(store, "a", "b")
    for _ in range(3):
        reclaim(store, lease)
        lease = claim(store)

    (request,) = lease.requests
    assert (request.attempts.crashes, request.attempts.alone) == (3, 2)


def test_a_request_that_died_alone_stays_alone(store: Store) -> None:
    """It is not mixed with new ones."""
    four = Trigger(4, INTERVAL_MS)
    lease = push_and_claim(store, "a", "b", trigger=four)
    for _ in range(2):
        reclaim(store, lease, trigger=four)
        lease = claim(store, four)
    reclaim(store, lease, trigger=four)
    push(store, *"cdef", trigger=four)

    assert [ids_of(claim(store, four)) for _ in range(3)] == [["a"], ["b"], ["c", "d", "e", "f"]]


def test_a_request_that_died_alone_runs_with_no_other(store: Store) -> None:
    """Those that follow are innocent."""
    reclaim(store, push_and_claim(store, "a", "b"))
    poison, innocent = claim(store), claim(store)
    ack_all(innocent)
    reclaim(store, poison)
    push(store, "c", "d")

    assert [ids_of(claim(store, force=True)) for _ in range(2)] == [["a"], ["c", "d"]]


def test_a_run_that_must_not_be_repeated_is_marked(store: Store) -> None:
    """Whoever claims it next tells its caller, and does not run it."""
    lease = push_and_claim(store, "a", once=True)
    assert not lease.requests[0].attempts.lost
    reclaim(store, lease)

    assert claim(store).requests[0].attempts.lost


@pytest.mark.parametrize("size", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("place_of", [lambda n: 0, lambda n: n // 2, lambda n: n - 1])
def test_a_request_that_kills_its_worker_is_isolated(
    store: Store, size: int, place_of: Callable[[int], int]
) -> None:
    """After at most log2(n) + 3 crashes; no other request has died alone."""
    trigger = Trigger(size, INTERVAL_MS)
    ids = [f"{number:03}" for number in range(size)]
    poison = ids[place_of(size)]
    push(store, *ids, trigger=trigger)
    crashes = 0
    while isinstance(lease := try_claim(store, trigger, force=True), Lease):
        suspects = [one for one in lease.requests if one.attempts.alone >= 3]
        if suspects:
            assert [one.id for one in suspects] == [poison]
            ack_all(lease)
        elif poison in ids_of(lease):
            crashes += 1
            reclaim(store, lease, trigger=trigger)
        else:
            assert all(one.attempts.alone == 0 for one in lease.requests)
            ack_all(lease)

    assert crashes <= math.log2(size) + 3
    assert store.stats()["acked"] == size
