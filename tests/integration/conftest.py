"""Real workers around a real server."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from redis_batches.testing.server import EmbeddedServer
from tests.support.processes import Cluster
from tests.support.rabbitmq import RabbitMQ, find_rabbitmq

#: The app of a test module, unless it names another: `APP = "tests.integration.apps.NAME"`.
DEFAULT_APP = "tests.integration.apps.shop"


@pytest.fixture(scope="session")
def cluster_server() -> Iterator[EmbeddedServer]:
    """The broker, backend and store of all clusters, which run one after another."""
    with EmbeddedServer() as started:
        yield started


@contextmanager
def clusters(module: Any, server: EmbeddedServer, folder: Path) -> Iterator[Cluster]:
    """Makes a cluster for the app of a test module around an empty server, and ends it."""
    app = getattr(module, "APP", DEFAULT_APP)
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    made = Cluster(server, app, folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.env.items():
            patch.setenv(name, value)
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """A RabbitMQ node of the tests' own; it takes some seconds to start."""
    executable = find_rabbitmq()
    if executable is None:
        reason = "RabbitMQ is not installed: apt-get install rabbitmq-server"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with RabbitMQ(executable) as started:
        yield started


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(
    request: pytest.FixtureRequest, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The URL of the cluster's broker: a test that takes it runs with either kind."""
    if request.param == "rabbitmq":
        node: RabbitMQ = request.getfixturevalue("rabbitmq")
        node.purge("celery", "clicks")
        cluster.env["TEST_STORE"] = cluster.env["TEST_BROKER"]
        cluster.env["TEST_BROKER"] = node.url
        for name in ("TEST_STORE", "TEST_BROKER"):
            monkeypatch.setenv(name, cluster.env[name])
    return cluster.env["TEST_BROKER"]


@pytest.fixture
def cluster(
    request: pytest.FixtureRequest, cluster_server: EmbeddedServer, tmp_path: Path
) -> Iterator[Cluster]:
    """Starts workers and beat for the app of the test module, and ends them."""
    with clusters(request.module, cluster_server, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def lasting_cluster(
    request: pytest.FixtureRequest,
    cluster_server: EmbeddedServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    """The same for all tests of a module: starting workers is what takes long."""
    with clusters(request.module, cluster_server, tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def shop(request: pytest.FixtureRequest, cluster: Cluster) -> Any:
    """The module of the app, loaded in this process as a caller of the cluster's workers."""
    return importlib.import_module(getattr(request.module, "APP", DEFAULT_APP))
