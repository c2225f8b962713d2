"""The breakages: each is one change of the code, and what it breaks.

A block of `scripts.txt`, which is about `lua/`, or `package.txt`, about `redis_batches/`, is

    @ name definition
    # what it breaks, in a line
    -whole lines of the definition, but for its indentation; they occur there once
    +the lines that take their place, if any

The definition is a function, a class, `Class.method`, `Class.attribute` or a constant, wherever it
lies: so a mutant outlives a move. What lies in none, such as the main part of a script, is named by
its file, without folders: `claim.lua`. `claim.lua:take` is for a name that two files have.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.definitions import definitions

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
#: Which files a list is about.
LISTS = {"scripts.txt": ("lua", ".lua"), "package.txt": ("redis_batches", ".py")}


class Misfit(Exception):
    """A mutant does not fit the code; the message says what to do."""


@dataclass(frozen=True)
class Place:
    """Where the lines of a mutant stand.

    Attributes:
        file: From the root of the repository.
        line: The first of them, from 0.
        indent: What is before each of them.
    """

    file: str
    line: int
    indent: str


@dataclass(frozen=True)
class Mutant:
    """One breakage.

    Attributes:
        name: Names it.
        definition: What it changes.
        what: What it breaks.
        old: The lines that it takes out.
        new: The lines that it puts there.
        source: The list that it is in.
    """

    name: str
    definition: str
    what: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    source: str

    def find(self, root: Path = ROOT) -> Place:
        """Returns the only place that its lines have in its definition.

        Raises:
            Misfit: There is none, or several.
        """
        found = list(self._occurrences(root))
        there = [place for place, names in found if self._is_in(place.file, names)]
        if len(there) == 1:
            return there[0]
        if there:
            places = ", ".join(f"{place.file}:{place.line + 1}" for place in there)
            raise Misfit(
                f"{self.name}: its lines are in {self.definition} more than once ({places}); add "
                "the line before or after them, or write FILE:NAME for a name that two files have"
            )
        others = sorted({f"{names[-1]} ({place.file})" for place, names in found if names})
        advice = (
            f"they are in {', '.join(others)}: name that"
            if others
            else "if they were rewritten, change what took their place in the same way"
        )
        raise Misfit(f"{self.name}: {self.definition} has no such lines; {advice}")

    @contextmanager
    def applied(self, root: Path) -> Iterator[Path]:
        """Changes the file that it is about for the length of a `with` block; yields its path.

        Raises:
            Misfit: It does not fit.
        """
        place = self.find(root)
        path = root / place.file
        before = path.read_text("utf-8")
        lines = before.splitlines()
        new = [place.indent + line if line else "" for line in self.new]
        lines[place.line : place.line + len(self.old)] = new
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        try:
            yield path
        finally:
            path.write_text(before, "utf-8")

    def _is_in(self, file: str, names: list[str]) -> bool:
        """Whether the mutant names a file, or one of some definitions there."""
        named_file, _, name = self.definition.rpartition(":")
        if self.definition.endswith((".py", ".lua")):
            named_file, name = self.definition, ""
        in_file = not named_file or f"/{file}".endswith(f"/{named_file}")
        return in_file and (not name or name in names)

    def _occurrences(self, root: Path) -> Iterator[tuple[Place, list[str]]]:
        """Yields each place of its lines, and the definitions that it is in, the innermost last."""
        folder, suffix = LISTS[self.source]
        for path in sorted((root / folder).rglob(f"*{suffix}")):
            text = path.read_text("utf-8")
            if self.old[0] not in text:
                continue
            file, lines = path.relative_to(root).as_posix(), text.splitlines()
            for number in range(len(lines) - len(self.old) + 1):
                if (indent := self._indent_at(lines, number)) is not None:
                    after = number + len(self.old)
                    yield Place(file, number, indent), _around(number, after, suffix, text)

    def _indent_at(self, lines: list[str], number: int) -> str | None:
        """Returns what is before its lines if they stand there, else None."""
        indent = lines[number][: len(lines[number]) - len(self.old[0])]
        here = lines[number : number + len(self.old)]
        expected = [indent + line if line else "" for line in self.old]
        return indent if here == expected and not indent.strip() else None


def _around(first: int, after: int, suffix: str, text: str) -> list[str]:
    """Returns the definitions that hold some lines of a file."""
    known = definitions(suffix, text)
    return [name for name, begin, end in known if begin <= first and after <= end]


def load() -> list[Mutant]:
    """Returns all mutants."""
    return [
        parse(block, name)
        for name in LISTS
        for block in (HERE / name).read_text("utf-8").split("\n@ ")[1:]
    ]


def parse(block: str, source: str) -> Mutant:
    """Reads one block of a list, without its first `@`."""
    head, what, *changed = block.rstrip("\n").split("\n")
    name, definition = head.split()
    text = textwrap.dedent("".join(f"{line[1:]}\n" for line in changed))
    signs = [line[:1] for line in changed]
    old, new = (
        tuple(line for line, sign in zip(text.splitlines(), signs, strict=True) if sign == wanted)
        for wanted in "-+"
    )
    return Mutant(name, definition, what.removeprefix("# "), old, new, source)
