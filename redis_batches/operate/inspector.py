"""What an operator asks of a task, and does to its dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, TypeAlias

from redis_batches.buffer.chunks import ACK_CHUNK, PUSH_CHUNK, chunked
from redis_batches.buffer.store import Store, read_row
from redis_batches.core.errors import BatchesError, RouteLost
from redis_batches.core.model import Attempts, Bells, Group, Trigger
from redis_batches.driver.server_errors import translated
from redis_batches.wire.envelope import decode, text

_ByGroup: TypeAlias = dict[str, list[str]]
_NOTHING: Mapping[str, Mapping[str, int]] = {}


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A request that was given up.

    Attributes:
        id: The task id.
        died_at: When (UTC, by the server's clock).
        error: The text of the exception that it was given up with.
        attempts: What it went through.
        envelope: The encoded call; it may hold secrets, so neither it nor what is in it is in the
            letter's repr.
    """

    id: str
    died_at: datetime
    error: str
    attempts: Attempts
    envelope: bytes = field(repr=False)
    _accept: frozenset[str] | None = field(default=None, repr=False, compare=False)

    @property
    def args(self) -> tuple[Any, ...] | None:
        """The positional arguments of the call; None if it cannot be decoded."""
        call = self._call()
        return None if call is None else tuple(call[0])

    @property
    def kwargs(self) -> dict[str, Any] | None:
        """The keyword arguments of the call; None if it cannot be decoded."""
        call = self._call()
        return None if call is None else call[1]

    def _call(self) -> tuple[Any, Any, Any] | None:
        try:
            return decode(self.envelope, None if self._accept is None else {*self._accept}).body
        except BatchesError:
            return None


