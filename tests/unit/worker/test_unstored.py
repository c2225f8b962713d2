"""What is held while it cannot be stored, with a timer that the test fires."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from redis_batches.core.errors import BacklogFull, Unanswered
from redis_batches.core.outage import Quiet
from redis_batches.core.requests import Group
from redis_batches.worker.unstored import Unstored


class Consumer:
    """As much of Celery's consumer as a hold needs."""

    def __init__(self) -> None:
        self.connection = object()
        self.initial_prefetch_count = 1
        self.timers: list[Callable[[], None]] = []
        self.timer = SimpleNamespace(call_after=lambda _, tick: self.timers.append(tick))
        self.qos = SimpleNamespace(
            value=1, increment_eventually=lambda: None, decrement_eventually=lambda: None
        )

    def fire(self) -> None:
        """Calls what waits for a time."""
        self.timers.pop(0)()


def call(name: str) -> Any:
    """Returns something to store."""
    return SimpleNamespace(name=name, group=Group.of({"queue": "celery"}))


@pytest.mark.parametrize("part", ["store", "drain"])
def test_an_error_that_nobody_expects_holds_nothing_for_ever(
    part: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with its traceback; the next try stores all, in its order."""
    stored: list[str] = []
    well = False

    def store(incoming: Any) -> None:
        if not well:
            raise RuntimeError("odd") if part == "store" else BacklogFull("shop.click", 1, [])
        stored.append(incoming.name)

    def drain(_: str) -> None:
        raise RuntimeError("odd")

    consumer = Consumer()
    unstored: Unstored[Any] = Unstored(consumer, "shop.click", store, drain)
    unstored.accept(call("a"))
    unstored.accept(call("b"))
    consumer.fire()
    assert stored == []
    failed = [record for record in caplog.records if record.exc_info]
    assert [record.levelno for record in failed] == [logging.ERROR] * 2

    well = True
    consumer.fire()

    assert stored == ["a", "b"]
    assert consumer.timers == []


def test_one_outage_is_named_once_for_all_tasks(caplog: pytest.LogCaptureFixture) -> None:
    """Not once for each of them."""

    def store(_: Any) -> None:
        raise Unanswered("Redis", 5)

    consumer, quiet = Consumer(), Quiet()
    for name in "abc":
        unstored: Unstored[Any] = Unstored(consumer, name, store, lambda _: None, quiet)
        unstored.accept(call(name))
        unstored.tick()

    assert len(caplog.records) == 1
    assert "Redis did not answer" in caplog.text
