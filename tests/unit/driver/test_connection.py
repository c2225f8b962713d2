"""How a client copes with a server that is not there."""

from __future__ import annotations

import pytest
import redis

from redis_batches.driver.connection import connect


def test_a_refused_connection_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that restarts is away for a moment, and nobody shall notice."""
    waits: list[float] = []
    monkeypatch.setattr("redis_batches.driver.patience.sleep", waits.append)
    client = connect("redis://127.0.0.1:1", timeout=1, retries=3)

    with pytest.raises(redis.ConnectionError):
        client.get("key")

    assert len(waits) == 3
