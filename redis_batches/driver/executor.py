"""Where a client and keys meet: runs scripts and commands by the names of their keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, TypeAlias

import redis

from redis_batches.driver.patience import patiently
from redis_batches.driver.scripts import BoundScript, Resolves, load_scripts
from redis_batches.driver.server_errors import translated

#: A connection to Redis, for those who pass it on and use it for nothing.
Client: TypeAlias = redis.Redis
Clock: TypeAlias = Callable[[], str]


def server_time() -> str:
    """Lets a script ask the server for the time; tests pass a clock of their own instead."""
    return ""


class Executor:
    """Asks Redis for what its owner says: a task's store, or what a namespace shares.

    Every method raises StoreError if Redis could not be reached, or refused.

    Args:
        client: A connection to Redis.
        keys: Knows the keys by the names that the scripts' headers give them.
        clock: Returns the time in ms as text, or "" for the server's.
    """

    def __init__(self, client: Client, keys: Resolves, clock: Clock = server_time) -> None:
        self.client = client
        self.keys = keys
        self.clock = clock
        self._bind_once = lru_cache(maxsize=64)(partial(_bind, keys))

    def run(self, script: str, **values: Any) -> list[Any]:
        """Runs a script; returns its reply, whose first element is a word.

        Args:
            script: Its name.
            values: One per ARGV slot, by name, and the group and token that its keys are of.
        """
        return load_scripts()[script](self.client, self.keys, now_ms=self.clock(), **values)

    def run_alike(
        self,
        script: str,
        rest: Sequence[Any],
        age: Callable[[], int],
        replicas: int = 0,
        **values: Any,
    ) -> tuple[list[Any], int]:
        """Runs a script whose values come again and again, so that they are packed only once.

        Args:
            script: Its name.
            rest: The list at the end of ARGV, which is another one each time.
            age: Knows when it was first sent.
            replicas: How many have to have what it wrote.
            values: As of `run`; each can be hashed.

        Returns:
            The reply, and how many of the replicas are missing when the time is up.
        """
        bound = self._bind_once(script, now_ms=self.clock(), **values)
        if not replicas:
            return bound(self.client, rest, age), 0
        key = self._key("stats")
        *reply, missing = bound.replicated(self.client, rest, replicas, key, age)
        return reply, missing

    def ask(self, action: str, command: str, name: str, *args: Any, **options: Any) -> Any:
        """Sends a command about one key; returns what redis-py makes of the reply.

        Args:
            action: What it is for, as a verb, for an error's text.
            command: The name of redis-py's method.
            name: The key's name.
            args: What follows the key.
            options: redis-py's; `group` is whose key it is.
        """
        key = self._key(name, options.pop("group", ""))
        with translated(action):
            return getattr(self.client, command)(key, *args, **options)

    def ask_all(self, action: str, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Sends several commands in one round trip, which is no transaction.

        Args:
            action: What they are for, as a verb.
            commands: Of each: redis-py's method, the key's name, and what follows the key.
        """

        def send() -> list[Any]:
            pipe: Any = self.client.pipeline(transaction=False)
            for command, name, *args in commands:
                getattr(pipe, command)(self._key(name), *args)
            replies: list[Any] = pipe.execute()
            return replies

        with translated(action):
            return patiently(self.client, send)

    def scan(self, action: str, name: str, count: int) -> Iterator[dict[bytes, bytes]]:
        """Yields the fields of a hash step by step; one may come twice.

        Args:
            action: What it is for, as a verb.
            name: The key's name.
            count: About how many fields a step has.
        """
        cursor = 0
        while True:
            cursor, fields = self.ask(action, "hscan", name, cursor, count=count)
            yield fields
            if not cursor:
                return

    def _key(self, name: str, group: str = "") -> str:
        return self.keys.resolve(name, group=group, token="")


def _bind(keys: Resolves, script: str, **values: Any) -> BoundScript:
    return load_scripts()[script].bind(keys, **values)
