"""Canvases of batch tasks, each with the outcome that every call in it must have."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from celery import chain, chord, group

from tests.chaos import tasks
from tests.chaos.ledger import Outcome

#: How many parts a group or chord has.
PARTS = 4
#: How often a call in a canvas retries once, or fails.
ALONE_SHARE, REFUSED_SHARE = 0.1, 0.04
REFUSED: Outcome = ("FAILURE", "Refused")


@dataclass
class Flow:
    """A canvas that is going to be called.

    Attributes:
        canvas: What `apply_async` is called of.
        lines: What is written down of each call before: see `ledger.Call`.
        waits: Ids of the calls whose results are waited for.
        revocable: Ids of calls that may be revoked.
    """

    canvas: Any
    lines: list[dict[str, Any]] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    revocable: list[str] = field(default_factory=list)


class Maker:
    """Makes the calls of one canvas.

    Args:
        name: An id that no other canvas of the run has; those of the calls begin with it.
        dice: Decides numbers and troubles.
    """

    def __init__(self, name: str, dice: random.Random) -> None:
        self._name = name
        self._dice = dice
        self.lines: list[dict[str, Any]] = []

    def step(
        self, before: Outcome | None = None, *, sent: bool = False, fails: bool = True
    ) -> tuple[Any, Outcome]:
        """Returns a call of `add`, and how it ends.

        Args:
            before: How the step before it ends.
            sent: Whether the caller itself sends it, not a worker.
            fails: Whether it may fail.
        """
        number, lot = self._dice.randrange(1000), self._dice.random()
        trouble = tasks.REFUSED if fails and lot < REFUSED_SHARE else ""
        trouble = tasks.ALONE if lot > 1 - ALONE_SHARE else trouble
        outcome = before or ("SUCCESS", 0)
        if outcome[0] == "SUCCESS":
            outcome = REFUSED if trouble == tasks.REFUSED else ("SUCCESS", outcome[1] + number)
        key = self._write("add", outcome, sent)
        return tasks.add.s(number, call=key, trouble=trouble).set(task_id=key), outcome

    def end(self, task: Any, outcome: Outcome) -> Any:
        """Returns a call of `gather` or `note`, which ends like this."""
        key = self._write(task.name.rpartition(".")[2], outcome, False)
        return task.s(call=key).set(task_id=key)

    def parts(
        self, before: Outcome | None = None, *, sent: bool = False
    ) -> tuple[list[Any], Outcome]:
        """Returns parts of a chord, and how its body ends."""
        made = [self.step(before, sent=sent) for _ in range(PARTS)]
        failed = any(state != "SUCCESS" for _, (state, _) in made)
        values = [value for _, (_, value) in made]
        body: Outcome = ("FAILURE", "ChordError") if failed else ("SUCCESS", values)
        return [part for part, _ in made], body

    def _write(self, task: str, outcome: Outcome, sent: bool) -> str:
        key = f"{self._name}.{len(self.lines)}"
        line = {"call": key, "task": task, "expect": [outcome], "flow": self._name, "sent": sent}
        self.lines.append(line)
        return key


def steps(maker: Maker, dice: random.Random) -> Flow:
    """Three steps, each of a batch task, the last now and then of a plain one."""
    first, outcome = maker.step(sent=True)
    second, outcome = maker.step(outcome)
    third = maker.end(_some_end(dice), outcome) if dice.random() < 0.5 else maker.step(outcome)[0]
    return Flow(chain(first, second, third), maker.lines, [maker.lines[-1]["call"]])


def many(maker: Maker, dice: random.Random) -> Flow:
    """A group."""
    parts, _ = maker.parts(sent=True)
    ids = [line["call"] for line in maker.lines]
    return Flow(group(parts), maker.lines, ids, ids)


def together(maker: Maker, dice: random.Random) -> Flow:
    """A chord, whose body is a batch task or a plain one."""
    parts, outcome = maker.parts(sent=True)
    ids = [line["call"] for line in maker.lines]
    body = maker.end(_some_end(dice), outcome)
    return Flow(chord(parts, body), maker.lines, [maker.lines[-1]["call"]], ids)


def linked(maker: Maker, dice: random.Random) -> Flow:
    """A call with a link, which is of a batch task or of a plain one."""
    first, (state, value) = maker.step(sent=True)
    if state != "SUCCESS":
        return Flow(first, maker.lines, [maker.lines[0]["call"]])
    first.link(maker.end(_some_end(dice), (state, value)))
    return Flow(first, maker.lines, [maker.lines[-1]["call"]])


def deep(maker: Maker, dice: random.Random) -> Flow:
    """A step, and a chord that it starts."""
    first, outcome = maker.step(sent=True, fails=False)
    parts, body = maker.parts(outcome)
    last = maker.end(_some_end(dice), body)
    return Flow(chain(first, group(parts), last), maker.lines, [maker.lines[-1]["call"]])


Make: TypeAlias = "Callable[[Maker, random.Random], Flow]"
KINDS: tuple[Make, ...] = (steps, many, together, together, linked, deep)


def make_flow(name: str, dice: random.Random) -> Flow:
    """Returns a canvas of some kind."""
    return dice.choice(KINDS)(Maker(name, dice), dice)


def _some_end(dice: random.Random) -> Any:
    return dice.choice([tasks.gather, tasks.note])
