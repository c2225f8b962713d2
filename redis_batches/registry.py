"""What the tasks of a namespace share: who exists, and whether beat's sweeps are answered."""

from __future__ import annotations

import json
from typing import Any

import redis

from redis_batches.codec import text
from redis_batches.keys import NamespaceKeys
from redis_batches.refusal import translated
from redis_batches.scripts import load_scripts
from redis_batches.store import Clock, server_time


class Registry:
    """The tasks of a namespace, as the workers that serve them wrote them down.

    Args:
        client: A connection to Redis.
        namespace: The namespace.
        clock: Returns the time in ms as text, or "" for the server's.
    """

    def __init__(self, client: redis.Redis, namespace: str, clock: Clock = server_time) -> None:
        self._client = client
        self._clock = clock
        self._keys = NamespaceKeys(namespace)

    def write(self, task: str, options: dict[str, Any]) -> None:
        """Notes a task with its options."""
        with translated("register a task"):
            written = json.dumps(options, sort_keys=True)
            self._client.hset(self._keys.resolve("tasks"), task, written)

    def read(self) -> dict[str, dict[str, Any]]:
        """Returns the options of each task."""
        with translated("list the tasks"):
            found = self._client.hgetall(self._keys.resolve("tasks"))
        return {text(task): json.loads(options) for task, options in found.items()}

    def knock(self) -> bool:
        """Returns whether beat may send a sweep message; not while one waits for a worker."""
        return self._knock(opened=False) == "send"

    def open(self) -> None:
        """Notes that a worker runs a sweep message."""
        self._knock(opened=True)

    def _knock(self, *, opened: bool) -> str:
        script = load_scripts()["knock"]
        reply = script(self._client, self._keys, now_ms=self._clock(), opened=int(opened))
        return str(reply[0])
