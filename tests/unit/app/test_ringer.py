"""Doorbells that a thread rings for a worker's event loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from redis_batches.app import ringer as module
from redis_batches.app.ringer import MOST_BELLS, Cause, Ringer
from redis_batches.core.triggers import Bells


class Belfry:
    """Notes what is rung, when a test lets it."""

    def __init__(self) -> None:
        self.rung: list[tuple[str, str, int]] = []
        self.open = threading.Event()
        self.reached = threading.Event()

    def __call__(self, task: str, bells: Bells, cause: Cause) -> None:
        """Rings."""
        self.reached.set()
        self.open.wait(10)
        if cause.group == "broken":
            raise RuntimeError("odd")
        self.rung.append((task, cause.group, bells.count))


@pytest.fixture
def belfry() -> Belfry:
    """What rings."""
    return Belfry()


@pytest.fixture
def ringer(belfry: Belfry) -> Iterator[Ringer]:
    """A ringer that has begun with a doorbell of `first`, and is held up there."""
    made = Ringer(belfry)
    made.post("first", bells("group"))
    assert belfry.reached.wait(10)
    yield made
    belfry.open.set()
    assert made.drain(10)


def bells(group: str, count: int = 1, rung_ms: int = 5) -> Bells:
    """Returns doorbells."""
    return Bells(group, "", count, rung_ms)


def finish(ringer: Ringer, belfry: Belfry) -> list[tuple[str, str, int]]:
    """Lets everything be rung; returns what was, after the first one."""
    belfry.open.set()
    assert ringer.drain(10)
    return belfry.rung[1:]


def test_tasks_take_turns(ringer: Ringer, belfry: Belfry) -> None:
    """One with many groups does not hold up the others; of a task, the oldest is first."""
    for number in range(100):
        ringer.post("many", bells(str(number)))
    ringer.post("few", bells("a"))
    ringer.post("few", bells("b"))

    rung = finish(ringer, belfry)
    assert rung[:4] == [("many", "0", 1), ("few", "a", 1), ("many", "1", 1), ("few", "b", 1)]
    assert rung[4:] == [("many", str(number), 1) for number in range(2, 100)]


def test_doorbells_of_a_group_are_rung_together(ringer: Ringer, belfry: Belfry) -> None:
    """No more than may be out; with another priority, or by force, they are others."""
    for _ in range(3):
        ringer.post("task", bells("few", 2))
        ringer.post("task", bells("many", 10))
    ringer.post("task", bells("few"), priority=3)
    ringer.post("task", bells("few"), force=True)

    assert finish(ringer, belfry) == [
        ("task", "few", 6),
        ("task", "many", MOST_BELLS),
        ("task", "few", 1),
        ("task", "few", 1),
    ]


def test_late_doorbells_count_as_old(ringer: Ringer) -> None:
    """Those that are out would seem lost if these were answered first, as younger ones."""
    ringer.post("task", bells("group", rung_ms=5))
    ringer.post("task", bells("group", rung_ms=9))
    assert ringer._waiting["task"][Cause("group")] == bells("group", 2, 5)


def test_what_finds_no_place_is_left_to_the_next_sweep(
    ringer: Ringer, belfry: Belfry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever posts it is told, and waits for nothing."""
    monkeypatch.setattr(module, "MOST", 2)
    posted = [ringer.post("task", bells(name)) for name in "abc"]

    assert posted == [True, True, False]
    assert [group for _, group, _ in finish(ringer, belfry)] == ["a", "b"]
    assert ringer.post("task", bells("d"))


def test_an_error_stops_no_other(
    ringer: Ringer, belfry: Belfry, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged."""
    ringer.post("task", bells("broken"))
    ringer.post("task", bells("sound"))

    assert finish(ringer, belfry) == [("task", "sound", 1)]
    assert [each.levelno for each in caplog.records] == [logging.ERROR]


def test_the_end_of_a_process_waits_for_a_moment(ringer: Ringer) -> None:
    """And not for ever."""
    ringer.post("task", bells("group"))
    assert not ringer.drain(0.01)
