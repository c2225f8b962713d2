"""Servers that accept connections and never answer, or close them: no worker or caller waits."""

from __future__ import annotations

import importlib
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from celery import Celery as CeleryApp
from kombu import Connection, Queue

from redis_batches import batched_task
from redis_batches.app.publisher import Publisher
from redis_batches.app.state import runtime_of
from redis_batches.testing.server import EmbeddedServer
from tests.support.ledger import ledger, noted
from tests.support.processes import Cluster
from tests.support.proxy import LossyProxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import wait_until

APP = "tests.integration.apps.many"


@pytest.fixture(scope="module")
def store_server() -> Iterator[EmbeddedServer]:
    """Where requests wait."""
    with EmbeddedServer() as started:
        yield started


@pytest.fixture
def shop(
    cluster: Cluster, store_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """The module of the app, with a store of its own that is empty."""
    with redis.Redis.from_url(store_server.url) as client:
        client.flushall()
    cluster.env["TEST_STORE"] = store_server.url
    monkeypatch.setenv("TEST_STORE", store_server.url)
    return importlib.import_module(APP)


@contextmanager
def stopped(server: EmbeddedServer) -> Iterator[None]:
    """Lets a server accept connections, and answer none."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextmanager
def silenced(broker: str) -> Iterator[tuple[LossyProxy, str]]:
    """Gives a way to the broker that can be made to swallow everything, and its URL."""
    parts = urlsplit(broker)
    assert parts.port is not None
    proxy = LossyProxy(parts.port)
    login = f"{parts.username}:{parts.password}@" if parts.username else ""
    try:
        yield proxy, parts._replace(netloc=f"{login}127.0.0.1:{proxy.port}").geturl()
    finally:
        proxy.close()


def test_other_tasks_go_on_while_the_store_hangs(
    cluster: Cluster, shop: ModuleType, store_server: EmbeddedServer
) -> None:
    """With many batch tasks, messages that call them by name, and one line in the log."""
    worker = cluster.worker()
    for task in shop.many:
        task.delay()
    wait_until(lambda: len(ledger()) == len(shop.many), description="all batches ran")

    with stopped(store_server):
        for task in shop.many:
            shop.app.send_task(task.name)
        for number in range(20):
            shop.plain.delay(number)
            wait_until(
                lambda: len(noted("plain")) > number,  # noqa: B023
                description="a plain task ran",
            )
        worker.wait_for("cannot sweep")
        assert worker.output().count("cannot sweep") == 1
        shop.app.control.ping(timeout=5, limit=1)
    wait_until(lambda: len(ledger()) == 2 * len(shop.many), description="what arrived ran")
    assert "Traceback" not in worker.output()


def test_a_task_with_thousands_of_queues_holds_up_no_other(
    cluster: Cluster, shop: ModuleType
) -> None:
    """Each of them needs a doorbell of its own, all at the worker's start."""
    queues = 2000
    for number in range(queues):
        shop.many[0].apply_async((number,), queue=f"queue-{number}")
    shop.many[1].delay()
    shop.plain.delay(0)
    cluster.worker(ready=False)
    wait_until(lambda: noted("plain") and ledger(), description="the others ran")
    with redis.Redis.from_url(cluster.env["TEST_BROKER"]) as client:

        def rung() -> int:
            return sum(1 for _ in client.scan_iter("queue-*", count=1000))

        assert rung() < queues
        wait_until(lambda: rung() == queues, 60, description="all were rung for")


@pytest.mark.parametrize("command", ["starts", "ends"])
def test_a_worker_comes_and_goes_while_the_store_hangs(
    cluster: Cluster, shop: ModuleType, store_server: EmbeddedServer, command: str
) -> None:
    """It starts without it, and is registered when it is back; it ends without it, too."""
    if command == "ends":
        worker = cluster.worker()
        with stopped(store_server):
            worker.wait_for("cannot sweep")
            worker.signal(signal.SIGTERM)
            worker.wait_for_end()
        return
    with stopped(store_server):
        worker = cluster.worker()
        worker.wait_for("cannot register the batch tasks yet")
    wait_until(
        lambda: len(runtime_of(shop.app).registry.read()) == len(shop.many),
        description="the tasks are registered",
    )


def test_other_tasks_go_on_while_the_broker_takes_no_doorbells(
    cluster: Cluster, shop: ModuleType
) -> None:
    """Sweeps, incoming calls and plain tasks of the worker do not wait; then all batches run."""
    with silenced(cluster.env["TEST_BROKER"]) as (proxy, url):
        # Celery itself would wait for the broker to take its events.
        quiet = ("--without-heartbeat", "--without-gossip", "--without-mingle")
        worker = cluster.worker(*quiet, TEST_WRITE_BROKER=url)
        shop.many[0].delay()
        wait_until(ledger, description="a batch ran")
        proxy.silent = True
        for task in shop.many:
            for number in range(5):
                shop.app.send_task(task.name, (number,))
        for number in range(20):
            shop.plain.delay(number)
            wait_until(
                lambda: len(noted("plain")) > number,  # noqa: B023
                description="a plain task ran",
            )
        worker.wait_for("cannot ring for")
        proxy.silent = False

        def ran() -> int:
            return sum(len(run["ids"]) for run in ledger())

        wait_until(lambda: ran() == 1 + 5 * len(shop.many), 60, description="everything ran")
        assert worker.output().count("cannot ring for") == 1


def test_a_caller_does_not_wait_for_a_silent_broker(
    broker: str, store_server: EmbeddedServer, namespace: str
) -> None:
    """Its calls are stored; it waits once for a while, and then not at all."""
    with silenced(broker) as (proxy, url):
        app = CeleryApp("caller", broker=url, set_as_current=False)
        app.conf.update(redis_batches_url=store_server.url, redis_batches_namespace=namespace)

        @batched_task(flush_every=5, flush_interval=60, app=app, name=f"{namespace}.click")
        def click(requests: object) -> None:
            """Never runs."""

        click.delay(0)
        click.delay_many((number,) for number in range(9))
        proxy.silent = True
        click.delay_many((number,) for number in range(100))
        for number in range(100):
            click.delay(number)

        assert click.stats()["waiting"] == 210
        app.close()


def test_a_pool_process_that_ends_takes_no_connection_along(
    cluster: Cluster, shop: ModuleType, rabbitmq: RabbitMQ
) -> None:
    """The main process rings after it as before: nothing waits for the next sweep."""
    rabbitmq.purge("celery")
    cluster.env["TEST_BROKER"] = rabbitmq.url
    worker = cluster.worker("--max-tasks-per-child", "1", concurrency=1)
    task = shop.many[0]
    for number in range(6):
        # Too few to be rung for by their caller.
        task.delay(number)
        wait_until(lambda: len(ledger()) > number, description="a batch ran")  # noqa: B023

    assert len({run["pid"] for run in ledger()}) == 6
    assert "cannot ring for" not in worker.output()


def test_a_connection_that_was_closed_meanwhile_is_replaced(rabbitmq: RabbitMQ) -> None:
    """RabbitMQ would take what is written then, and lose it without an error."""
    rabbitmq.purge("closed")
    app = CeleryApp("closed", broker=rabbitmq.url, set_as_current=False)
    publisher, used = Publisher(app), []

    def send(producer: Any) -> None:
        used.append(producer)
        producer.publish("", routing_key="closed", declare=[Queue("closed")])

    publisher.publish(send)
    publisher.publish(send)
    used[0].connection.connection.sock.shutdown(socket.SHUT_RDWR)
    publisher.publish(send)

    assert used[0] is used[1] is not used[2]
    with Connection(rabbitmq.url) as connection:
        declared = wait_until(
            lambda: (
                (found := Queue("closed").bind(connection).queue_declare(passive=True))
                and found.message_count == 3
            ),
            description="three messages arrived",
        )
    assert declared
    app.close()