class Inspector:
    """Looks into the requests of one task.

    Args:
        store: The task's store.
        trigger: When a batch of the task is due.
        routes: Returns where doorbells of the task may go, as JSON texts, to some queues by their
            names, too: one of these may be a route that got lost.
        ring: Rings doorbells.
        accept: Content types that a dead letter's call may be decoded from; None for JSON only.
    """

    def __init__(
        self,
        store: Store,
        trigger: Trigger,
        routes: Callable[[Iterable[str]], Iterable[str]],
        ring: Callable[[Bells], None],
        accept: Iterable[str] | None = None,
    ) -> None:
        self._store = store
        self._client: Any = store.client
        self._trigger = trigger
        self._routes = routes
        self._ring = ring
        self._accept = None if accept is None else frozenset(accept)

    def list(self, limit: int = 100, offset: int = 0) -> Sequence[DeadLetter]:
        """Returns dead letters, the oldest first."""
        key, client = self._store.keys.resolve, self._client
        with translated("list dead letters"):
            members = client.zrange(key("dead"), offset, offset + limit - 1, withscores=True)
            ids = [text(member).partition(":")[2] for member, _ in members]
            if not ids:
                return []
            items, attempts, errors = (
                client.hmget(key(name), ids) for name in ("items", "attempts", "errors")
            )
        found = []
        for (_, died_ms), *row in zip(members, ids, items, attempts, errors, strict=True):
            task_id, value, tried, error = row
            request = read_row(f"0:::{task_id}".encode(), tried or b"", value or b"")
            died_at = datetime.fromtimestamp(died_ms / 1000, timezone.utc)
            found.append(
                DeadLetter(
                    task_id,
                    died_at,
                    text(error or b""),
                    request.attempts,
                    request.envelope,
                    self._accept,
                )
            )
        return found

    def show(self, task_id: str) -> DeadLetter | None:
        """Returns one dead letter, or None if there is none with this id."""
        return next((letter for letter in self._all() if letter.id == task_id), None)

    def requeue(self, ids: Iterable[str] | str | None = None, *, queues: Iterable[str] = ()) -> int:
        """Lets dead letters run again, with a clean record; returns how many.

        They wait for the queue that they were called for.

        Args:
            ids: Their ids, or one id; None for all.
            queues: Names of queues that the app does not know. Only needed if somebody deleted
                what Redis had noted of them.

        Raises:
            RouteLost: Nobody knows the queue of some; those stay, the others run.
        """
        found: _ByGroup = {}
        for member in self._letters(ids):
            group, _, task_id = member.partition(":")
            found.setdefault(group, []).append(task_id)
        return self._index("requeue", "ids", found, queues)

    def drop(self, ids: Iterable[str] | str) -> int:
        """Forgets dead letters for good; returns how many.

        Args:
            ids: Their ids, or one id.
        """
        chunks = chunked(self._letters(ids), PUSH_CHUNK)
        return sum(int(self._store.run("drop", members=chunk)[1]) for chunk in chunks)

    def repair(self, *, queues: Iterable[str] = ()) -> int:
        """Indexes every request again that no index knows; returns how many.

        Keys that were deleted by hand, or lost with the tail of a failover, leave requests that
        nobody would ever claim. It reads every request of the task once. What a revoke noted of
        entries that were deleted is forgotten. Whose queue Redis has forgotten, too, waits for that
        of the app's queues which it was called for.

        Args:
            queues: Names of queues that the app does not know, and that some were called for.

        Raises:
            RouteLost: Nobody knows the queue of some; the others are indexed.
        """
        parked = self._parked()
        lost = self._unindexed()
        nothing = {"noted": 0, "counted": 0}
        more = {group: parked.get(group, nothing) for group in lost}
        return self._index("repair", "lost", lost, queues, more)

    def check_ledger(self) -> None:
        """Raises an error that says what it means if the counters do not add up.

        Raises:
            BatchesError: More or fewer requests are stored than were pushed and not yet finished.
        """
        stored, expected = self._store.ledger()
        if stored != expected:
            kind = "lost" if stored < expected else "appeared"
            raise BatchesError(
                f"{self._store.task} holds {stored} requests, but {expected} were pushed and not "
                f"finished: {abs(stored - expected)} {kind}, by keys that were deleted or restored "
                "by hand, or by a failover that lost its newest writes"
            )

    def _all(self) -> Iterator[DeadLetter]:
        offset = 0
        while page := self.list(PUSH_CHUNK, offset):
            yield from page
            offset += len(page)

    def _index(
        self,
        verb: str,
        name: str,
        by_group: _ByGroup,
        queues: Iterable[str],
        more: Mapping[str, Mapping[str, int]] = _NOTHING,
    ) -> int:
        """Lets requests of several groups wait; returns how many.

        Raises:
            RouteLost: Nobody knows where to ring for some groups; the others wait.
        """
        # A group is named by a hash of its route, so a route says whose it is.
        known = {Group(route).id: route for route in self._routes(queues)}
        count, unrouted = 0, Counter[str]()
        for group, members in by_group.items():
            for chunk in [*chunked(members, PUSH_CHUNK)] or [[]]:
                reply = self._store.run(
                    verb,
                    group=group,
                    route=known.get(group, ""),
                    flush_every=self._trigger.flush_every,
                    interval_ms=self._trigger.interval_ms,
                    **{name: chunk, **more.get(group, {})},
                )
                if reply[0] == "unrouted":
                    unrouted[group] += int(reply[1])
                else:
                    count += int(reply[1])
                    self._ring(Bells(group, text(reply[3]), reply[2], 0))
        if +unrouted:
            raise RouteLost(self._store.task, unrouted.total(), count)
        return count

    def _parked(self) -> dict[str, dict[str, int]]:
        """Returns for each group how many are noted as delayed or dead, and how many are."""
        key, client = self._store.keys.resolve, self._client
        with translated("count delayed requests"):
            noted = client.hgetall(key("parked"))
            counted: Counter[str] = Counter()
            for name in ("delayed", "eta", "dead"):
                members = client.zrange(key(name), 0, -1)
                counted.update(text(member).partition(":")[0] for member in members)
        found = {text(group): int(count) for group, count in noted.items()}
        return {
            group: {"noted": found.get(group, 0), "counted": counted[group]}
            for group in found.keys() | counted.keys()
        }

    def _letters(self, ids: Iterable[str] | str | None) -> Iterator[str]:
        """Yields the names group:id of dead letters, without reading them; None for all."""
        wanted = None if ids is None else {*_listed(ids)}
        with translated("list dead letters"):
            members = self._client.zrange(self._store.keys.resolve("dead"), 0, -1)
        for member in map(text, members):
            if wanted is None or member.partition(":")[2] in wanted:
                yield member

    def _unindexed(self) -> _ByGroup:
        """Returns for each group marks:id of what waits in no pending list; see `repair.lua`."""
        marks: dict[str, dict[str, str]] = {group: {} for group in self._store.groups()}
        key = self._store.keys.resolve
        with translated("look for lost requests"):
            # Before the lists: what a claim does between is no sign of a list that was deleted.
            for member, noted in self._client.hscan_iter(key("stale"), count=1000):
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
            for name, value in self._client.hscan_iter(key("items"), count=1000):
                group, task_id = _group_of(value), text(name)
                if group not in pending:
                    pending[group] = self._count_pending(group)
                    found.setdefault(group, [])
                hidden = marks.get(group, {}).get(task_id, "").count("s")
                if pending[group][task_id] <= hidden:
                    found[group].append(f":{task_id}")
        return found

    def _count_pending(self, group: str) -> Counter[str]:
        """Returns how many entries each id has; from the tail, since claims take from the head."""
        key, last = self._store.keys.pending(group), -1
        found: Counter[str] = Counter()
        while entries := self._client.lrange(key, last - ACK_CHUNK + 1, last):
            found.update(text(entry).split(":", 3)[3] for entry in entries)
            last -= len(entries)
        return found


def _listed(ids: Iterable[str] | str) -> Sequence[str]:
    return [ids] if isinstance(ids, str) else [*ids]


def _group_of(value: bytes) -> str:
    return text(value.partition(b":")[0])
