"""claim and reclaim of large batches: in steps, none of which takes long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.errors import LeaseLost
from redis_batches.core.outcomes import Idle
from redis_batches.core.requests import Outgoing
from redis_batches.core.settings import Settings
from redis_batches.core.triggers import Trigger
from redis_batches.testing.clock import Clock
from tests.support import raw, steps

pytestmark = pytest.mark.usefixtures("sound")

#: Seven requests make a batch, and a step is of three.
SEVEN = Trigger(7, steps.INTERVAL_MS)
IDS = list("abcdefg")


class Died(Exception):
    """What stands for the death of whoever takes steps."""


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes three requests a step."""
    for name in ("CLAIM_STEP", "RECLAIM_STEP"):
        monkeypatch.setattr(f"redis_batches.buffer.store.{name}", 3)


def between(store: Store, word: str, act: Any) -> list[str]:
    """Does something after the next answer of a kind; returns what was answered, as it comes."""
    run, told = store._redis.run, list[str]()

    def note(script: str, **values: Any) -> list[Any]:
        reply = run(script, **values)
        told.append(reply[0])
        if reply[0] == word:
            store._redis.run = run  # type: ignore[method-assign]
            act()
            store._redis.run = note  # type: ignore[method-assign]
        return reply

    store._redis.run = note  # type: ignore[method-assign]
    return told


def die() -> None:
    """Ends whoever takes steps."""
    raise Died


def bells_out(store: Store) -> int:
    """Returns how many doorbells are out."""
    return steps.read(store).bell(steps.GROUP.id)[0]


# -- claim


def test_a_large_batch_is_claimed_in_steps(store: Store) -> None:
    """It is whole, in its order, and rung for as any other."""
    steps.push(store, *IDS, *"hijklmn", trigger=SEVEN)
    told = between(store, "", None)
    lease = steps.claim(store, SEVEN, bell="bell")

    assert steps.ids_of(lease) == IDS
    assert told == ["part", "part", "claimed"]
    assert lease.bells.count == 0
    assert store.stats()["claimed"] == 1
    assert steps.ack_all(lease) == 7


def test_its_doorbell_is_answered_when_it_is_whole(store: Store) -> None:
    """Until then it counts as out: nobody rings for what is being taken."""
    steps.push(store, *IDS, trigger=SEVEN)
    out: list[int] = []
    between(store, "part", lambda: out.append(bells_out(store)))
    steps.push(store, *"hijklmn", trigger=SEVEN)
    steps.claim(store, SEVEN, bell="bell")

    assert out == [2, 2]
    assert bells_out(store) == 1


def test_a_step_keeps_the_lease(store: Store, clock: Clock) -> None:
    """However slow the steps before it were."""
    steps.push(store, *IDS, trigger=SEVEN)
    between(store, "part", lambda: clock.advance(steps.LEASE_MS - 1))
    lease = steps.claim(store, SEVEN)

    assert steps.read(store).leases[lease.token] == clock.now_ms + steps.LEASE_MS


def test_the_reply_to_a_step_that_was_lost_comes_again(store: Store) -> None:
    """The same step again gives the same requests."""
    steps.push(store, *IDS, trigger=SEVEN)
    run = store._redis.run

    def twice(script: str, **values: Any) -> list[Any]:
        run(script, **values)
        return run(script, **values)

    store._redis.run = twice  # type: ignore[method-assign]
    assert steps.ids_of(steps.claim(store, SEVEN)) == IDS


def test_the_same_token_again_gets_all_of_it(store: Store) -> None:
    """Also in steps."""
    steps.push(store, *IDS, trigger=SEVEN)
    lease = steps.claim(store, SEVEN, token="run")
    told = between(store, "", None)

    assert steps.ids_of(steps.claim(store, SEVEN, token="run")) == steps.ids_of(lease)
    assert told == ["part", "part", "claimed"]


@pytest.mark.parametrize("taken", [1, 2])
def test_what_a_claimer_took_that_died_comes_back(store: Store, clock: Clock, taken: int) -> None:
    """When its lease has expired, and in its order."""
    steps.push(store, *IDS, trigger=SEVEN)
    left = iter(range(1, taken))

    def maybe_die() -> None:
        if next(left, None) is None:
            die()

    between(store, "part", maybe_die)
    with pytest.raises(Died):
        steps.claim(store, SEVEN)
    store = Store(raw.client(store), store.settings, store.task, clock)
    clock.advance(steps.LEASE_MS)
    for token, group in store.sweep(steps.TRIGGER).expired:  # type: ignore[union-attr]
        store.reclaim(token, group, SEVEN)

    assert steps.waiting(store) == IDS


