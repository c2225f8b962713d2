"""What a request, a batch and a claim are, as plain values that no layer can change."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Trigger:
    """When a batch is due.

    It travels as one value, which `lua/lib/trigger.lua` reads. A new field goes to the end.

    Attributes:
        flush_every: Requests that make a full batch, and the most that one batch holds.
        interval_ms: The longest time that the oldest request waits for others.
    """

    flush_every: int
    interval_ms: int

    @cached_property
    def packed(self) -> str:
        """Its text, for scripts and the registry."""
        return f"{self.flush_every}:{self.interval_ms}"

    @classmethod
    def unpack(cls, packed: str) -> Trigger:
        """Returns the trigger of a text, which may have more fields: a newer version's.

        Raises:
            ValueError: It is no trigger.
        """
        found = re.match(r"([0-9]{1,15}):([0-9]{1,15})(?::|$)", packed)
        if not found:
            raise ValueError(f"{packed!r:.100} is no trigger")
        return cls(*map(int, found.groups()))


@dataclass(frozen=True)
class Group:
    """Requests that may share a batch: those with the same route and, later, batch key.

    Attributes:
        route: JSON text that says where to ring a doorbell for the group.
    """

    route: str

    @classmethod
    def of(cls, destination: Mapping[str, Any]) -> Group:
        """Returns the group of a destination, whatever the order of its keys."""
        return cls(json.dumps(destination, sort_keys=True, separators=(",", ":")))

    @cached_property
    def id(self) -> str:
        """A hash of the route, short enough to stand in front of every stored request."""
        return blake2b(self.route.encode(), digest_size=6).hexdigest()


class Status(str, Enum):
    """What became of one pushed request."""

    NEW = "new"
    AGAIN = "again"
    DONE = "done"
    DUPLICATE = "duplicate"
    FULL = "full"
    FORGOTTEN = "forgotten"


class Outgoing(NamedTuple):
    """A call on its way into Redis.

    Attributes:
        id: The task id.
        nonce: Tells this call from another with the same id; empty if the id is this call's own.
        eta_ms: Unix time in ms before which it must not run, or None.
        envelope: The encoded call.
        size: Bytes that a worker will hold of it; None if they are not more than these.
    """

    id: str
    nonce: str
    eta_ms: int | None
    envelope: bytes
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Bells:
    """Doorbells that a script booked and its caller must ring.

    Attributes:
        group: Id of the group to ring for.
        route: Where to ring, as JSON text.
        count: How many.
        rung_ms: Server time at which they were booked, in ms.
    """

    group: str
    route: str
    count: int
    rung_ms: int


class Pushed(NamedTuple):
    """The answer to a push.

    Attributes:
        bells: The flush signal: doorbells to ring, `count` 0 for none.
        statuses: One per request, in order.
        missing: How many of the replicas that were waited for have not told that they have it.
    """

    bells: Bells
    statuses: tuple[Status, ...]
    missing: int = 0


@dataclass(frozen=True, slots=True)
class Attempts:
    """What a request went through before.

    Attributes:
        tries: Runs that ended with its retry.
        crashes: Runs that died.
        alone: Runs that died with no other request in the batch.
        split: Level of halving; a batch holds at most flush_every / 2**split requests.
        lost: A run that must not be repeated (`acks_late=False`) died.
        tried_ms: Server time of the last retry, in ms.
        revoked: Whether it was revoked: then its caller is told so, and it is not run.
        put_backs: Runs that gave it back without an outcome, for no cause outside the request.
        postponed: Runs that gave it back for a cause outside the request, such as a shutdown.
        earlier: Runs before its own batch called it again, which is a retry with a clean record.
        since_ms: Since when it waits, if it was put back for a while; else 0.
    """

    tries: int = 0
    crashes: int = 0
    alone: int = 0
    split: int = 0
    lost: bool = False
    tried_ms: int = 0
    revoked: bool = False
    put_backs: int = 0
    postponed: int = 0
    earlier: int = 0
    since_ms: int = 0

    @property
    def number(self) -> int:
        """The number of the coming run, whatever ended those before; 1 is the first."""
        given_back = self.put_backs + self.postponed
        return self.earlier + self.tries + self.crashes + given_back + 1


class Claimed(NamedTuple):
    """One request of a claimed batch.

    Attributes:
        id: The task id.
        since_ms: Server time since which it waited, in ms.
        attempts: What it went through before.
        envelope: The encoded call; empty if it vanished.
    """

    id: str
    since_ms: int
    attempts: Attempts
    envelope: bytes


class Verb(str, Enum):
    """How a batch gives a request back.

    `RETRY_BATCH` is a retry because the batch as a whole failed. What has no outcome is `PUT_BACK`,
    or `POSTPONE` if the cause lies outside the request: a shutdown, an outage, a newer version.
    """

    RETRY = "retry"
    RETRY_BATCH = "retry_batch"
    PUT_BACK = "put_back"
    POSTPONE = "postpone"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A request that a batch gives back.

    Attributes:
        id: The task id.
        verb: How.
        delay_ms: Time until it may run again; 0 is at once. It doubles each time that the request
            is put back or postponed.
        error: What went wrong, kept for an operator.
    """

    id: str
    verb: Verb
    delay_ms: int = 0
    error: str = ""


class Place(str, Enum):
    """Where a cancel found a request.

    `LEASED` is leased to the canceller now; `IN_FLIGHT` is in a batch that runs; `DEAD` is a dead
    letter; `GONE` is not stored; `ELSEWHERE` waits in another group.
    """

    LEASED = "leased"
    IN_FLIGHT = "in_flight"
    DEAD = "dead"
    GONE = "gone"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class Found:
    """A request that a cancel was asked for.

    Attributes:
        id: The task id.
        place: Where it is.
        group: Id of its group, or "".
    """

    id: str
    place: Place
    group: str


@dataclass(frozen=True, slots=True)
class Idle:
    """A claim that found nothing to run.

    Attributes:
        reason: "busy", "ended", "left", "not_due" or "empty".
        wait_ms: For "not_due", the time until something may be.
    """

    reason: str
    wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep found.

    Attributes:
        wait_ms: Time until something else wants attention, or None.
        bells: Doorbells to ring, one per group.
        expired: Tokens of runs that died, each with the id of its group.
        ready: Ids whose delay is over, by group id.
    """

    wait_ms: int | None
    bells: tuple[Bells, ...] = ()
    expired: tuple[tuple[str, str], ...] = ()
    ready: tuple[tuple[str, tuple[str, ...]], ...] = ()
