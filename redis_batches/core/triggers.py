"""When a batch is due, and the doorbells that say so."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property


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
