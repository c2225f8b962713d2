"""requeue, drop and repair, through what an operator calls."""

from __future__ import annotations

import pytest
import redis

from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.errors import BatchesError
from redis_batches.core.outcomes import Outcome, Verb
from redis_batches.core.requests import Group, Outgoing
from redis_batches.core.settings import REVOKED_WINDOW_MS
from redis_batches.core.triggers import Bells, Trigger
from redis_batches.operate.inspector import Inspector
from redis_batches.testing.clock import Clock
from redis_batches.wire.envelope import Envelope, encode
from tests.support import raw
from tests.support.steps import ack_all

TRIGGER = Trigger(10, 1000)
GROUP = Group.of({"queue": "celery"})


@pytest.fixture
def rung() -> list[Bells]:
    """The doorbells that were rung."""
    return []


@pytest.fixture
def inspector(store: Store, rung: list[Bells]) -> Inspector:
    """An inspector of the task."""
    return Inspector(store, TRIGGER, lambda _: [GROUP.route], rung.append)


def push(store: Store, *ids: str) -> None:
    """Stores requests."""
    store.push(GROUP, TRIGGER, [Outgoing(task_id, "", None, b"1\n[[],{}]") for task_id in ids])


def claim(store: Store, *, force: bool = True) -> Lease:
    """Claims what waits."""
    lease = store.claim(GROUP.id, TRIGGER, force=force)
    assert isinstance(lease, Lease)
    return lease


def bury(store: Store, *ids: str) -> None:
    """Makes dead letters of new requests."""
    push(store, *ids)
    lease = claim(store)
    lease.release([Outcome(task_id, Verb.DEAD, error=f"of {task_id}") for task_id in ids])
    ack_all(lease)


def test_dead_letters_are_listed_with_their_errors(
    store: Store, inspector: Inspector, clock: Clock
) -> None:
    """The oldest first, a page at a time."""
    bury(store, "a")
    clock.advance(1000)
    bury(store, "b", "c")

    assert [letter.id for letter in inspector.list()] == ["a", "b", "c"]
    assert [letter.id for letter in inspector.list(limit=1, offset=1)] == ["b"]
    letter = inspector.show("b")
    assert letter is not None
    assert (letter.error, letter.attempts.tries) == ("of b", 1)
    assert letter.died_at.timestamp() * 1000 == clock.now_ms
    assert letter.envelope == b"1\n[[],{}]"
    assert inspector.show("nobody") is None


def test_a_requeued_dead_letter_runs_with_a_clean_record(
    store: Store, inspector: Inspector, clock: Clock, rung: list[Bells]
) -> None:
    """It waits like a new call, and counts its tries from the first."""
    bury(store, "a", "b")

    assert inspector.requeue(["a", "nobody"]) == 1
    clock.advance(1000)

    assert [request.id for request in claim(store, force=False).requests] == ["a"]
    assert [letter.id for letter in inspector.list()] == ["b"]
    assert inspector.requeue() == 1
    (request,) = claim(store).requests
    assert (request.id, request.attempts.number) == ("b", 1)


def test_a_full_batch_of_requeued_letters_is_rung_for(
    store: Store, inspector: Inspector, rung: list[Bells]
) -> None:
    """Where their group's route says."""
    bury(store, *(f"id{number}" for number in range(10)))

    assert inspector.requeue() == 10
    assert [(bells.count, bells.route) for bells in rung] == [(1, GROUP.route)]


def test_what_is_no_dead_letter_is_not_requeued(store: Store, inspector: Inspector) -> None:
    """It waits, or runs, and would do so twice."""
    push(store, "runs")
    claim(store)
    push(store, "waits")

    assert inspector.requeue(["runs", "waits"]) == 0
    assert store.waiting(GROUP.id) == 1


def test_hundreds_of_dead_letters_are_requeued(store: Store, inspector: Inspector) -> None:
    """A page at a time; the last of those that died at one moment is the last by its id."""
    for first in range(0, 1100, 10):
        bury(store, *(f"id{number}" for number in range(first, first + 10)))

    assert inspector.show("id999") is not None
    assert inspector.requeue() == 1100


def test_a_dropped_dead_letter_is_gone(store: Store, inspector: Inspector) -> None:
    """And counted; what is no dead letter stays."""
    bury(store, "a")
    push(store, "b")

    assert inspector.drop(["a", "b", "nobody"]) == 1

    assert inspector.list() == []
    assert store.stats()["dropped"] == 1
    assert store.stats()["waiting"] == 1
    inspector.check_ledger()


def test_one_id_is_taken_as_one(store: Store, inspector: Inspector) -> None:
    """Not as ids of one letter each."""
    bury(store, "ab", "cd", "a", "b")

    assert inspector.requeue("ab") == 1
    assert inspector.drop("cd") == 1

    assert {letter.id for letter in inspector.list()} == {"a", "b"}


