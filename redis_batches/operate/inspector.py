"""What an operator asks of a task, and does to its dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Any, TypeAlias

from redis_batches.buffer.chunks import PUSH_CHUNK, chunked
from redis_batches.buffer.index import Parked
from redis_batches.buffer.replies import Indexed
from redis_batches.buffer.store import Store
from redis_batches.core.errors import BatchesError, RouteLost
from redis_batches.core.requests import Attempts, Group
from redis_batches.core.triggers import Bells, Trigger
from redis_batches.wire.envelope import decode

_ByGroup: TypeAlias = dict[str, list[str]]


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
        self._trigger = trigger
        self._routes = routes
        self._ring = ring
        self._accept = None if accept is None else frozenset(accept)

    def list(self, limit: int = 100, offset: int = 0) -> Sequence[DeadLetter]:
        """Returns dead letters, the oldest first."""
        return [
            DeadLetter(
                request.id,
                datetime.fromtimestamp(died_ms / 1000, timezone.utc),
                error,
                request.attempts,
                request.envelope,
                self._accept,
            )
            for died_ms, error, request in self._store.dead_letters.page(limit, offset)
        ]

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
        requeue = partial(self._store.dead_letters.requeue, trigger=self._trigger)
        return self._index(requeue, found, queues)

    def drop(self, ids: Iterable[str] | str) -> int:
        """Forgets dead letters for good; returns how many.

        Args:
            ids: Their ids, or one id.
        """
        return sum(map(self._store.dead_letters.drop, chunked(self._letters(ids), PUSH_CHUNK)))

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
        index, trigger = self._store.index, self._trigger
        parked = index.parked()

        def repair(group: str, route: str, lost: Sequence[str]) -> Indexed:
            return index.repair(group, route, lost, parked.get(group, Parked()), trigger)

        return self._index(repair, index.lost(self._store.groups()), queues)

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
        put: Callable[[str, str, Sequence[str]], Indexed],
        by_group: _ByGroup,
        queues: Iterable[str],
    ) -> int:
        """Lets requests of several groups wait; returns how many.

        Args:
            put: Lets some of one group wait: takes its id, a route or "", and names of requests.
            by_group: Names of requests by the id of their group.
            queues: Names of queues that the app does not know.

        Raises:
            RouteLost: Nobody knows where to ring for some groups; the others wait.
        """
        # A group is named by a hash of its route, so a route says whose it is.
        known = {Group(route).id: route for route in self._routes(queues)}
        count, unrouted = 0, Counter[str]()
        for group, members in by_group.items():
            for chunk in [*chunked(members, PUSH_CHUNK)] or [[]]:
                done = put(group, known.get(group, ""), chunk)
                if done.bells is None:
                    unrouted[group] += done.count
                else:
                    count += done.count
                    self._ring(done.bells)
        if +unrouted:
            raise RouteLost(self._store.task, unrouted.total(), count)
        return count

    def _letters(self, ids: Iterable[str] | str | None) -> Iterator[str]:
        """Yields the names group:id of dead letters, without reading them; None for all."""
        wanted = None if ids is None else {*_listed(ids)}
        for name in self._store.dead_letters.names():
            if wanted is None or name.partition(":")[2] in wanted:
                yield name


def _listed(ids: Iterable[str] | str) -> Sequence[str]:
    return [ids] if isinstance(ids, str) else [*ids]
