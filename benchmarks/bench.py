"""What every section works with: the server, both sides, sizes, and whose turn it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.side import Side
from benchmarks.sizes import Sizes
from benchmarks.values import Column, Values
from redis_batches.testing.server import EmbeddedServer


@dataclass
class Bench:
    """One run of the benchmarks.

    Attributes:
        server: Which both sides use, one after the other.
        sides: Ours and theirs.
        sizes: How much of everything.
        rounds: How often each measurement is repeated.
        say: Tells somebody who waits what is being done.
    """

    server: EmbeddedServer
    sides: tuple[Side, Side]
    sizes: Sizes
    rounds: int
    say: Callable[[str], None]
    round: int = 0

    def each_round(self) -> Iterator[int]:
        """Yields 1, 2, ... while the rounds last."""
        for number in range(1, self.rounds + 1):
            self.round = number
            yield number

    @property
    def ours(self) -> Side:
        """The side of this project."""
        return self.sides[0]

    @property
    def turns(self) -> tuple[Side, ...]:
        """Both sides; who is the first changes from round to round."""
        return self.sides if self.round % 2 else self.sides[::-1]

    def begin(self, side: Side, what: str) -> None:
        """Empties the server for the next measurement of a side."""
        self.say(f"round {self.round} of {self.rounds}: {what}, {side.name}")
        side.reset()


@dataclass(frozen=True)
class Section:
    """Measurements that end in one table.

    Attributes:
        name: Of the option `--only`.
        title: Above the table.
        note: What the table shows.
        columns: Of the table, behind that of the titles.
        measure: Measures all rounds.
    """

    name: str
    title: str
    note: str
    columns: tuple[Column, ...]
    measure: Callable[[Bench, Values], None]
