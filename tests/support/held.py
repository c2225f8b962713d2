"""A lease of nobody's: what settles requests needs one, and no server."""

from __future__ import annotations

from time import monotonic
from typing import Any

from redis_batches.buffer.lease import Lease
from redis_batches.core.triggers import Bells, Trigger


class Held(Lease):
    """A lease that nobody takes away.

    Attributes:
        acked: Ids that it was told to forget.
        fails: What an ack raises, if anything.
    """

    def __init__(self) -> None:
        nothing: Any = None
        super().__init__(
            nothing,
            nothing,
            task="task",
            trigger=Trigger(1, 0),
            token="token",
            fence=9,
            bells=Bells("group", "", 0, 0),
            requests=(),
            confirmed=monotonic(),
        )
        self.acked: list[str] = []
        self.fails: Exception | None = None

    def extend(self, through: Any = None) -> bool:
        """Says that it is kept."""
        return True

    def ack(self, ids: Any = (), *, ends: bool = False, **_: Any) -> int:
        """Notes what is forgotten."""
        if self.fails is not None:
            raise self.fails
        self.acked += ids
        return len(ids)
