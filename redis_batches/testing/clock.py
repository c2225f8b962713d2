"""A clock that only a test moves."""

from __future__ import annotations


class Clock:
    """A time that only a test moves."""

    def __init__(self) -> None:
        self.now_ms = 1_800_000_000_000

    def __call__(self) -> str:
        """Returns the time as the scripts take it."""
        return str(self.now_ms)

    def advance(self, ms: int) -> None:
        """Lets time pass, or go back."""
        self.now_ms += ms
