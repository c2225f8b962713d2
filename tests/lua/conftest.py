"""Fixtures of the scripts' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from redis_batches.buffer.store import Store
from redis_batches.core.settings import Settings
from redis_batches.testing.clock import Clock
from tests.support.stage import Stage
from tests.support.steps import read


@pytest.fixture
def sound(store: Store) -> Iterator[None]:
    """Checks, after a test, what must be true whatever it did: one place for each request, &c."""
    yield
    read(store).check()


@pytest.fixture
def stage(shared_url: str, namespace: str, clock: Clock) -> Iterator[Stage]:
    """A task on a real server, with requests in every place."""
    with redis.Redis.from_url(shared_url) as client:
        yield Stage(Store(client, Settings(namespace=namespace), "shop.click", clock), clock)
        client.delete(*client.keys("rb:{" + namespace + "*"))
