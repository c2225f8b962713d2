"""extend: a worker keeps its lease, or learns that it has none."""

from __future__ import annotations

import pytest

from redis_batches.buffer.store import Store
from redis_batches.testing.clock import Clock
from tests.support import steps

pytestmark = pytest.mark.usefixtures("sound")


def test_a_lease_that_is_extended_lasts(store: Store, clock: Clock) -> None:
    """From now on for as long as at the claim."""
    lease = steps.push_and_claim(store, "a")
    clock.advance(steps.LEASE_MS - 1)

    assert lease.extend()
    assert steps.read(store).leases == {lease.token: clock.now_ms + steps.LEASE_MS}


def test_a_lease_that_expired_unnoticed_is_extended(store: Store, clock: Clock) -> None:
    """Nobody took over yet."""
    lease = steps.push_and_claim(store, "a")
    clock.advance(steps.HOUR)

    assert lease.extend()
    assert store.reclaim(lease.token, steps.GROUP.id, steps.TRIGGER).route == ""


@pytest.mark.parametrize("ended", ["acked", "reclaimed"])
def test_a_lease_that_ended_is_lost(store: Store, ended: str) -> None:
    """The run must stop; nothing is changed."""
    lease = steps.push_and_claim(store, "a")
    if ended == "acked":
        steps.ack_all(lease)
    else:
        store.reclaim(lease.token, steps.GROUP.id, steps.TRIGGER, seen_dead=True)
    before = steps.read(store)

    assert not lease.extend()
    assert lease.lost
    assert steps.read(store) == before


def test_a_run_that_takes_too_long_is_not_extended(store: Store, clock: Clock) -> None:
    """A heartbeat does not keep alive what hangs past its time limit."""
    lease = steps.push_and_claim(store, "a", limit=60)
    clock.advance(60 * steps.SECOND)
    assert lease.extend()
    clock.advance(1)
    before = steps.read(store)

    assert not lease.extend()
    assert steps.read(store) == before


def test_without_a_time_limit_a_run_takes_as_long_as_it_likes(store: Store, clock: Clock) -> None:
    """As in Celery."""
    lease = steps.push_and_claim(store, "a")
    clock.advance(1000 * steps.HOUR)

    assert lease.extend()


def test_an_extension_after_the_clock_went_back_counts_from_now(store: Store, clock: Clock) -> None:
    """The lease does not last for hours."""
    lease = steps.push_and_claim(store, "a")
    clock.advance(-steps.HOUR)
    lease.extend()

    assert steps.read(store).leases[lease.token] == clock.now_ms + steps.LEASE_MS
