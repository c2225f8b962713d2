"""How long ago a call was first sent, which each attempt to send it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic


class Age:
    """How long ago a call was first sent, for each attempt to send it.

    Args:
        slack: Seconds that the reply to an attempt may take: so much older it is when it arrives.
        clock: Returns seconds that only grow.
    """

    def __init__(self, slack: float, clock: Callable[[], float] = monotonic) -> None:
        self._slack = slack
        self._clock = clock
        self._first: float | None = None

    def __call__(self) -> int:
        """Returns ms, 0 for the first attempt; asked just before each."""
        if self._first is None:
            self._first = self._clock()
            return 0
        return math.ceil((self._clock() - self._first + self._slack) * 1000) + 1
