"""Each canvas has the calls, ids and outcomes that are written down of it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from celery.canvas import Signature

from tests.chaos import flows


def ids_of(canvas: Any) -> set[str]:
    """The ids that a canvas gives its calls."""
    found: set[str] = set()
    waiting: list[Any] = [canvas]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Signature) and each.get("options", {}).get("task_id"):
            found.add(each["options"]["task_id"])
        if isinstance(each, dict):
            waiting.extend(each.values())
        elif isinstance(each, (list, tuple)):
            waiting.extend(each)
    return found


@pytest.mark.parametrize("seed", range(60))
def test_what_is_written_down_is_what_is_called(seed: int) -> None:
    """No call of a canvas is missing, and each has the id under which it is looked for."""
    flow = flows.make_flow("flow", random.Random(seed))

    called = [line["call"] for line in flow.lines]
    assert ids_of(flow.canvas) == set(called)
    assert {*flow.waits, *flow.revocable} <= {*called}
    assert any(line["sent"] for line in flow.lines)


def test_what_follows_a_failure_fails_with_it() -> None:
    """A step that is never called is told what failed the one before it."""
    maker = flows.Maker("flow", random.Random(1))

    _, outcome = maker.step(("FAILURE", "Refused"))

    assert outcome == ("FAILURE", "Refused")
