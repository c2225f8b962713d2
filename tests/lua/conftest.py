"""Fixtures of the scripts' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from redis_batches.store import Store
from tests.lua.steps import read


@pytest.fixture
def sound(store: Store) -> Iterator[None]:
    """Checks, after a test, what must be true whatever it did: one place for each request, &c."""
    yield
    read(store).check()
