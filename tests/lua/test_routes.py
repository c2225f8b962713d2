"""Where to ring for a group is known as long as something of it is stored, and no longer."""

from __future__ import annotations

import pytest

from redis_batches.buffer.store import Store
from redis_batches.core.errors import RouteLost
from redis_batches.core.model import Bells, Group, Idle, Trigger
from redis_batches.operate.inspector import Inspector
from tests.support.clock import Clock
from tests.support.steps import (
    GROUP,
    HOUR,
    OTHER,
    SECOND,
    TRIGGER,
    ack_all,
    bury,
    call,
    claim,
    dead,
    limit,
    place,
    push,
    push_and_claim,
    read,
    retry,
    try_claim,
)

pytestmark = pytest.mark.usefixtures("sound")


@pytest.fixture
def rung() -> list[Bells]:
    """Doorbells that the inspector rang."""
    return []


def inspect(store: Store, rung: list[Bells], *routes: str) -> Inspector:
    """Returns an inspector that knows some routes, and those of the queues that it is told."""
    named = {"other": OTHER.route}
    return Inspector(
        store, TRIGGER, lambda queues: [*routes, *(named[name] for name in queues)], rung.append
    )


def test_a_group_ends_although_others_are_delayed(store: Store, clock: Clock) -> None:
    """A queue per customer leaves nothing behind while one call of another waits for its eta."""
    push(store, call("later", eta_ms=clock.now_ms + HOUR), group=OTHER)
    for number in range(20):
        group = Group.of({"queue": f"customer-{number}"})
        push(store, f"id-{number}", group=group)
        ack_all(claim(store, group=group, force=True, bell="bell"))

    state = read(store)
    assert state.routes.keys() == {OTHER.id}
    assert state.parked == {OTHER.id: "1"}
    assert state.bells == {}


def test_the_last_letter_takes_the_route_along(store: Store, rung: list[Bells]) -> None:
    """When it is dropped."""
    bury(store, "a", "b")
    inspector = inspect(store, rung)
    assert read(store).routes.keys() == {GROUP.id}

    inspector.drop("a")
    assert read(store).routes.keys() == {GROUP.id}
    inspector.drop("b")
    assert read(store).routes == read(store).parked == {}


def test_so_does_one_that_is_too_many(store: Store, clock: Clock) -> None:
    """The oldest one of another group."""
    limit(store, max_dead=1)
    push(store, "a", group=OTHER)
    lease = claim(store, group=OTHER, force=True)
    lease.release(dead("a"))
    ack_all(lease)
    clock.advance(SECOND)
    bury(store, "b")

    assert read(store).routes.keys() == {GROUP.id}


def test_so_does_a_call_that_takes_its_place(store: Store) -> None:
    """In another queue."""
    bury(store, "a")
    push(store, call("a", "new"), group=OTHER)

    assert read(store).routes.keys() == {OTHER.id}


def test_what_was_revoked_before_it_ran_leaves_nothing(store: Store, clock: Clock) -> None:
    """Neither where it was delayed nor where it waited."""
    push(store, call("a", eta_ms=clock.now_ms + HOUR), "b")
    lease, _ = store.cancel(GROUP.id, ["a", "b"], TRIGGER)
    assert lease is not None
    ack_all(lease)
    assert try_claim(store) == Idle("empty")

    assert read(store).routes == read(store).parked == {}


def test_a_letter_goes_back_to_its_queue(store: Store, rung: list[Bells]) -> None:
    """Although nothing else of that queue is stored, and the app does not know it."""
    push(store, "a", group=OTHER)
    lease = claim(store, group=OTHER, force=True)
    lease.release(dead("a"))
    ack_all(lease)

    assert inspect(store, rung, GROUP.route).requeue("a") == 1
    assert [(bells.group, bells.route) for bells in rung] == [(OTHER.id, OTHER.route)]


