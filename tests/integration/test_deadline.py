"""A server that hangs, in whatever way: `delay()` fails when the deadline says, not much later."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from redis_batches import Batches, SimpleRequest, StoreError, batched_task
from redis_batches.testing.server import EmbeddedServer
from tests.support import raw

DEADLINE, TIMEOUT = 1.5, 0.5
#: Far less than nested retries would take, and more than a busy machine adds.
LATEST = DEADLINE + TIMEOUT + 2


def make_task(url: str, **settings: Any) -> Batches:
    """Returns a batch task whose requests wait at a URL."""
    app = Celery(broker="memory://", set_as_current=False)
    seconds = {"redis_batches_deadline": DEADLINE, "redis_batches_timeout": TIMEOUT}
    app.conf.update(redis_batches_url=url, **(seconds | settings))

    @batched_task(100, 10, app=app, name=f"click-{id(app)}")
    def click(requests: list[SimpleRequest]) -> None: ...

    return click


@contextmanager
def mute() -> Iterator[int]:
    """A port that takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield int(listener.getsockname()[1])


@contextmanager
def full() -> Iterator[int]:
    """A port whose queue of connections is full, so that none is answered."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.connect(listener.getsockname())
        yield int(listener.getsockname()[1])


@contextmanager
def stopped(server: EmbeddedServer) -> Iterator[None]:
    """Pauses a server: the kernel still takes connections and bytes for it."""
    assert server.pid
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def call_in_vain(task: Batches, port: int) -> None:
    """Calls; the error has to name the server, and to come in time."""
    began = time.monotonic()
    with pytest.raises(StoreError, match=rf"127\.0\.0\.1:{port} could not be reached") as caught:
        task.delay()
    assert time.monotonic() - began < LATEST
    assert isinstance(caught.value, OperationalError)


@pytest.mark.parametrize("kind", [mute, full])
def test_a_server_that_hangs_is_an_error_in_time(kind: Any) -> None:
    """It takes connections and is silent; or it does not even take them."""
    with kind() as port:
        call_in_vain(make_task(f"redis://127.0.0.1:{port}/0"), port)


def test_a_timeout_is_cut_to_what_is_left() -> None:
    """A single reply may take longer than a whole call, as far as its setting goes."""
    with mute() as port:
        call_in_vain(make_task(f"redis://127.0.0.1:{port}/0", redis_batches_timeout=30), port)


def test_stats_and_revoke_end_in_time_too() -> None:
    """Whatever asks Redis."""
    with mute() as port:
        task = make_task(f"redis://127.0.0.1:{port}/0", redis_batches_retries=30)
        for ask in (
            task.stats,
            task.flush,
            task.inspector.list,
            lambda: task.delay_many([(1,)] * 700),
            task.AsyncResult("some-id").revoke,
        ):
            began = time.monotonic()
            with pytest.raises(StoreError, match=f"127.0.0.1:{port} could not be reached"):
                ask()
            assert time.monotonic() - began < LATEST


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Lets so much time have passed, as redis-py and our connections see it."""
    plain = time.monotonic
    monkeypatch.setattr("redis_batches.driver.pool.monotonic", lambda: plain() + seconds)
    monkeypatch.setattr(time, "monotonic", lambda: plain() + seconds)


@pytest.mark.parametrize("idle", [0, 31])
def test_a_server_that_stops_is_an_error_in_time(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, idle: float
) -> None:
    """Connections that were alive a moment ago, or half a minute ago, are silent."""
    task = make_task(server.url)
    for _ in range(3):
        task.delay()
    task.stats()
    with stopped(server), monkeypatch.context() as patch:
        if idle:
            later(patch, idle)
        call_in_vain(task, server.port)
    assert task.delay()


def test_threads_do_not_wait_for_the_deadlines_of_others(server: EmbeddedServer) -> None:
    """Calls that share script calls: each has its own deadline, from its own beginning."""
    task = make_task(server.url, redis_batches_deadline=6, redis_batches_retries=100)
    task.delay()
    took: list[float] = []

    def call() -> None:
        began = time.monotonic()
        with suppress(StoreError):
            task.delay()
        took.append(time.monotonic() - began)

    threads = [threading.Thread(target=call) for _ in range(16)]
    with stopped(server):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(took) == 16
    # A second deadline would end after 12 seconds.
    assert max(took) < 10


def test_threads_of_several_queues_do_not_wait_for_each_other(server: EmbeddedServer) -> None:
    """Calls that cannot share a script call, neither."""
    task = make_task(server.url, redis_batches_deadline=6, redis_batches_retries=100)
    task.delay()
    took: list[float] = []

    def call(number: int) -> None:
        began = time.monotonic()
        with suppress(StoreError):
            task.apply_async((), queue=f"queue-{number}")
        took.append(time.monotonic() - began)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    with stopped(server):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(took) == 8
    # A second deadline would end after 12 seconds.
    assert max(took) < 10


def test_each_try_of_a_retry_policy_has_the_deadline() -> None:
    """How often is the caller's to say; each try ends, and the errback sees it."""
    seen: list[Exception] = []
    policy = {
        "max_retries": 2,
        "interval_start": 0,
        "errback": lambda exc, pause: seen.append(exc),
    }
    with mute() as port:
        task = make_task(f"redis://127.0.0.1:{port}/0")
        began = time.monotonic()
        with pytest.raises(StoreError, match="could not be reached"):
            task.apply_async((), retry=True, retry_policy=policy)
    assert len(seen) == 2
    assert time.monotonic() - began < 3 * LATEST


def test_half_open_connections_do_not_use_up_the_tries(server: EmbeddedServer) -> None:
    """One silent connection is enough to distrust all that are idle."""
    task = make_task(server.url, redis_batches_deadline=10)
    client: Any = raw.client(task._runtime.store(task.name))
    task.delay()
    pool = client.connection_pool
    taken = [pool.take() for _ in range(6)]
    for connection in taken:
        # As if a firewall had dropped it: nothing comes back any more.
        mine, self_ = socket.socketpair()
        connection._sock.close()
        connection._sock = mine
        connection._parser.on_connect(connection)
        mine.settimeout(TIMEOUT)
        connection.kept_alive = self_
        pool.keep(connection, answered=True)

    assert task.delay()
