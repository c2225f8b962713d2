"""The tasks of a namespace, as their workers wrote them down, and as anybody may have."""

from __future__ import annotations

import logging

import pytest
import redis

from redis_batches.buffer import registry as module
from redis_batches.buffer.registry import Registry
from redis_batches.core.outage import Quiet
from redis_batches.core.triggers import Trigger
from redis_batches.driver.keys import NamespaceKeys

pytestmark = pytest.mark.usefixtures("stray_keys")

GOOD = b"10:1000"
ODD = [
    b"",
    b":",
    b"\xff",
    b"null",
    b"7",
    b"9" * 100_000,
    b'{"flush_every": 10, "interval_ms": 1000}',
    *(b"%s:1000" % value for value in (b"", b"0", b"-1", b"1.5", b"1000000000000", b"\xc2\xb2")),
    *(b"10:%s" % value for value in (b"", b"-1", b"1.5", b"1000000000000", b"\xc2\xb2")),
    b"10:1000 ",
]


@pytest.fixture
def registry(client: redis.Redis, namespace: str) -> Registry:
    """The registry of an empty namespace."""
    return Registry(client, namespace)


@pytest.fixture
def key(namespace: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the tasks are; nothing was said of them yet."""
    monkeypatch.setattr(module, "QUIET", Quiet())
    return NamespaceKeys(namespace).resolve("tasks")


def test_what_is_written_is_read(registry: Registry) -> None:
    """Each task with its own trigger; a later worker's options count."""
    registry.write({})
    assert registry.read() == {}
    registry.write({"one": Trigger(10, 0), "other": Trigger(1, 604_800_000)})
    registry.write({"other": Trigger(10_000, 50)})
    assert registry.read() == {"one": Trigger(10, 0), "other": Trigger(10_000, 50)}


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:50])
def test_an_odd_entry_costs_only_itself(
    client: redis.Redis,
    registry: Registry,
    key: str,
    odd: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is named once, with what to do."""
    registry.write({"sound": Trigger(10, 1000)})
    client.hset(key, "odd.task", odd)  # type: ignore[arg-type]

    assert registry.read() == {"sound": Trigger(10, 1000)}
    assert registry.read() == {"sound": Trigger(10, 1000)}
    (line,) = caplog.records
    assert line.levelno == logging.ERROR
    text = line.getMessage()
    assert "odd.task" in text
    assert "HDEL it there" in text
    assert key in text
    assert len(text) < 600


def test_an_odd_name_costs_only_itself(client: redis.Redis, registry: Registry, key: str) -> None:
    """No task can have it."""
    registry.write({"sound": Trigger(10, 1000)})
    client.hset(key, b"\xff\xfe", GOOD)  # type: ignore[arg-type]
    assert registry.read() == {"sound": Trigger(10, 1000)}


def test_a_newer_worker_may_write_more(client: redis.Redis, registry: Registry, key: str) -> None:
    """As in a rolling deploy."""
    client.hset(key, "newer", GOOD + b":7:more")
    assert registry.read() == {"newer": Trigger(10, 1000)}
