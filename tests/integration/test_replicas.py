"""`redis_batches_wait_replicas`: what was answered outlives a failover with a partition."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from redis_batches import Batches, NotReplicated, SimpleRequest, StoreError, batched_task
from redis_batches.testing.server import EmbeddedServer
from tests.support import raw
from tests.support.waiting import wait_until


@pytest.fixture
def replica(server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """A replica of the test's server."""
    with redis.Redis.from_url(server.url) as primary:
        primary.config_set("repl-diskless-sync-delay", 0)
    with EmbeddedServer() as made, redis.Redis.from_url(made.url) as client:
        client.replicaof("127.0.0.1", str(server.port))
        wait_until(
            lambda: client.info("replication").get("master_link_status") == "up",
            description="the replica follows",
        )
        yield made


def make_task(url: str, replicas: int = 1, deadline: float = 5) -> Batches:
    """Returns a batch task whose calls wait for replicas."""
    app = Celery(broker="memory://", set_as_current=False)
    app.conf.update(
        redis_batches_url=url,
        redis_batches_wait_replicas=replicas,
        redis_batches_deadline=deadline,
        redis_batches_timeout=0.5,
    )

    @batched_task(1000, 10, app=app, name=f"click-{id(app)}", ignore_result=True)
    def click(requests: list[SimpleRequest]) -> None: ...

    return click


@contextmanager
def cut_off(replica: EmbeddedServer) -> Iterator[None]:
    """Pauses a replica: what its primary writes waits in between."""
    assert replica.pid
    os.kill(replica.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(replica.pid, signal.SIGCONT)


def ids_at(server: EmbeddedServer, task: Batches) -> set[str]:
    """Returns the calls that a server has."""
    with redis.Redis.from_url(server.url) as client:
        key = raw.key(task._runtime.store(task.name), "items")
        return {name.decode() for name in client.hkeys(key)}


def test_a_call_returns_when_a_replica_has_it(
    server: EmbeddedServer, replica: EmbeddedServer
) -> None:
    """One by one, by options of their own, and many at once."""
    task = make_task(server.url)
    for call in (
        lambda: [task.delay(1)],
        lambda: [task.apply_async((1,), countdown=100)],
        lambda: [task.apply_async((1,), retry=False)],
        lambda: task.delay_many([(1,)] * 600),
    ):
        told = {result.id for result in call()}
        assert told <= ids_at(replica, task)


def test_a_call_that_no_replica_has_says_so(
    server: EmbeddedServer, replica: EmbeddedServer
) -> None:
    """It is stored, and no error that makes programs call again."""
    task = make_task(server.url, deadline=1)
    task.delay("first")
    with cut_off(replica):
        with pytest.raises(NotReplicated, match="is stored and will run, but 1 of") as caught:
            task.delay("a")
        assert not isinstance(caught.value, OperationalError)
        with pytest.raises(NotReplicated) as many:
            task.delay_many([("b",), ("c",)])
        assert len(many.value.accepted) == 2
        assert task.stats()["waiting"] == 4


def test_more_replicas_than_there_are_is_an_error(
    server: EmbeddedServer, replica: EmbeddedServer
) -> None:
    """At each call, after the deadline."""
    with pytest.raises(NotReplicated, match="1 of"):
        make_task(server.url, replicas=2, deadline=1).delay()


def test_a_call_that_is_sent_again_is_waited_for_too(
    server: EmbeddedServer, replica: EmbeddedServer
) -> None:
    """The second time writes nothing, and its connection has not written before."""
    task = make_task(server.url, deadline=1)
    task.delay("first")
    with cut_off(replica):
        with pytest.raises(NotReplicated):
            task.apply_async((), task_id="a", parent_id="before")
        raw.client(task._runtime.store(task.name)).connection_pool.disconnect()
        with pytest.raises(NotReplicated):
            task.apply_async((), task_id="a", parent_id="before")


def test_what_was_answered_outlives_a_partition_and_a_promotion(
    server: EmbeddedServer, replica: EmbeddedServer
) -> None:
    """Threads call while the replica is cut off, then the primary dies for good."""
    task = make_task(server.url, deadline=1)
    task.delay("first")
    answered: set[str] = set()
    failed: list[Exception] = []
    done = threading.Event()

    def call() -> None:
        while not done.is_set():
            try:
                answered.add(task.delay(1).id)
            except (NotReplicated, StoreError) as exc:
                failed.append(exc)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answered) > 100, description="calls are answered")
    with redis.Redis.from_url(replica.url) as client:
        # There is nobody: it keeps what it has, and gets no more.
        client.replicaof("127.0.0.1", "1")
        before = len(answered)
        wait_until(
            lambda: failed or len(answered) > before + 50,
            description="calls are not answered, or are although no replica has them",
        )
        server.kill()
        client.replicaof("NO", "ONE")
    done.set()
    for thread in threads:
        thread.join(30)

    assert answered <= ids_at(replica, task)


def test_nobody_waits_without_the_setting(server: EmbeddedServer, replica: EmbeddedServer) -> None:
    """As before."""
    task: Any = make_task(server.url, replicas=0)
    with cut_off(replica):
        assert task.delay()
