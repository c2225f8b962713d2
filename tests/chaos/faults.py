"""What is done to a cluster: one function per fault, chosen by a seed.

A function returns the ids of the processes that it killed while they may have run a batch, or None
if the fault is not possible now.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import TypeAlias

from tests.chaos import places
from tests.chaos.cluster import Cluster, Member
from tests.chaos.places import LAGS, Blow, Place
from tests.chaos.tasks import LEASE

Killed: TypeAlias = "tuple[int, ...] | None"
Fault: TypeAlias = Callable[[Cluster, random.Random, Blow], Killed]
Blip: TypeAlias = Callable[[Place, random.Random, Blow], None]

#: A worker is taken away only while at least so many are ready.
MIN_READY = 2
#: The fault in which the newest writes may be lost.
PROMOTION = "store_promotion"


def kill_child(cluster: Cluster, dice: random.Random, blow: Blow) -> Killed:
    """Kill -9 of a pool process: its worker lives, and sees it."""
    worker = _one_of(cluster, dice, 1)
    children = worker.children() if worker else []
    if not children:
        return None
    child = dice.choice(children)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return (child,)


def kill_worker(cluster: Cluster, dice: random.Random, blow: Blow) -> Killed:
    """Kill -9 of a worker with its pool: nobody sees it; another is started."""
    worker = _one_of(cluster, dice, MIN_READY)
    if worker is None:
        return None
    children = worker.children()
    worker.kill()
    cluster.workers.remove(worker)
    cluster.start_worker()
    return tuple(children)


def pause_worker(cluster: Cluster, dice: random.Random, blow: Blow) -> Killed:
    """SIGSTOP of a worker with its pool for longer than its leases; then it goes on."""
    worker = _one_of(cluster, dice, MIN_READY)
    if worker is None or any(other.resume_at is not None for other in cluster.workers):
        return None
    worker.resume_at = time.monotonic() + dice.uniform(1.2, 2.5) * LEASE
    worker.signal_all(signal.SIGSTOP)
    return ()


def stop_worker(cluster: Cluster, dice: random.Random, blow: Blow) -> Killed:
    """SIGTERM of a worker, as at a deploy; another is started."""
    return _remove(cluster, dice, signal.SIGTERM)


def quit_worker(cluster: Cluster, dice: random.Random, blow: Blow) -> Killed:
    """SIGQUIT of a worker: it does not end what it runs; another is started."""
    return _remove(cluster, dice, signal.SIGQUIT)


def promote_replica(cluster: Cluster, dice: random.Random, blow: Blow) -> Killed:
    """The store's replica lags; then the primary is killed, and the replica takes its place."""
    store = cluster.store
    if store.struck or not store.is_in_step():
        return None
    store.replication.hold()
    store.strike(blow, dice.choice(LAGS), partial(store.promote, blow))
    return ()


def _blip(place: str, strike: Blip) -> Fault:
    """Returns the fault that does something to a server, if nothing is done to it already."""

    def fault(cluster: Cluster, dice: random.Random, blow: Blow) -> Killed:
        server: Place = getattr(cluster, place)
        if server.struck:
            return None
        strike(server, dice, blow)
        return ()

    return fault


def kill_beat(cluster: Cluster, dice: random.Random, blow: Blow) -> Killed:
    """Kill -9 of beat; another is started."""
    if cluster.beat is None or not cluster.beat.ready:
        return None
    cluster.beat.kill()
    cluster.start_beat()
    return ()


def kill_producer(cluster: Cluster, dice: random.Random, blow: Blow) -> Killed:
    """Kill -9 of a producer, perhaps between its push and its doorbell; another is started."""
    running = [producer for producer in cluster.producers if producer.running]
    if not running:
        return None
    producer = dice.choice(running)
    producer.kill()
    cluster.producers.remove(producer)
    cluster.start_producer()
    return ()


#: What each server can suffer.
_BLIPS: dict[str, tuple[Blip, ...]] = {
    "store": (places.crash, places.cut, places.hole, places.oom, places.readonly, places.slow),
    "broker": (places.crash, places.cut, places.hole),
    "backend": (places.crash, places.cut, places.hole, places.oom, places.readonly, places.slow),
}
#: Each fault by its name, and how often it happens where it is possible.
FAULTS: dict[str, tuple[Fault, int]] = {
    "kill_child": (kill_child, 6),
    "kill_worker": (kill_worker, 3),
    "pause_worker": (pause_worker, 3),
    "stop_worker": (stop_worker, 1),
    "quit_worker": (quit_worker, 1),
    "kill_beat": (kill_beat, 1),
    "kill_producer": (kill_producer, 1),
    PROMOTION: (promote_replica, 4),
    **{
        f"{place}_{strike.__name__}": (_blip(place, strike), 2)
        for place, blips in _BLIPS.items()
        for strike in blips
    },
}


class Faults:
    """Strikes a cluster again and again.

    Args:
        cluster: What is struck.
        seed: Decides which faults happen when.
        every: Seconds between two faults, at most; half of it at least.
        kinds: The faults that may happen, by name.

    Attributes:
        blows: What was done so far.
    """

    def __init__(
        self,
        cluster: Cluster,
        seed: int,
        every: float = 1.0,
        kinds: Collection[str] = tuple(FAULTS),
    ) -> None:
        self._cluster = cluster
        self._every = every
        self._kinds = kinds
        self._dice = random.Random(seed)
        self.blows: list[Blow] = []

    def pause(self) -> float:
        """Returns seconds until the next fault."""
        return self._dice.uniform(self._every / 2, self._every)

    def strike(self) -> None:
        """Does the next fault that is possible."""
        weights = {kind: weight for kind, (_, weight) in FAULTS.items() if kind in self._kinds}
        while weights:
            (kind,) = self._dice.choices(list(weights), list(weights.values()))
            blow = Blow(kind, time.time())
            killed = FAULTS[kind][0](self._cluster, self._dice, blow)
            if killed is not None:
                blow.killed = killed
                self.blows.append(blow)
                return
            del weights[kind]


def _one_of(cluster: Cluster, dice: random.Random, least: int) -> Member | None:
    ready = cluster.ready
    return dice.choice(ready) if len(ready) >= least else None


def _remove(cluster: Cluster, dice: random.Random, number: int) -> Killed:
    worker = _one_of(cluster, dice, MIN_READY)
    if worker is None:
        return None
    cluster.remove(worker, number)
    return ()
