"""The requests of one task that were given up, and the ways out for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from redis_batches.buffer.replies import Indexed, read_indexed, read_request
from redis_batches.core.requests import Claimed
from redis_batches.core.triggers import Trigger
from redis_batches.driver.executor import Executor
from redis_batches.wire.envelope import text


class Letter(NamedTuple):
    """A request that was given up.

    Attributes:
        died_ms: Server time of that, in ms.
        error: Why.
        request: The request.
    """

    died_ms: float
    error: str
    request: Claimed


class DeadLetters:
    """The dead letters of one task.

    Args:
        redis: Asks Redis.
    """

    def __init__(self, redis: Executor) -> None:
        self._redis = redis

    def page(self, limit: int, offset: int) -> list[Letter]:
        """Returns some, the oldest first."""
        action, ask = "list dead letters", self._redis.ask
        members = ask(action, "zrange", "dead", offset, offset + limit - 1, withscores=True)
        ids = [text(member).partition(":")[2] for member, _ in members]
        if not ids:
            return []
        rows = zip(
            members,
            ids,
            *(ask(action, "hmget", name, ids) for name in ("items", "attempts", "errors")),
            strict=True,
        )
        return [
            Letter(
                died_ms,
                text(error or b""),
                read_request(f"0:::{task_id}".encode(), attempts or b"", value or b""),
            )
            for (_, died_ms), task_id, value, attempts, error in rows
        ]

    def names(self) -> list[str]:
        """Returns group:id of all, without reading them."""
        return [*map(text, self._redis.ask("list dead letters", "zrange", "dead", 0, -1))]

    def drop(self, names: Sequence[str]) -> int:
        """Forgets some for good; returns how many there were.

        Args:
            names: Of at most `PUSH_CHUNK`.
        """
        return int(self._redis.run("drop", members=names)[1])

    def requeue(self, group: str, route: str, ids: Sequence[str], *, trigger: Trigger) -> Indexed:
        """Lets some of a group wait again, with a clean record.

        Args:
            group: Id of the group.
            route: Where to ring for it, for when Redis does not know; "" if nobody does.
            ids: At most `PUSH_CHUNK`.
            trigger: When a batch of the task is due.
        """
        reply = self._redis.run(
            "requeue",
            group=group,
            route=route,
            trigger=trigger.packed,
            ids=ids,
        )
        return read_indexed(reply, group)
