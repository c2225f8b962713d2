"""A claimed batch that can finish itself."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

from redis_batches.buffer.chunks import ACK_CHUNK, RELEASE_CHUNK, chunked
from redis_batches.core.errors import LeaseLost
from redis_batches.core.outcomes import Outcome
from redis_batches.core.requests import Claimed
from redis_batches.core.settings import DEDUPLICATION_CALLS, DEDUPLICATION_WINDOW_MS, Settings
from redis_batches.core.triggers import Bells, Trigger
from redis_batches.driver.executor import Executor


class Lease:
    """One claimed batch, held by this process until it is settled or the lease expires.

    Attributes:
        token: Names this run of the batch; fresh at each run.
        group: Id of its group.
        fence: A number that is larger than that of every earlier run of the task.
        started_ms: Server time of the claim, in ms.
        bells: Doorbells to ring for what the claim left behind.
        requests: The claimed requests, oldest first.
        confirmed: When the run was last known to hold the lease, by `time.monotonic`: before the
            script that said so was sent.
        lost: Whether Redis said that the lease ended.
        overdue: Whether it will end soon, because the run takes longer than it may.
        task: The name of the task.
    """

    def __init__(
        self,
        redis: Executor,
        settings: Settings,
        *,
        task: str,
        trigger: Trigger,
        token: str,
        fence: int,
        bells: Bells,
        requests: tuple[Claimed, ...],
        confirmed: float,
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._trigger = trigger
        self.task = task
        self.token = token
        self.group = bells.group
        self.fence = fence
        self.started_ms = bells.rung_ms
        self.bells = bells
        self.requests = requests
        self.confirmed = confirmed
        self.lost = False
        self.overdue = False

    def ack(self, ids: Sequence[str] = (), *, ends: bool = False, well: bool = False) -> int:
        """Forgets requests whose outcome was told, and perhaps ends the batch.

        What the run still owns at its end was given back in a write that a failover lost: the lease
        stays then, and brings it back.

        Args:
            ids: Ids of requests.
            ends: Whether the batch ends: all its requests were told, or given back.
            well: Whether the batch's function returned: then a batch that fails has itself to
                blame, not an outage.

        Returns:
            How many were forgotten; 0 if the batch had ended before.

        Raises:
            LeaseLost: Another worker took the batch over; nothing was changed.
        """
        count, chunks = 0, [*chunked(ids, ACK_CHUNK)] or [[]]
        for chunk in chunks:
            last = ends and chunk is chunks[-1]
            word, acked = self._ack(chunk, ends=last, well=well and last)
            count += acked
        while word == "more":
            word, _ = self._ack((), ends=True, well=well)
        return count

    def _ack(self, ids: Sequence[str], *, ends: bool, well: bool) -> tuple[str, int]:
        word, *acked = self._redis.run(
            "ack",
            token=self.token,
            fence=self.fence,
            window_ms=DEDUPLICATION_WINDOW_MS,
            window=DEDUPLICATION_CALLS,
            well=int(well),
            ends=int(ends),
            # One text is packed in a fraction of the time; no id has a space.
            ids=" ".join(ids),
        )
        self._check(word)
        return word, int(acked[0]) if acked else 0

    def release(self, outcomes: Sequence[Outcome]) -> list[Bells]:
        """Gives requests back: to run later, at once, or as dead letters.

        Returns:
            The doorbells to ring.

        Raises:
            LeaseLost: Another worker took the batch over; nothing was changed.
        """
        rung = []
        since_ms = {request.id: request.since_ms for request in self.requests}
        # The last first: each goes in front of what was given back before.
        for chunk in reversed([*chunked(outcomes, RELEASE_CHUNK)]):
            flat: list[Any] = []
            for outcome in chunk:
                error = outcome.error.encode("utf-8", "replace")[:2048]
                since, delay_ms = since_ms.get(outcome.id, 0), outcome.delay_ms
                flat += (outcome.id, since, outcome.verb.value, delay_ms, error)
            reply = self._redis.run(
                "release",
                group=self.group,
                token=self.token,
                fence=self.fence,
                trigger=self._trigger.packed,
                max_dead=self._settings.max_dead,
                size=len(self.requests),
                window_ms=DEDUPLICATION_WINDOW_MS,
                outcomes=flat,
            )
            self._check(reply[0])
            rung.append(Bells(self.group, self.bells.route, reply[2], 0))
        return rung

    def extend(self, through: Executor | None = None) -> bool:
        """Keeps the lease; returns False, and sets `lost` or `overdue`, if it cannot be kept.

        Args:
            through: Asks on another connection; default: on that of the claim.
        """
        redis = through or self._redis
        lease_ms, asked = round(self._settings.lease * 1000), monotonic()
        reply = redis.run("extend", token=self.token, fence=self.fence, lease_ms=lease_ms)
        self.lost, self.overdue = reply[0] == "lost", reply[0] == "overdue"
        if reply[0] != "extended":
            return False
        self.confirmed = asked
        return True

    @property
    def age(self) -> float:
        """Seconds since the run was last known to hold the lease."""
        return monotonic() - self.confirmed

    def _check(self, word: str) -> None:
        if word == "fenced":
            self.lost = True
            raise LeaseLost(
                f"the lease on batch {self.token} of {self.task} ended before its function "
                "did, and its requests run elsewhere: raise redis_batches_lease if the worker is "
                "often cut off from Redis for so long"
            )
