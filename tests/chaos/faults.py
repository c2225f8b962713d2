"""What is done to a cluster: one function per fault, chosen by a seed.

A function returns the ids of the processes that it killed while they may have run a batch, or None
if the fault is not possible now.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from redis_batches.embedded import EmbeddedServer
from tests.chaos.cluster import Cluster, Member
from tests.chaos.tasks import LEASE

Killed: TypeAlias = "tuple[int, ...] | None"
Fault: TypeAlias = Callable[[Cluster, random.Random], Killed]

#: A worker is taken away only while at least so many are ready.
MIN_READY = 2
#: Seconds for which a server is down: hardly, for a moment, longer than a lease.
DOWNTIMES = (0.0, 0.2, 1.0, 1.5 * LEASE)


@dataclass(frozen=True)
class Blow:
    """A fault that happened.

    Attributes:
        kind: Which.
        at: Unix time at which it began.
        killed: Ids of processes that may have run a batch.
    """

    kind: str
    at: float
    killed: tuple[int, ...] = ()


def kill_child(cluster: Cluster, dice: random.Random) -> Killed:
    """Kill -9 of a pool process: its worker lives, and sees it."""
    worker = _one_of(cluster, dice, 1)
    children = worker.children() if worker else []
    if not children:
        return None
    child = dice.choice(children)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return (child,)


def kill_worker(cluster: Cluster, dice: random.Random) -> Killed:
    """Kill -9 of a worker with its pool: nobody sees it; another is started."""
    worker = _one_of(cluster, dice, MIN_READY)
    if worker is None:
        return None
    children = worker.children()
    worker.kill()
    cluster.workers.remove(worker)
    cluster.start_worker()
    return tuple(children)


def pause_worker(cluster: Cluster, dice: random.Random) -> Killed:
    """SIGSTOP of a worker with its pool for longer than its leases; then it goes on."""
    worker = _one_of(cluster, dice, MIN_READY)
    if worker is None or any(other.resume_at is not None for other in cluster.workers):
        return None
    worker.resume_at = time.monotonic() + dice.uniform(1.2, 2.5) * LEASE
    worker.signal_all(signal.SIGSTOP)
    return ()


def stop_worker(cluster: Cluster, dice: random.Random) -> Killed:
    """SIGTERM of a worker, as at a deploy; another is started."""
    return _remove(cluster, dice, signal.SIGTERM)


def quit_worker(cluster: Cluster, dice: random.Random) -> Killed:
    """SIGQUIT of a worker: it does not end what it runs; another is started."""
    return _remove(cluster, dice, signal.SIGQUIT)


def crash_store(cluster: Cluster, dice: random.Random) -> Killed:
    """Kill -9 of the server in which requests wait; it comes back with its append-only file."""
    return _crash(cluster.store, dice)


def crash_broker(cluster: Cluster, dice: random.Random) -> Killed:
    """Kill -9 of the server that is broker and result backend; it comes back with its data."""
    return _crash(cluster.broker, dice)


def kill_beat(cluster: Cluster, dice: random.Random) -> Killed:
    """Kill -9 of beat; another is started."""
    if cluster.beat is None or not cluster.beat.ready:
        return None
    cluster.beat.kill()
    cluster.start_beat()
    return ()


def kill_producer(cluster: Cluster, dice: random.Random) -> Killed:
    """Kill -9 of a producer, perhaps between its push and its doorbell; another is started."""
    running = [producer for producer in cluster.producers if producer.running]
    if not running:
        return None
    producer = dice.choice(running)
    producer.kill()
    cluster.producers.remove(producer)
    cluster.start_producer()
    return ()


#: How often each fault happens, where it is possible.
WEIGHTS: dict[Fault, int] = {
    kill_child: 5,
    kill_worker: 2,
    pause_worker: 2,
    stop_worker: 1,
    quit_worker: 1,
    crash_store: 3,
    crash_broker: 2,
    kill_beat: 1,
    kill_producer: 1,
}


class Faults:
    """Strikes a cluster again and again.

    Args:
        cluster: What is struck.
        seed: Decides which faults happen when.
        every: Seconds between two faults, at most; half of it at least.

    Attributes:
        blows: What was done so far.
    """

    def __init__(self, cluster: Cluster, seed: int, every: float = 1.0) -> None:
        self._cluster = cluster
        self._every = every
        self._dice = random.Random(seed)
        self.blows: list[Blow] = []

    def pause(self) -> float:
        """Returns seconds until the next fault."""
        return self._dice.uniform(self._every / 2, self._every)

    def strike(self) -> None:
        """Does the next fault that is possible."""
        faults = dict(WEIGHTS)
        while faults:
            (fault,) = self._dice.choices(list(faults), list(faults.values()))
            at = time.time()
            killed = fault(self._cluster, self._dice)
            if killed is not None:
                self.blows.append(Blow(fault.__name__, at, killed))
                return
            del faults[fault]


def _one_of(cluster: Cluster, dice: random.Random, least: int) -> Member | None:
    ready = cluster.ready
    return dice.choice(ready) if len(ready) >= least else None


def _remove(cluster: Cluster, dice: random.Random, number: int) -> Killed:
    worker = _one_of(cluster, dice, MIN_READY)
    if worker is None:
        return None
    cluster.remove(worker, number)
    return ()


def _crash(server: EmbeddedServer, dice: random.Random) -> Killed:
    server.kill()
    time.sleep(dice.choice(DOWNTIMES))
    server.start()
    return ()
