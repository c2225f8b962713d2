"""Servers, clients and namespaces for every kind of test."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import fakeredis
import pytest
import redis

from redis_batches.buffer.store import Store
from redis_batches.core.settings import Settings
from redis_batches.testing.clock import Clock
from redis_batches.testing.server import EmbeddedServer, server_url


@pytest.fixture(scope="session")
def shared_url() -> Iterator[str]:
    """The URL of one real server for all tests that keep to a namespace of their own."""
    with server_url() as url:
        yield url


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """A real server of the test's own."""
    with EmbeddedServer() as started:
        yield started


@pytest.fixture(params=["fakeredis", "real"])
def client(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    """A connection to a fake and to a real server: a test that takes it runs on both."""
    if request.param == "fakeredis":
        made: redis.Redis = fakeredis.FakeRedis()
    else:
        made = redis.Redis.from_url(request.getfixturevalue("shared_url"))
    yield made
    made.close()


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture
def stray_keys(client: redis.Redis, namespace: str) -> Iterator[None]:
    """Fails a test that leaves a key other than counters and tombstones behind."""
    yield
    left = {key.decode().rpartition(":")[2] for key in client.keys("rb:{" + namespace + "*")}
    assert left <= {"stats", "done", "revoked", "tasks"}, "a test left keys behind"


@pytest.fixture
def clock() -> Clock:
    """An injected clock."""
    return Clock()


@pytest.fixture
def store(client: redis.Redis, namespace: str, clock: Clock) -> Store:
    """The store of a task, with an injected clock."""
    return Store(client, Settings(namespace=namespace), "shop.click", clock)