def test_a_claimer_whose_batch_was_taken_back_gets_nothing(store: Store, clock: Clock) -> None:
    """It slept between two steps for longer than its lease."""
    steps.push(store, *IDS, trigger=SEVEN)

    def sleep() -> None:
        clock.advance(steps.LEASE_MS)
        (token,) = steps.read(store).leases
        store.reclaim(token, steps.GROUP.id, SEVEN)

    between(store, "part", sleep)
    assert steps.try_claim(store, SEVEN, token="slow") == Idle("ended")
    assert steps.waiting(store) == IDS


@pytest.mark.parametrize("cancelled", [[], ["b"], ["b", "g"]])
def test_a_batch_of_several_steps_does_not_begin_before_its_time(
    store: Store, cancelled: list[str]
) -> None:
    """Entries that a cancel left behind do not make it full."""
    steps.push(store, *"abcdefgh"[: 6 + len(cancelled)], trigger=SEVEN)
    if cancelled:
        lease, _ = store.cancel(steps.GROUP.id, cancelled, SEVEN)
        assert lease is not None
        steps.ack_all(lease)
    before = steps.waiting(store)

    found = steps.try_claim(store, SEVEN, bell="bell")
    assert isinstance(found, Idle)
    assert found.reason == "not_due"
    assert steps.waiting(store) == before


@pytest.mark.parametrize("why", ["there twice", "runs already", "gone"])
def test_what_counts_for_nothing_makes_no_batch_full_that_takes_several_steps(
    store: Store, why: str
) -> None:
    """Only the entries of what lies behind the first step are looked at, so it is asked for."""
    client, pending = raw.client(store), raw.key(store, "pending", steps.GROUP.id)
    steps.push(store, "g", trigger=SEVEN)
    entry = client.lindex(pending, 0)
    if why == "runs already":
        steps.claim(store, SEVEN, force=True)
    elif why == "gone":
        client.hdel(raw.key(store, "items"), "g")
    client.lrem(pending, 0, entry)
    steps.push(store, *"abcdef", trigger=SEVEN)
    client.rpush(pending, client.lindex(pending, 0) if why == "there twice" else entry)

    found = steps.try_claim(store, SEVEN)
    # Nothing that is sound is left of this.
    client.delete(*client.keys(raw.key(store, "items").removesuffix("items") + "*"))
    assert isinstance(found, Idle)
    assert found.reason == "not_due"


def test_a_batch_that_is_full_by_its_bytes_begins(store: Store) -> None:
    """Also if that shows in a later step only."""
    steps.limit(store, flush_bytes=500)
    steps.push(store, *(steps.call(task_id, body=b"x" * 80) for task_id in "abcdef"), trigger=SEVEN)

    assert steps.ids_of(steps.claim(store, SEVEN)) == list("abcde")
    assert steps.ids_of(steps.claim(store, SEVEN)) == ["f"]


@pytest.mark.parametrize("delayed", [False, True], ids=["fresh", "promoted"])
def test_the_bytes_of_a_batch_are_those_that_a_worker_will_hold(
    store: Store, clock: Clock, delayed: bool
) -> None:
    """Of compressed requests more than are stored."""
    steps.limit(store, flush_bytes=250)
    eta_ms = clock.now_ms + steps.SECOND if delayed else None
    steps.push(store, *(Outgoing(task_id, "", eta_ms, b"x", 100) for task_id in "abc"))
    clock.advance(steps.SECOND)
    if delayed:
        store.promote(steps.GROUP.id, list("abc"), SEVEN)

    assert steps.ids_of(steps.claim(store, Trigger(3, 0))) == ["a", "b"]


