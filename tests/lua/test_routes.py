"""Where to ring for a group is known as long as something of it is stored, and no longer."""

from __future__ import annotations

import pytest

from redis_batches.buffer.store import Store
from redis_batches.core.errors import RouteLost
from redis_batches.core.outcomes import Idle
from redis_batches.core.requests import Group
from redis_batches.core.triggers import Bells, Trigger
from redis_batches.operate.inspector import Inspector
from redis_batches.testing.clock import Clock
from tests.support import raw, steps

pytestmark = pytest.mark.usefixtures("sound")


@pytest.fixture
def rung() -> list[Bells]:
    """Doorbells that the inspector rang."""
    return []


def inspect(store: Store, rung: list[Bells], *routes: str) -> Inspector:
    """Returns an inspector that knows some routes, and those of the queues that it is told."""
    named = {"other": steps.OTHER.route}
    return Inspector(
        store,
        steps.TRIGGER,
        lambda queues: [*routes, *(named[name] for name in queues)],
        rung.append,
    )


def test_a_group_ends_although_others_are_delayed(store: Store, clock: Clock) -> None:
    """A queue per customer leaves nothing behind while one call of another waits for its eta."""
    steps.push(store, steps.call("later", eta_ms=clock.now_ms + steps.HOUR), group=steps.OTHER)
    for number in range(20):
        group = Group.of({"queue": f"customer-{number}"})
        steps.push(store, f"id-{number}", group=group)
        steps.ack_all(steps.claim(store, group=group, force=True, bell="bell"))

    state = steps.read(store)
    assert state.routes.keys() == {steps.OTHER.id}
    assert state.parked == {steps.OTHER.id: "1"}
    assert state.bells == {}


def test_the_last_letter_takes_the_route_along(store: Store, rung: list[Bells]) -> None:
    """When it is dropped."""
    steps.bury(store, "a", "b")
    inspector = inspect(store, rung)
    assert steps.read(store).routes.keys() == {steps.GROUP.id}

    inspector.drop("a")
    assert steps.read(store).routes.keys() == {steps.GROUP.id}
    inspector.drop("b")
    assert steps.read(store).routes == steps.read(store).parked == {}


def test_so_does_one_that_is_too_many(store: Store, clock: Clock) -> None:
    """The oldest one of another group."""
    steps.limit(store, max_dead=1)
    steps.push(store, "a", group=steps.OTHER)
    lease = steps.claim(store, group=steps.OTHER, force=True)
    lease.release(steps.dead("a"))
    steps.ack_all(lease)
    clock.advance(steps.SECOND)
    steps.bury(store, "b")

    assert steps.read(store).routes.keys() == {steps.GROUP.id}


def test_so_does_a_call_that_takes_its_place(store: Store) -> None:
    """In another queue."""
    steps.bury(store, "a")
    steps.push(store, steps.call("a", "new"), group=steps.OTHER)

    assert steps.read(store).routes.keys() == {steps.OTHER.id}


def test_what_was_revoked_before_it_ran_leaves_nothing(store: Store, clock: Clock) -> None:
    """Neither where it was delayed nor where it waited."""
    steps.push(store, steps.call("a", eta_ms=clock.now_ms + steps.HOUR), "b")
    lease, _ = store.cancel(steps.GROUP.id, ["a", "b"], steps.TRIGGER)
    assert lease is not None
    steps.ack_all(lease)
    assert steps.try_claim(store) == Idle("empty")

    assert steps.read(store).routes == steps.read(store).parked == {}


def test_a_letter_goes_back_to_its_queue(store: Store, rung: list[Bells]) -> None:
    """Although nothing else of that queue is stored, and the app does not know it."""
    steps.push(store, "a", group=steps.OTHER)
    lease = steps.claim(store, group=steps.OTHER, force=True)
    lease.release(steps.dead("a"))
    steps.ack_all(lease)

    assert inspect(store, rung, steps.GROUP.route).requeue("a") == 1
    assert [(bells.group, bells.route) for bells in rung] == [(steps.OTHER.id, steps.OTHER.route)]


