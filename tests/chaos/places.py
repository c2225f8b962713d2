"""The servers of a run, and what can be done to each alone: every blip ends by itself."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import redis

from redis_batches.testing.server import HOST, EmbeddedServer
from tests.chaos.link import Link

#: Ends a blip; returns how many connections or commands it hit.
Undo: TypeAlias = "Callable[[], int]"

#: Seconds of a blip: hardly noticed, for a moment, longer than a lease, longer than a reply may be.
LENGTHS = (0.2, 1.0, 3.0, 8.0)
#: Seconds for which a killed server is down.
DOWNTIMES = (0.0, 0.2, 1.0, 3.0)
#: Seconds for which a replica lags before it is promoted.
LAGS = (0.2, 0.5, 1.0, 2.0)
#: Nobody listens there: whose primary it is lost it.
NOWHERE = 1


@dataclass
class Blow:
    """A fault that happened.

    Attributes:
        kind: Which.
        at: Unix time at which it began.
        killed: Ids of processes that may have run a batch.
        until: Unix time at which it was over, or None: at once.
        hits: How many connections, commands or bytes it hit.
    """

    kind: str
    at: float
    killed: tuple[int, ...] = ()
    until: float | None = None
    hits: int = 0


class Place:
    """A server that keeps what it answered, behind a link.

    Args:
        name: What it is to the run: "store", "broker" or "backend".

    Attributes:
        server: The server.
        link: The way to it that all processes of the run take.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.server = EmbeddedServer(appendonly=True)
        self.link: Link
        self._blow: Blow | None = None
        self._undo: Undo = int
        self._ends_at = 0.0

    def start(self) -> None:
        """Starts the server."""
        self.server.start()
        self.link = Link(self.server.port)

    def stop(self) -> None:
        """Ends the server and its link."""
        if hasattr(self, "link"):
            self.link.close()
        self.server.stop()

    @property
    def url(self) -> str:
        """Where the processes of the run find it."""
        return f"redis://{HOST}:{self.link.port}/0"

    @property
    def client(self) -> Any:
        """A client of the campaign's own, past the link."""
        return client_of(self.server)

    @property
    def struck(self) -> bool:
        """Whether a blip lasts."""
        return self._blow is not None

    def strike(self, blow: Blow, seconds: float, undo: Undo) -> None:
        """Notes a blip that has begun.

        Args:
            blow: What it is.
            seconds: How long it lasts.
            undo: Ends it.
        """
        self._blow, self._undo, self._ends_at = blow, undo, time.monotonic() + seconds

    def tick(self) -> None:
        """Ends a blip whose time is over."""
        if self._blow is not None and time.monotonic() >= self._ends_at:
            self.heal()

    def heal(self) -> None:
        """Ends a blip at once."""
        if self._blow is not None:
            blow, self._blow = self._blow, None
            blow.hits = self._undo()
            blow.until = blow.until or time.time()


class Store(Place):
    """The server in which requests wait, with a replica that follows over a link of its own.

    Attributes:
        replica: The server that follows.
        replication: The way from it to the primary.
    """

    def __init__(self) -> None:
        super().__init__("store")
        self.replica = EmbeddedServer(appendonly=True)
        self.replication: Link

    def start(self) -> None:
        """Starts both servers."""
        super().start()
        self.replication = Link(self.server.port)
        self.replica.start()
        self._follow()

    def stop(self) -> None:
        """Ends both servers and their links."""
        super().stop()
        if hasattr(self, "replication"):
            self.replication.close()
        self.replica.stop()

    def is_in_step(self) -> bool:
        """Whether the replica has everything, and would keep it if it were killed."""
        told = client_of(self.replica).info()
        up = told.get("master_link_status") == "up"
        return up and not told["aof_rewrite_in_progress"] and not told.get("aof_rewrite_scheduled")

    def promote(self, blow: Blow) -> int:
        """Kills the primary, and lets the replica take its place; returns how many bytes are lost.

        What the replica had not received is lost, as with any failover of Redis: nothing that is
        written after the kill, so that is when the fault ends.
        """
        written = self.client.info("replication")["master_repl_offset"]
        self.server.kill()
        blow.until = time.time()
        self.replication.cut()
        heir = client_of(self.replica)
        received = heir.info("replication")["slave_repl_offset"]
        heir.replicaof("NO", "ONE")
        self.server, self.replica = self.replica, self.server
        self.link.target = self.replication.target = self.server.port
        self.link.cut()
        self.link.mend()
        self.replication.mend()
        self.replica.start()
        self._follow()
        return int(written - received)

    def _follow(self) -> None:
        client_of(self.replica).replicaof(HOST, self.replication.port)


def client_of(server: EmbeddedServer) -> Any:
    """Returns a client of a server."""
    return redis.Redis(host=HOST, port=server.port, socket_timeout=15)


def crash(place: Place, dice: random.Random, blow: Blow) -> None:
    """Kill -9 of the server; it comes back with its append-only file."""
    place.server.kill()

    def start() -> int:
        place.server.start()
        return 1

    place.strike(blow, dice.choice(DOWNTIMES), start)


def cut(place: Place, dice: random.Random, blow: Blow) -> None:
    """All connections are reset, and new ones, too."""
    place.link.cut()
    place.strike(blow, dice.choice(LENGTHS[:3]), place.link.mend)


def hole(place: Place, dice: random.Random, blow: Blow) -> None:
    """Connections are accepted, and no byte flows; what was sent arrives late, or never.

    Half of the time only replies are held: the server has done what its clients give up.
    """
    place.link.hold(requests=dice.random() < 0.5)
    forgets = dice.random() < 0.5

    def end() -> int:
        waiting = place.link.waiting()
        if forgets:
            place.link.cut()
        place.link.mend()
        return waiting

    place.strike(blow, dice.choice(LENGTHS[1:]), end)


def oom(place: Place, dice: random.Random, blow: Blow) -> None:
    """The server is at its maxmemory and evicts nothing."""
    before = _refusals(place, "OOM")
    place.client.config_set("maxmemory", 1)

    def end() -> int:
        place.client.config_set("maxmemory", 0)
        return _refusals(place, "OOM") - before

    place.strike(blow, dice.choice(LENGTHS[1:]), end)


def readonly(place: Place, dice: random.Random, blow: Blow) -> None:
    """The server is a replica: it keeps its data and takes no more."""
    before = _refusals(place, "READONLY")
    place.client.replicaof(HOST, NOWHERE)

    def end() -> int:
        place.client.replicaof("NO", "ONE")
        return _refusals(place, "READONLY") - before

    place.strike(blow, dice.choice(LENGTHS[1:]), end)


def slow(place: Place, dice: random.Random, blow: Blow) -> None:
    """No write is answered for a while."""
    seconds = dice.choice(LENGTHS[1:])
    # It must not end before it was counted who waits.
    place.client.client_pause(round(seconds * 1000) + 5000, all=False)

    def end() -> int:
        waiting = place.link.waiting()
        place.client.client_unpause()
        return waiting

    place.strike(blow, seconds, end)


def _refusals(place: Place, word: str) -> int:
    found = place.client.info("errorstats").get(f"errorstat_{word}", {"count": 0})
    return int(found["count"])
