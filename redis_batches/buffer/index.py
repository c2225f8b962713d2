"""What is stored of one task, and what of it no index knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from redis_batches.buffer.chunks import ACK_CHUNK
from redis_batches.buffer.replies import Indexed, read_envelope, read_group, read_indexed
from redis_batches.core.triggers import Trigger
from redis_batches.driver.executor import Executor
from redis_batches.wire.envelope import text

#: Requests that one step of a search reads.
PAGE = 500
_LOOK = "look for lost requests"


class Parked(NamedTuple):
    """How many requests of a group are delayed or dead.

    Attributes:
        noted: By the note that is kept of it.
        counted: By their indexes.
    """

    noted: int = 0
    counted: int = 0


class Index:
    """The indexes of one task's requests.

    Args:
        redis: Asks Redis.
    """

    def __init__(self, redis: Executor) -> None:
        self._redis = redis

    def stored(self) -> Iterator[list[tuple[str, bytes]]]:
        """Yields id and envelope of all requests, step by step; one may come twice."""
        for values in self._redis.scan("look for stamps", "items", PAGE):
            yield [(text(name), read_envelope(value)) for name, value in values.items()]

    def parked(self) -> dict[str, Parked]:
        """Returns for each group how many are noted as delayed or dead, and how many are."""
        action, ask = "count delayed requests", self._redis.ask
        found = {
            text(group): int(count) for group, count in ask(action, "hgetall", "parked").items()
        }
        counted: Counter[str] = Counter()
        for name in ("delayed", "eta", "dead"):
            members = ask(action, "zrange", name, 0, -1)
            counted.update(text(member).partition(":")[0] for member in members)
        groups = found.keys() | counted.keys()
        return {group: Parked(found.get(group, 0), counted[group]) for group in groups}

    def lost(self, groups: Iterable[str]) -> dict[str, list[str]]:
        """Returns for each group marks:id of what waits in no pending list; see `repair.lua`.

        Args:
            groups: Ids of those that Redis knows a route of.
        """
        marks: dict[str, dict[str, str]] = {group: {} for group in groups}
        # Before the lists: what a claim does between is no sign of a list that was deleted.
        for fields in self._redis.scan(_LOOK, "stale", 1000):
            for member, noted in fields.items():
                group, _, task_id = text(member).partition(":")
                marks.setdefault(group, {})[task_id] = text(noted)
        pending = {group: self._count_pending(group) for group in marks}
        found = {
            group: [
                f"{noted}:{task_id}"
                for task_id, noted in marks[group].items()
                if len(noted) > pending[group][task_id]
            ]
            for group in marks
        }
        for fields in self._redis.scan(_LOOK, "items", 1000):
            for name, value in fields.items():
                group, task_id = read_group(value), text(name)
                if group not in pending:
                    pending[group] = self._count_pending(group)
                    found.setdefault(group, [])
                hidden = marks.get(group, {}).get(task_id, "").count("s")
                if pending[group][task_id] <= hidden:
                    found[group].append(f":{task_id}")
        return found

    def _count_pending(self, group: str) -> Counter[str]:
        """Returns how many entries each id has; from the tail, since claims take from the head."""
        found: Counter[str] = Counter()
        last = -1
        while entries := self._redis.ask(
            _LOOK, "lrange", "pending", last - ACK_CHUNK + 1, last, group=group
        ):
            found.update(text(entry).split(":", 3)[3] for entry in entries)
            last -= len(entries)
        return found

    def repair(
        self, group: str, route: str, lost: Sequence[str], parked: Parked, trigger: Trigger
    ) -> Indexed:
        """Lets requests of a group wait that no index knows.

        Args:
            group: Id of the group.
            route: Where to ring for it, for when Redis does not know; "" if nobody does.
            lost: marks:id of at most `PUSH_CHUNK`.
            parked: What was found of the group.
            trigger: When a batch of the task is due.
        """
        reply = self._redis.run(
            "repair",
            group=group,
            route=route,
            trigger=trigger.packed,
            noted=parked.noted,
            counted=parked.counted,
            lost=lost,
        )
        return read_indexed(reply, group)