def test_a_step_is_bounded_by_its_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is larger goes by itself."""
    monkeypatch.setattr("redis_batches.buffer.store.CLAIM_STEP", 1000)
    monkeypatch.setattr("redis_batches.buffer.store.CLAIM_BYTES", 250)
    steps.push(store, *(steps.call(task_id, body=b"x" * 80) for task_id in "abcde"), trigger=SEVEN)
    steps.push(store, steps.call("f", body=b"x" * 300), "g", trigger=SEVEN)
    told = between(store, "", None)

    assert steps.ids_of(steps.claim(store, SEVEN)) == IDS
    assert told == ["part", "part", "part", "part", "claimed"]


@pytest.fixture
def real(shared_url: str, namespace: str, clock: Clock) -> Iterator[Store]:
    """A store on a real server."""
    with redis.Redis.from_url(shared_url) as client:
        yield Store(client, Settings(namespace=namespace), "shop.click", clock)
        client.delete(*client.keys("rb:{" + namespace + "*"))


@pytest.mark.parametrize("delayed", [False, True], ids=["fresh", "promoted"])
def test_nothing_is_read_that_is_not_taken(
    real: Store, clock: Clock, delayed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever waits behind a batch, and whether it is full by its number or its bytes."""
    monkeypatch.setattr("redis_batches.buffer.store.CLAIM_STEP", 1000)
    steps.limit(real, flush_bytes=1000)
    eta_ms = clock.now_ms + steps.SECOND if delayed else None
    ids = [f"id-{number}" for number in range(30)]
    steps.push(real, *(steps.call(task_id, eta_ms=eta_ms, body=b"x" * 180) for task_id in ids))
    clock.advance(steps.SECOND)
    if delayed:
        real.promote(steps.GROUP.id, ids, SEVEN)
    items = raw.key(real, "items")
    with raw.client(real).monitor() as monitor:
        lease = steps.claim(real, Trigger(20, 0))
        raw.client(real).ping()
        seen = []
        while (command := monitor.next_command()["command"]) != "PING":
            if command.startswith(f"HMGET {items}"):
                seen += command.split()[2:]

    assert steps.ids_of(lease) == ids[:5]
    assert seen == ids[:5]


# -- reclaim


def take_back(store: Store, lease: Lease) -> Any:
    """Takes a batch back whose worker is known to be dead."""
    return store.reclaim(lease.token, steps.GROUP.id, SEVEN, seen_dead=True)


def test_a_large_batch_is_taken_back_in_steps(store: Store) -> None:
    """In its order, and halved by what it was, not by a step."""
    lease = steps.push_and_claim(store, *IDS, trigger=SEVEN)
    told = between(store, "", None)
    bells = take_back(store, lease)

    assert told == ["more", "more", "more", "reclaimed"]
    assert steps.waiting(store) == IDS
    assert bells.count > 0
    assert store.stats()["reclaimed"] == 1
    records = [record.split(":") for record in steps.read(store).attempts.values()]
    # Once crashed, never alone, in batches of at most three.
    assert {(crashes, alone, split) for _, crashes, alone, split, *_ in records} == {
        ("1", "0", "1")
    }


def test_from_the_first_step_on_the_run_has_lost_its_lease(store: Store) -> None:
    """Whatever it does then changes nothing."""
    lease = steps.push_and_claim(store, *IDS, trigger=SEVEN)
    refused: list[bool] = []

    def settle() -> None:
        refused.append(not lease.extend() and lease.lost)
        for late in (lambda: steps.ack_all(lease), lambda: lease.release(steps.retry(*IDS))):
            with pytest.raises(LeaseLost):
                late()
        assert steps.try_claim(store, SEVEN, token=lease.token) == Idle("ended")

    between(store, "more", settle)
    take_back(store, lease)

    assert refused == [True] * 3
    assert steps.waiting(store) == IDS


@pytest.mark.parametrize("taken", [1, 2, 3])
def test_whoever_takes_it_back_may_die(store: Store, clock: Clock, taken: int) -> None:
    """The next sweep goes on; every request crashed once."""
    lease = steps.push_and_claim(store, *IDS, trigger=SEVEN)
    left = iter(range(1, taken))

    def maybe_die() -> None:
        if next(left, None) is None:
            die()

    between(store, "more", maybe_die)
    with pytest.raises(Died):
        take_back(store, lease)
    store = Store(raw.client(store), store.settings, store.task, clock)
    steps.read(store).check()
    clock.advance(1)
    swept = store.sweep(steps.TRIGGER)
    assert swept is not None
    assert swept.expired == ((lease.token, steps.GROUP.id),)
    store.reclaim(lease.token, steps.GROUP.id, SEVEN)

    assert steps.waiting(store) == IDS
    assert {record.split(":")[1] for record in steps.read(store).attempts.values()} == {"1"}


def test_a_clock_that_goes_back_does_not_stop_it(store: Store, clock: Clock) -> None:
    """What is begun is not taken for alive again."""
    lease = steps.push_and_claim(store, *IDS, trigger=SEVEN)
    between(store, "more", lambda: clock.advance(-5 * steps.SECOND))
    store.reclaim(lease.token, steps.GROUP.id, SEVEN, seen_dead=True)

    assert steps.waiting(store) == IDS
