"""What a request is on its way in, while it waits, and when a batch has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple

from redis_batches.core.triggers import Bells


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