def test_a_dead_letter_shows_its_call_to_who_asks(store: Store, rung: list[Bells]) -> None:
    """But not in its repr, as it may be secret; what cannot be decoded is None."""
    calls = {
        "json": encode(Envelope({}, (("secret",), {"key": "secret"}, None)), "json"),
        "pickle": encode(Envelope({}, ((1,), {}, None)), "pickle"),
        "newer": b"2secret",
    }
    store.push(GROUP, TRIGGER, [Outgoing(name, "", None, data) for name, data in calls.items()])
    lease = claim(store)
    lease.release([Outcome(name, Verb.DEAD, error="why") for name in calls])
    ack_all(lease)

    plain = Inspector(store, TRIGGER, lambda _: [GROUP.route], rung.append)
    more = Inspector(
        store, TRIGGER, lambda _: [GROUP.route], rung.append, ["application/x-python-serialize"]
    )
    found = {letter.id: letter for letter in plain.list()}

    assert (found["json"].args, found["json"].kwargs) == (("secret",), {"key": "secret"})
    assert (found["newer"].args, found["newer"].kwargs) == (None, None)
    assert found["pickle"].args is None
    assert {letter.id: letter.args for letter in more.list()}["pickle"] == (1,)
    assert "secret" not in repr([*found.values()])


@pytest.mark.parametrize("deleted", ["q", "groups", "bells", "routes", "leases", "claims", "all"])
def test_requests_whose_indexes_were_deleted_come_back(
    client: redis.Redis, store: Store, inspector: Inspector, clock: Clock, deleted: str
) -> None:
    """Whatever was deleted by hand: each of them runs once, after one repair."""
    push(store, "a", "b")
    lost = claim(store)
    push(store, "c", "d")
    keys = raw.keys(store)
    names = {
        "q": [keys.pending(GROUP.id)],
        "all": [
            key
            for key in client.keys(f"{keys.resolve('items')[:-5]}*".replace("[", r"\["))
            if not key.endswith((b":items", b":stats"))
        ],
    }
    for key in names.get(deleted) or [keys.resolve(deleted)]:
        client.delete(key)

    inspector.repair()
    clock.advance(40_000)
    swept = store.sweep(TRIGGER)
    assert swept is not None
    for token, group in swept.expired:
        store.reclaim(token, group, TRIGGER)

    found: list[str] = []
    while isinstance(lease := store.claim(GROUP.id, TRIGGER, force=True), Lease):
        found += [request.id for request in lease.requests]
    assert sorted(found) == ["a", "b", "c", "d"]
    assert not lost.lost


@pytest.mark.parametrize("when", ["before", "after", "both"])
def test_repair_finds_what_a_note_of_a_deleted_list_hides(
    client: redis.Redis, store: Store, inspector: Inspector, when: str
) -> None:
    """Whether a call with the id of what was revoked comes before it, or after it."""
    push(store, "a", "b")
    lease, _ = store.cancel(GROUP.id, ["a"], TRIGGER)
    assert lease is not None
    ack_all(lease)
    again = Outgoing("a", "n", None, b"1\n[[],{}]")
    client.delete(raw.key(store, "pending", GROUP.id))
    if when != "after":
        push(store, "c")
        store.push(GROUP, TRIGGER, [again])
    if when != "before":
        push(store, "d")
        inspector.repair()
        store.push(GROUP, TRIGGER, [again])
    repaired = inspector.repair()

    assert client.exists(raw.key(store, "stale")) == 0
    assert repaired == (2 if when == "before" else 0)
    assert {"a", "b"} <= {request.id for request in claim(store).requests}


def test_repair_keeps_the_notes_of_what_was_revoked(
    client: redis.Redis, store: Store, inspector: Inspector, clock: Clock
) -> None:
    """Else an entry that a cancel left behind would run a delayed call before its time."""
    push(store, "a", "b")
    lease, _ = store.cancel(GROUP.id, ["a"], TRIGGER)
    assert lease is not None
    ack_all(lease)
    clock.advance(REVOKED_WINDOW_MS)
    later = Outgoing("a", "n", 9_999_999_999_999, b"1\n[[],{}]")
    store.push(GROUP, TRIGGER, [later])

    assert inspector.repair() == 0
    assert client.exists(raw.key(store, "stale")) == 1
    assert [request.id for request in claim(store).requests] == ["b"]


def test_repair_finds_nothing_where_nothing_is_wrong(store: Store, inspector: Inspector) -> None:
    """Waiting, running, delayed and dead requests stay where they are."""
    bury(store, "dead")
    push(store, "running")
    claim(store)
    push(store, "waiting")
    store.push(GROUP, TRIGGER, [Outgoing("later", "", 9_999_999_999_999, b"1\n[[],{}]")])
    before = store.stats()

    assert inspector.repair() == 0
    assert store.stats() == before


def test_a_ledger_that_does_not_add_up_says_what_it_means(
    client: redis.Redis, store: Store, inspector: Inspector
) -> None:
    """Somebody deleted a request."""
    push(store, "a", "b")
    inspector.check_ledger()
    client.hdel(raw.key(store, "items"), "a")

    with pytest.raises(BatchesError, match="holds 1 requests, but 2 were pushed"):
        inspector.check_ledger()
