"""The breakages: each is one change of the code, and what it breaks.

A block of `scripts.txt` or `package.txt` is

    @ name file
    # what it breaks, in a line
    -whole lines as they stand in the file, where they occur once
    +the lines that take their place, if any
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Mutant:
    """One breakage.

    Attributes:
        name: Names it.
        file: The file that it changes, from the root of the repository.
        what: What it breaks.
        old: The lines that it takes out.
        new: The lines that it puts there.
    """

    name: str
    file: str
    what: str
    old: str
    new: str

    def occurrences(self, root: Path = ROOT) -> int:
        """Returns how often the lines occur in the file; it should be once."""
        return ("\n" + (root / self.file).read_text("utf-8")).count("\n" + self.old)

    def apply(self, root: Path) -> str:
        """Changes the file; returns what it held before."""
        path = root / self.file
        before = path.read_text("utf-8")
        path.write_text(("\n" + before).replace("\n" + self.old, "\n" + self.new)[1:], "utf-8")
        return before


def load() -> list[Mutant]:
    """Returns all mutants."""
    return [
        _parse(block)
        for name in ("scripts.txt", "package.txt")
        for block in (HERE / name).read_text("utf-8").split("\n@ ")[1:]
    ]


def _parse(block: str) -> Mutant:
    head, what, *changed = block.rstrip("\n").split("\n")
    name, file = head.split()
    old, new = ("".join(f"{line[1:]}\n" for line in changed if line[:1] == sign) for sign in "-+")
    return Mutant(name, file, what.removeprefix("# "), old, new)
