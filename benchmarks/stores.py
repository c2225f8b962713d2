"""Requests and batches through this package's own store: no worker, no broker."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import redis

from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.requests import Group, Outgoing
from redis_batches.core.settings import Settings
from redis_batches.core.triggers import Trigger
from redis_batches.driver.connection import connect
from redis_batches.testing.server import EmbeddedServer

GROUP = Group.of({"queue": "celery"})
#: An interval that no benchmark waits for.
HOUR_MS = 3_600_000
BODY = b'1\n[[],{"url":"http://example.com/0123456789"}]'


def store_at(server: EmbeddedServer, task: str = "shop.click") -> Store:
    """Returns a store with a connection as callers have it."""
    client = connect(server.url, 5, 0)
    client.ping()
    return Store(client, Settings(max_pending=10_000_000), task)


def push(store: Store, trigger: Trigger, count: int, group: Group = GROUP) -> None:
    """Stores up to 500 new requests in one script call."""
    store.push(group, trigger, outgoing(count))


def outgoing(count: int, envelope: bytes = BODY) -> list[Outgoing]:
    """Returns new requests."""
    return [Outgoing(str(uuid4()), "", None, envelope) for _ in range(count)]


def fill(store: Store, trigger: Trigger, count: int) -> None:
    """Stores requests, 500 at a time."""
    for begin in range(0, count, 500):
        push(store, trigger, min(500, count - begin))


def leased(found: object) -> Lease:
    """Returns a lease that must have been found."""
    if not isinstance(found, Lease):
        raise RuntimeError(f"nothing to claim: {found}")
    return found


def timed(step: Callable[[], Any]) -> float:
    """Returns how many microseconds a step takes, as a client sees it."""
    began = time.perf_counter()
    step()
    return (time.perf_counter() - began) * 1e6


def cpu_seconds(client: redis.Redis) -> float:
    """Returns the seconds of processor time that a server has used."""
    info: Any = client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
