"""The heartbeat keeps leases for as long as their batches run."""

from __future__ import annotations

import subprocess
import sys

import fakeredis
import pytest

from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.settings import Settings
from redis_batches.testing.clock import Clock
from redis_batches.upkeep.heartbeat import Heartbeat
from tests.support import raw, steps
from tests.support.waiting import wait_until

#: Whether a lease is kept, by a store of the thread's own, while the only greenlet computes.
PROGRAM = """
from gevent import monkey
monkey.patch_all()
from time import monotonic
from types import SimpleNamespace
from redis_batches.upkeep.heartbeat import Heartbeat
asked = []
lease = SimpleNamespace(token="t", task="shop.click", lost=False, overdue=False)
class Store:
    def __init__(self, task):
        self.task = task
    def extend(self, lease):
        asked.append(f"store of {self.task}")
        if len(asked) == 2:
            raise ConnectionError("lost")
        return True
with Heartbeat(0.01, Store).keep(lease):
    until = monotonic() + 20
    while len(asked) < 3 and monotonic() < until:
        pass
print(set(asked))
"""


@pytest.fixture
def stores(clock: Clock) -> list[Store]:
    """Two tasks on one server."""
    client = fakeredis.FakeRedis()
    return [Store(client, Settings(), name, clock) for name in ("one", "other")]


def expiry_of(store: Store, lease: Lease) -> int:
    """Returns when a lease ends, in ms."""
    return steps.read(store).leases[lease.token]


def test_a_lease_is_kept_while_its_batch_runs(stores: list[Store], clock: Clock) -> None:
    """By a thread of its own, and not for longer."""
    store, heartbeat = stores[0], Heartbeat(0.01)
    lease = steps.push_and_claim(store, "a")
    with heartbeat.keep(lease):
        clock.advance(steps.SECOND)
        wait_until(
            lambda: expiry_of(store, lease) == clock.now_ms + steps.LEASE_MS,
            description="the lease is extended",
        )
    kept = expiry_of(store, lease)
    clock.advance(steps.SECOND)
    heartbeat.tick()

    assert expiry_of(store, lease) == kept


def test_a_lease_that_cannot_be_extended_stops_no_other(stores: list[Store], clock: Clock) -> None:
    """It is tried again soon."""
    broken, sound = (steps.push_and_claim(store, "a") for store in stores)
    heartbeat = Heartbeat(60)
    with heartbeat.keep(broken), heartbeat.keep(sound):
        claims = raw.key(stores[0], "claims")
        raw.client(stores[0]).delete(claims)
        raw.client(stores[0]).set(claims, "foreign")
        clock.advance(steps.SECOND)

        assert heartbeat.tick() == 6
        assert expiry_of(stores[1], sound) == clock.now_ms + steps.LEASE_MS


def test_a_lease_that_was_lost_is_left_alone(stores: list[Store]) -> None:
    """Its run is told once."""
    store, heartbeat = stores[0], Heartbeat(60)
    lease = steps.push_and_claim(store, "a")
    store.reclaim(lease.token, steps.GROUP.id, steps.TRIGGER, seen_dead=True)
    with heartbeat.keep(lease):
        heartbeat.tick()
        assert lease.lost
        assert heartbeat.tick() == 60


def test_a_lease_is_kept_though_no_greenlet_yields() -> None:
    """By a real thread with a store of its own, whose lines a greenlet logs."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert done.stdout.strip() == "{'store of shop.click'}", done.stderr
    assert "could not extend the lease on batch t" in done.stderr
