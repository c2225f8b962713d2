"""Doorbells: what names a run, and what a broker that is down costs."""

from __future__ import annotations

from typing import Any

import pytest

from redis_batches import doorbell
from redis_batches.doorbell import is_token_of, new_token
from tests.properties.inprocess import in_process


def test_a_token_says_whose_run_it_names() -> None:
    """A worker takes back its own runs only: a redelivered doorbell may run elsewhere."""
    token = new_token("one@here")

    assert is_token_of(token, "one@here")
    assert not is_token_of(token, "two@here")
    assert token != new_token("one@here")


def test_a_broker_that_is_down_does_not_fail_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is stored, and a sweep rings for it."""

    def refuse(*_: Any) -> None:
        raise OSError("the broker is down")

    # The inner one ends first, and so leaves what the outer one has put there.
    with in_process(nothing, 1) as here, monkeypatch.context() as patch:
        patch.setattr(doorbell, "_publish", refuse)
        here.task.delay()

        assert here.task.stats()["waiting"] == 1


def nothing(requests: list[Any]) -> None:
    """Does nothing."""
