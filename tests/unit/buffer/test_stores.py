"""The stores of a process: each is made once, and for this process."""

from __future__ import annotations

import os
import threading
from typing import Any

import fakeredis
import pytest
from celery import Celery

from redis_batches.app.state import Runtime
from tests.support import raw

WAYS = ("store", "single_try_store", "sweeping_store", "sweepers_store")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The clients that were made."""
    made: list[Any] = []

    def connect(*_: Any) -> Any:
        made.append(fakeredis.FakeRedis())
        return made[-1]

    monkeypatch.setattr("redis_batches.buffer.stores.connect", connect)
    return made


@pytest.fixture
def runtime() -> Runtime:
    """A process that has asked for nothing yet."""
    return Runtime(Celery(broker="redis://"))


@pytest.mark.parametrize("way", WAYS)
def test_a_store_is_made_once(runtime: Runtime, opened: list[Any], way: str) -> None:
    """Not for each message that arrives: one keeps what it packed for the next."""
    store_of = getattr(runtime, way)

    assert store_of("click") is store_of("click")
    assert store_of("click") is not store_of("view")
    assert raw.client(store_of("click")) is raw.client(store_of("view"))
    assert len(opened) == 1


def test_each_way_to_wait_has_connections_of_its_own(runtime: Runtime, opened: list[Any]) -> None:
    """What keeps an event loop waiting waits for no replica."""
    runtime.settings = runtime.settings.__class__(wait_replicas=1)
    stores = [getattr(runtime, way)("click") for way in WAYS]

    assert len({id(raw.client(store)) for store in stores}) == len(opened) == len(WAYS)
    assert [store.settings.wait_replicas for store in stores] == [1, 1, 0, 0]


@pytest.mark.parametrize("way", WAYS)
def test_threads_that_come_first_get_the_same(
    runtime: Runtime, opened: list[Any], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """However late the first of them has its connection."""
    both, found = threading.Barrier(2), list[Any]()
    connect = "redis_batches.buffer.stores.connect"
    monkeypatch.setattr(connect, lambda *_: (both.wait(10), fakeredis.FakeRedis())[1])

    def ask() -> None:
        found.append(getattr(runtime, way)("click"))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert found[0] is found[1] is getattr(runtime, way)("click")


@pytest.mark.parametrize("way", WAYS)
def test_a_forked_child_makes_its_own(
    runtime: Runtime, opened: list[Any], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """On connections that are not its parent's."""
    inherited = getattr(runtime, way)("click")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    own = getattr(runtime, way)("click")

    assert own is not inherited
    assert raw.client(own) is not raw.client(inherited)
    assert own is getattr(runtime, way)("click")


def test_a_heartbeats_stores_share_its_threads_connection(
    runtime: Runtime, opened: list[Any]
) -> None:
    """And each is made once, too."""
    store_of = runtime._stores.of_one_thread()

    assert store_of("click") is store_of("click")
    assert raw.client(store_of("click")) is raw.client(store_of("view")) is opened[0]
