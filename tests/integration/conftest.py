"""Real workers around a real server."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from redis_batches.embedded import EmbeddedServer
from tests.integration.processes import Cluster

#: The app of a test module, unless it names another: `APP = "tests.integration.apps.NAME"`.
DEFAULT_APP = "tests.integration.apps.shop"


@pytest.fixture(scope="session")
def cluster_server() -> Iterator[EmbeddedServer]:
    """The broker, backend and store of all clusters, which run one after another."""
    with EmbeddedServer() as started:
        yield started


@pytest.fixture
def cluster(
    request: pytest.FixtureRequest,
    cluster_server: EmbeddedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Cluster]:
    """Starts workers and beat for the app of the test module, and ends them."""
    app = getattr(request.module, "APP", DEFAULT_APP)
    with redis.Redis.from_url(cluster_server.url) as client:
        client.flushall()
    made = Cluster(cluster_server, app, tmp_path)
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    yield made
    made.stop()


@pytest.fixture
def shop(request: pytest.FixtureRequest, cluster: Cluster) -> Any:
    """The module of the app, loaded in this process as a caller of the cluster's workers."""
    return importlib.import_module(getattr(request.module, "APP", DEFAULT_APP))
