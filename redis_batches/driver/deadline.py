"""Until when a call may take: one end for all that it waits for, however deep inside.

It is kept in a context variable, which belongs to one thread or one greenlet.
"""

from __future__ import annotations

import math
from contextvars import ContextVar, Token
from time import monotonic

_end: ContextVar[float] = ContextVar("redis_batches_end", default=math.inf)


def left() -> float:
    """Returns the seconds that the call may still take; less than 0 if it is late."""
    return _end.get() - monotonic()


class until:  # noqa: N801
    """Ends what a `with` block waits for at a moment; the sooner one of two holds.

    Args:
        end: By `time.monotonic`.
    """

    __slots__ = ("_end", "_token")

    def __init__(self, end: float) -> None:
        self._end = end

    def __enter__(self) -> None:
        """Begins."""
        outer, end = _end.get(), self._end
        self._token: Token[float] = _end.set(end if end < outer else outer)

    def __exit__(self, *_: object) -> None:
        """Gives way to the end that held before."""
        _end.reset(self._token)


def within(seconds: float) -> until:
    """Lets what a `with` block waits for take so many seconds in all, from now."""
    return until(monotonic() + seconds)
