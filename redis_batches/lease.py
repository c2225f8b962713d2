"""A claimed batch that can finish itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from redis_batches.config import DEDUPLICATION_CALLS, DEDUPLICATION_WINDOW_MS, MAX_DELAY_MS
from redis_batches.errors import LeaseLost
from redis_batches.model import Bells, Claimed, Outcome, Trigger
from redis_batches.scripts import ACK_CHUNK, RELEASE_CHUNK, chunked

if TYPE_CHECKING:
    from redis_batches.store import Store


class Lease:
    """One claimed batch, held by this process until it is settled or the lease expires.

    Attributes:
        token: Names this run of the batch; fresh at each run.
        group: Id of its group.
        fence: A number that is larger than that of every earlier run of the task.
        started_ms: Server time of the claim, in ms.
        bells: Doorbells to ring for what the claim left behind.
        requests: The claimed requests, oldest first.
        lost: Whether Redis said that the lease ended.
        overdue: Whether it will end soon, because the run takes longer than it may.
    """

    def __init__(
        self,
        store: Store,
        trigger: Trigger,
        token: str,
        group: str,
        fence: int,
        started_ms: int,
        bells: Bells,
        requests: tuple[Claimed, ...],
    ) -> None:
        self._store = store
        self._trigger = trigger
        self.token = token
        self.group = group
        self.fence = fence
        self.started_ms = started_ms
        self.bells = bells
        self.requests = requests
        self.lost = False
        self.overdue = False
        self._given_back: set[str] = set()

    def ack(self, ids: Sequence[str] | None = None, *, well: bool = False) -> int:
        """Forgets finished requests; without ids, ends the batch with all it did not give back.

        Args:
            ids: Ids of requests, or None.
            well: Whether the batch's function returned: then a batch that fails has itself to
                blame, not an outage.

        Returns:
            How many were forgotten; 0 if the batch had ended before.

        Raises:
            LeaseLost: Another worker took the batch over; nothing was changed.
        """
        if ids is None:
            return self._ack(sorted(self._given_back), well, ends=True)
        return sum(self._ack(chunk, well) for chunk in chunked(ids, ACK_CHUNK))

    def _ack(self, ids: Sequence[str], well: bool, *, ends: bool = False) -> int:
        reply = self._store.run(
            "ack",
            token=self.token,
            fence=self.fence,
            window_ms=DEDUPLICATION_WINDOW_MS,
            window=DEDUPLICATION_CALLS,
            well=int(well),
            ends=int(ends),
            ids=ids,
        )
        self._check(reply[0])
        return int(reply[1]) if reply[0] == "acked" else 0

    def release(self, outcomes: Sequence[Outcome]) -> list[Bells]:
        """Gives requests back: to run later, at once, or as dead letters.

        Returns:
            The doorbells to ring.

        Raises:
            LeaseLost: Another worker took the batch over; nothing was changed.
        """
        rung = []
        self._given_back.update(outcome.id for outcome in outcomes)
        # The last first: each goes in front of what was given back before.
        for chunk in reversed([*chunked(outcomes, RELEASE_CHUNK)]):
            flat: list[Any] = []
            for outcome in chunk:
                error = outcome.error.encode("utf-8", "replace")[:2048]
                flat += (outcome.id, outcome.verb.value, min(outcome.delay_ms, MAX_DELAY_MS), error)
            reply = self._store.run(
                "release",
                group=self.group,
                token=self.token,
                fence=self.fence,
                flush_every=self._trigger.flush_every,
                interval_ms=self._trigger.interval_ms,
                max_dead=self._store.settings.max_dead,
                size=len(self.requests),
                outcomes=flat,
            )
            self._check(reply[0])
            rung.append(Bells(self.group, self.bells.route, reply[2], 0))
        return rung

    def leave(self, task_id: str) -> None:
        """Notes that a call of the same id took a request over: the end of the batch leaves it."""
        self._given_back.add(task_id)

    def extend(self) -> bool:
        """Keeps the lease; returns False, and sets `lost` or `overdue`, if it cannot be kept."""
        lease_ms = round(self._store.settings.lease * 1000)
        reply = self._store.run("extend", token=self.token, fence=self.fence, lease_ms=lease_ms)
        self.lost, self.overdue = reply[0] == "lost", reply[0] == "overdue"
        return bool(reply[0] == "extended")

    def _check(self, word: str) -> None:
        if word == "fenced":
            self.lost = True
            raise LeaseLost(
                f"the lease on batch {self.token} of {self._store.task} ended before its function "
                "did, and its requests run elsewhere: raise redis_batches_lease if the worker is "
                "often cut off from Redis for so long"
            )