@pytest.mark.parametrize("verb", ["requeue", "repair"])
def test_a_route_that_was_deleted_is_found_by_its_group(
    store: Store, rung: list[Bells], verb: str
) -> None:
    """A group is named by a hash of its route; else nobody rings, least of all elsewhere."""
    bury(store, "dead")
    push(store, "a")
    store.client.delete(store.keys.resolve("routes"), store.keys.pending(GROUP.id))
    store.client.delete(store.keys.resolve("groups"), store.keys.resolve("bells"))
    with pytest.raises(RouteLost, match="name it"):
        getattr(inspect(store, rung, OTHER.route), verb)()
    assert place(store, "dead") == "dead"
    assert rung == []

    assert getattr(inspect(store, rung, OTHER.route, GROUP.route), verb)() == 1
    assert {bells.route for bells in rung} == {GROUP.route}
    inspect(store, rung, GROUP.route).repair()
    assert read(store).routes == {GROUP.id: GROUP.route}


def test_the_others_are_dealt_with(store: Store, rung: list[Bells]) -> None:
    """The error says of how many nobody knows the queue; naming it is enough."""
    push(store, "a")
    push(store, "b", group=OTHER)
    for key in ("routes", "groups", "bells"):
        store.client.delete(store.keys.resolve(key))
    store.client.delete(store.keys.pending(GROUP.id), store.keys.pending(OTHER.id))

    inspector = inspect(store, rung, GROUP.route)
    with pytest.raises(RouteLost, match=r"1 requests of shop\.click") as caught:
        inspector.repair()
    assert (caught.value.count, caught.value.done) == (1, 1)
    assert inspector.repair(queues=["other"]) == 1
    assert place(store, "b") == "pending"


def test_what_runs_needs_no_route_to_be_repaired(store: Store, rung: list[Bells]) -> None:
    """Its claim knows it."""
    push_and_claim(store, "a")

    assert inspect(store, rung).repair() == 0


def test_repair_counts_what_is_delayed(store: Store, rung: list[Bells]) -> None:
    """If somebody has deleted that."""
    lease = push_and_claim(store, "a")
    lease.release(retry("a", delay_ms=SECOND))
    ack_all(lease)
    store.client.delete(store.keys.resolve("parked"))

    assert inspect(store, rung, GROUP.route).repair() == 0
    assert read(store).parked == {GROUP.id: "1"}


# -- callers and workers of two deploys


def test_a_doorbell_that_was_answered_too_early_is_not_rung_again(store: Store) -> None:
    """Callers whose batches are smaller than the workers' ring once, not at each call."""
    caller, worker = Trigger(10, HOUR), Trigger(1000, HOUR)
    rung = 0
    for number in range(300):
        bells = push(store, f"id-{number}", trigger=caller).bells
        rung += bells.count
        for _ in range(bells.count):
            assert isinstance(try_claim(store, worker, bell=f"bell-{number}"), Idle)
    assert rung == 1

    for number in range(300, 999):
        rung += push(store, f"id-{number}", trigger=caller).bells.count
    assert rung == 1
    assert push(store, "last", trigger=caller).bells.count == 1
    assert len(claim(store, worker, bell="last").requests) == 1000


def test_a_worker_that_starts_with_smaller_batches_is_woken(store: Store) -> None:
    """What was too few for those before it is a batch for it."""
    push(store, *"abcd")
    assert isinstance(try_claim(store, Trigger(1000, HOUR), bell="bell"), Idle)
    assert push(store, *"efg").bells.count == 0

    swept = store.sweep(HOUR, sweeper="anne", greet=True, flush_every=3)
    assert swept is not None
    assert len(swept.bells) == 1
    assert len(claim(store, bell="new").requests) == 3


# -- what a message may bring along


@pytest.mark.parametrize("bell", ["a|b", "a|1|2|3|4|5||x", "x" * 10_000, "\udcff", "a\n"])
def test_a_forged_doorbell_leaves_nothing(store: Store, bell: str) -> None:
    """Whatever its id is made of, the run that it starts is found, and ends."""
    lease = push_and_claim(store, "a", bell=bell)
    assert store.find_token(bell) == lease.token
    ack_all(lease)

    assert read(store).claims == {}
