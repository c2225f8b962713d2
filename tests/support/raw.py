"""Redis behind a store's back: what it holds, and what a test does to it."""

from __future__ import annotations

from typing import Any

from redis_batches.buffer.store import Store
from redis_batches.driver.keys import Keys


def client(store: Store) -> Any:
    """Returns the connection of a store."""
    return store._redis.client


def keys(store: Store) -> Keys:
    """Returns the keys of a store."""
    found = store._redis.keys
    assert isinstance(found, Keys)
    return found


def key(store: Store, name: str, group: str = "") -> str:
    """Returns a key of a store by its name in the scripts' headers."""
    return keys(store).resolve(name, group=group)


def run(store: Store, script: str, **values: Any) -> list[Any]:
    """Runs a script with the keys and the clock of a store."""
    return store._redis.run(script, **values)
