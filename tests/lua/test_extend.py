"""extend: a worker keeps its lease, or learns that it has none."""

from __future__ import annotations

import pytest

from redis_batches.buffer.store import Store
from tests.support.clock import Clock
from tests.support.steps import (
    GROUP,
    HOUR,
    LEASE_MS,
    SECOND,
    TRIGGER,
    ack_all,
    push_and_claim,
    read,
)

pytestmark = pytest.mark.usefixtures("sound")


def test_a_lease_that_is_extended_lasts(store: Store, clock: Clock) -> None:
    """From now on for as long as at the claim."""
    lease = push_and_claim(store, "a")
    clock.advance(LEASE_MS - 1)

    assert lease.extend()
    assert read(store).leases == {lease.token: clock.now_ms + LEASE_MS}


def test_a_lease_that_expired_unnoticed_is_extended(store: Store, clock: Clock) -> None:
    """Nobody took over yet."""
    lease = push_and_claim(store, "a")
    clock.advance(HOUR)

    assert lease.extend()
    assert store.reclaim(lease.token, GROUP.id, TRIGGER).route == ""


@pytest.mark.parametrize("ended", ["acked", "reclaimed"])
def test_a_lease_that_ended_is_lost(store: Store, ended: str) -> None:
    """The run must stop; nothing is changed."""
    lease = push_and_claim(store, "a")
    if ended == "acked":
        ack_all(lease)
    else:
        store.reclaim(lease.token, GROUP.id, TRIGGER, seen_dead=True)
    before = read(store)

    assert not lease.extend()
    assert lease.lost
    assert read(store) == before


def test_a_run_that_takes_too_long_is_not_extended(store: Store, clock: Clock) -> None:
    """A heartbeat does not keep alive what hangs past its time limit."""
    lease = push_and_claim(store, "a", limit=60)
    clock.advance(60 * SECOND)
    assert lease.extend()
    clock.advance(1)
    before = read(store)

    assert not lease.extend()
    assert read(store) == before


def test_without_a_time_limit_a_run_takes_as_long_as_it_likes(store: Store, clock: Clock) -> None:
    """As in Celery."""
    lease = push_and_claim(store, "a")
    clock.advance(1000 * HOUR)

    assert lease.extend()


def test_an_extension_after_the_clock_went_back_counts_from_now(store: Store, clock: Clock) -> None:
    """The lease does not last for hours."""
    lease = push_and_claim(store, "a")
    clock.advance(-HOUR)
    lease.extend()

    assert read(store).leases[lease.token] == clock.now_ms + LEASE_MS
