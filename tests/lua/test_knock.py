"""knock: beat's sweep messages do not pile up while no worker takes them."""

from __future__ import annotations

import pytest
import redis

from redis_batches.buffer.registry import Registry
from tests.support.clock import Clock


@pytest.fixture
def registry(client: redis.Redis, namespace: str, clock: Clock) -> Registry:
    """What the tasks of a namespace share."""
    return Registry(client, namespace, clock)


def test_an_answered_message_lets_beat_send_the_next(registry: Registry) -> None:
    """As often as beat ticks."""
    for _ in range(3):
        assert registry.knock()
        registry.open()


def test_a_day_without_workers_costs_few_messages(registry: Registry, clock: Clock) -> None:
    """The pause doubles up to ten minutes; a worker that opens ends it."""
    sent = 0
    for _ in range(24 * 360):
        sent += registry.knock()
        clock.advance(10_000)
    assert 24 * 6 <= sent <= 24 * 6 + 10

    registry.open()
    assert registry.knock()
    clock.advance(1000)
    assert registry.knock()


def test_a_clock_that_went_back_does_not_silence_beat(registry: Registry, clock: Clock) -> None:
    """What lies in the future is not waited for."""
    assert registry.knock()
    clock.advance(-3_600_000)
    assert registry.knock()
