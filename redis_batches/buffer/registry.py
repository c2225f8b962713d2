"""What the tasks of a namespace share: who exists, and whether beat's sweeps are answered."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from typing import Any

from redis_batches.core.outage import Quiet
from redis_batches.core.settings import check_trigger
from redis_batches.core.triggers import Trigger
from redis_batches.driver.executor import Client, Clock, Executor, server_time
from redis_batches.driver.keys import NamespaceKeys

logger = getLogger(__name__)
#: For what is read at each sweep.
QUIET = Quiet()


class Registry:
    """The tasks of a namespace, as the workers that serve them wrote them down.

    Args:
        client: A connection to Redis.
        namespace: The namespace.
        clock: Returns the time in ms as text, or "" for the server's.
    """

    def __init__(self, client: Client, namespace: str, clock: Clock = server_time) -> None:
        self._key = NamespaceKeys(namespace).resolve("tasks")
        self._redis = Executor(client, NamespaceKeys(namespace), clock)

    def write(self, triggers: Mapping[str, Trigger]) -> None:
        """Notes tasks, by their names, with when a batch of each is due."""
        written = {task: trigger.packed for task, trigger in triggers.items()}
        if written:
            self._redis.ask("register the tasks", "hset", "tasks", mapping=written)

    def read(self) -> dict[str, Trigger]:
        """Returns each task with when a batch is due; one that cannot be read is left out."""
        found: dict[Any, Any] = self._redis.ask("list the tasks", "hgetall", "tasks")
        read = {}
        for name, packed in found.items():
            try:
                read[name.decode()] = check_trigger(Trigger.unpack(packed.decode()))
            except ValueError as exc:
                if QUIET.may_say(repr(name)):
                    logger.error(
                        "the task %.200r in %s of Redis cannot be read, and is not swept by beat: "
                        "%r; HDEL it there if no worker serves it, else restart a worker that does",
                        name,
                        self._key,
                        exc,
                    )
        return read

    def may_send(self) -> bool:
        """Returns whether beat may send a sweep message; not while one waits for a worker."""
        return self._throttle(opened=False) == "send"

    def answered(self) -> None:
        """Notes that a worker runs a sweep message."""
        self._throttle(opened=True)

    def _throttle(self, *, opened: bool) -> str:
        return str(self._redis.run("knock", opened=int(opened))[0])
