"""Waiting for what other processes and threads do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def wait_until(check: Callable[[], _T], timeout: float = 30.0, *, description: str) -> _T:
    """Returns the first truthy answer of `check`, asked until the time is up."""
    deadline = time.monotonic() + timeout
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {description}")
        time.sleep(0.01)