@pytest.mark.parametrize("verb", ["requeue", "repair"])
def test_a_route_that_was_deleted_is_found_by_its_group(
    store: Store, rung: list[Bells], verb: str
) -> None:
    """A group is named by a hash of its route; else nobody rings, least of all elsewhere."""
    steps.bury(store, "dead")
    steps.push(store, "a")
    raw.client(store).delete(raw.key(store, "routes"), raw.key(store, "pending", steps.GROUP.id))
    raw.client(store).delete(raw.key(store, "groups"), raw.key(store, "bells"))
    with pytest.raises(RouteLost, match="name it"):
        getattr(inspect(store, rung, steps.OTHER.route), verb)()
    assert steps.place(store, "dead") == "dead"
    assert rung == []

    assert getattr(inspect(store, rung, steps.OTHER.route, steps.GROUP.route), verb)() == 1
    assert {bells.route for bells in rung} == {steps.GROUP.route}
    inspect(store, rung, steps.GROUP.route).repair()
    assert steps.read(store).routes == {steps.GROUP.id: steps.GROUP.route}


def test_the_others_are_dealt_with(store: Store, rung: list[Bells]) -> None:
    """The error says of how many nobody knows the queue; naming it is enough."""
    steps.push(store, "a")
    steps.push(store, "b", group=steps.OTHER)
    for key in ("routes", "groups", "bells"):
        raw.client(store).delete(raw.key(store, key))
    for group in (steps.GROUP, steps.OTHER):
        raw.client(store).delete(raw.key(store, "pending", group.id))

    inspector = inspect(store, rung, steps.GROUP.route)
    with pytest.raises(RouteLost, match=r"1 requests of shop\.click") as caught:
        inspector.repair()
    assert (caught.value.count, caught.value.done) == (1, 1)
    assert inspector.repair(queues=["other"]) == 1
    assert steps.place(store, "b") == "pending"


def test_what_runs_needs_no_route_to_be_repaired(store: Store, rung: list[Bells]) -> None:
    """Its claim knows it."""
    steps.push_and_claim(store, "a")

    assert inspect(store, rung).repair() == 0


def test_repair_counts_what_is_delayed(store: Store, rung: list[Bells]) -> None:
    """If somebody has deleted that."""
    lease = steps.push_and_claim(store, "a")
    lease.release(steps.retry("a", delay_ms=steps.SECOND))
    steps.ack_all(lease)
    raw.client(store).delete(raw.key(store, "parked"))

    assert inspect(store, rung, steps.GROUP.route).repair() == 0
    assert steps.read(store).parked == {steps.GROUP.id: "1"}


# -- callers and workers of two deploys


def test_a_doorbell_that_was_answered_too_early_is_not_rung_again(store: Store) -> None:
    """Callers whose batches are smaller than the workers' ring once, not at each call."""
    caller, worker = Trigger(10, steps.HOUR), Trigger(1000, steps.HOUR)
    rung = 0
    for number in range(300):
        bells = steps.push(store, f"id-{number}", trigger=caller).bells
        rung += bells.count
        for _ in range(bells.count):
            assert isinstance(steps.try_claim(store, worker, bell=f"bell-{number}"), Idle)
    assert rung == 1

    for number in range(300, 999):
        rung += steps.push(store, f"id-{number}", trigger=caller).bells.count
    assert rung == 1
    assert steps.push(store, "last", trigger=caller).bells.count == 1
    assert len(steps.claim(store, worker, bell="last").requests) == 1000


def test_a_worker_that_starts_with_smaller_batches_is_woken(store: Store) -> None:
    """What was too few for those before it is a batch for it."""
    steps.push(store, *"abcd")
    assert isinstance(steps.try_claim(store, Trigger(1000, steps.HOUR), bell="bell"), Idle)
    assert steps.push(store, *"efg").bells.count == 0

    swept = store.sweep(Trigger(3, steps.HOUR), sweeper="anne", ring_again=True)
    assert swept is not None
    assert len(swept.bells) == 1
    assert len(steps.claim(store, bell="new").requests) == 3


# -- what a message may bring along


@pytest.mark.parametrize("bell", ["a|b", "a|1|2|3|4|5||x", "x" * 10_000, "\udcff", "a\n"])
def test_a_forged_doorbell_leaves_nothing(store: Store, bell: str) -> None:
    """Whatever its id is made of, the run that it starts is found, and ends."""
    lease = steps.push_and_claim(store, "a", bell=bell)
    assert store.find_token(bell) == lease.token
    steps.ack_all(lease)

    assert steps.read(store).claims == {}
