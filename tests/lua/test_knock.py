"""knock: beat's sweep messages do not pile up while no worker takes them."""

from __future__ import annotations

import pytest
import redis

from redis_batches.buffer.registry import Registry
from redis_batches.testing.clock import Clock


@pytest.fixture
def registry(client: redis.Redis, namespace: str, clock: Clock) -> Registry:
    """What the tasks of a namespace share."""
    return Registry(client, namespace, clock)


def test_an_answered_message_lets_beat_send_the_next(registry: Registry) -> None:
    """As often as beat ticks."""
    for _ in range(3):
        assert registry.may_send()
        registry.answered()


def test_a_day_without_workers_costs_few_messages(registry: Registry, clock: Clock) -> None:
    """The pause doubles up to ten minutes; a worker that answers ends it."""
    sent = 0
    for _ in range(24 * 360):
        sent += registry.may_send()
        clock.advance(10_000)
    assert 24 * 6 <= sent <= 24 * 6 + 10

    registry.answered()
    assert registry.may_send()
    clock.advance(1000)
    assert registry.may_send()


def test_a_clock_that_went_back_does_not_silence_beat(registry: Registry, clock: Clock) -> None:
    """What lies in the future is not waited for."""
    assert registry.may_send()
    clock.advance(-3_600_000)
    assert registry.may_send()
