"""A task's requests in Redis: what the other folders ask of them, in their own words.

A method is one script or one read. Every script can be sent again without harm: a push by the ids
and nonces of its calls, everything else by the token of its run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any
from uuid import uuid4

from redis_batches.buffer.chunks import (
    CLAIM_BYTES,
    CLAIM_STEP,
    PUSH_CHUNK,
    RECLAIM_STEP,
    chunked,
)
from redis_batches.buffer.dead_letters import DeadLetters
from redis_batches.buffer.index import Index
from redis_batches.buffer.lease import Lease
from redis_batches.buffer.reads import Reads, bell_name
from redis_batches.buffer.replies import (
    read_bells,
    read_found,
    read_idle,
    read_pushed,
    read_requests,
    read_swept,
)
from redis_batches.core.age import Age
from redis_batches.core.outcomes import Found, Idle, Swept
from redis_batches.core.requests import Claimed, Group, Outgoing, Pushed
from redis_batches.core.settings import (
    DEDUPLICATION_WINDOW_MS,
    PUT_BACK_DELAY_MS,
    REVOKED_IDS,
    REVOKED_WINDOW_MS,
    Settings,
)
from redis_batches.core.triggers import Bells, Trigger
from redis_batches.driver.executor import Client, Clock, Executor, server_time
from redis_batches.driver.keys import Keys
from redis_batches.wire.envelope import text

#: Names of each kind that one sweep asks for.
SWEEP_LIMIT = 500


class Store(Reads):
    """The requests of one task in Redis.

    Attributes:
        task: The name of the task.
        settings: Limits and the lease.
        dead_letters: Those that were given up.
        index: What is stored, and what of it no index knows.

    Args:
        client: A connection to Redis.
        settings: Limits and the lease.
        task: The name of the task.
        clock: Returns the time in ms as text, or "" for the server's.
    """

    def __init__(
        self,
        client: Client,
        settings: Settings,
        task: str,
        clock: Clock = server_time,
    ) -> None:
        self.task = task
        self.settings = settings
        super().__init__(Executor(client, Keys(settings.namespace, task), clock))
        self.dead_letters = DeadLetters(self._redis)
        self.index = Index(self._redis)

    def push(
        self,
        group: Group,
        trigger: Trigger,
        requests: Sequence[Outgoing],
        caller: str = "",
        age: Callable[[], int] | None = None,
    ) -> Pushed:
        """Stores up to 500 requests, in order, and books the doorbells that are due for them.

        Args:
            group: Where they wait.
            trigger: When a batch of them is due.
            requests: The calls.
            caller: Token of the batch that they are made from, if any.
            age: Knows when they were first sent; default: they are sent first by this.
        """
        flat: list[Any] = []
        for request in requests:
            eta = "" if request.eta_ms is None else request.eta_ms
            size = "" if request.size is None else request.size
            flat += (request.id, request.nonce, eta, size, request.envelope)
        # Pushes of a group differ in nothing but their requests.
        reply, missing = self._redis.run_alike(
            "push",
            flat,
            age or Age(self.settings.timeout),
            self.settings.wait_replicas,
            group=group.id,
            route=group.route,
            trigger=trigger.packed,
            max_pending=self.settings.max_pending,
            window_ms=DEDUPLICATION_WINDOW_MS,
            caller=caller,
        )
        return read_pushed(reply, group.id, group.route, len(requests), missing)

    def claim(
        self,
        group: str,
        trigger: Trigger,
        *,
        token: str = "",
        bell: str = "",
        rung_ms: int = 0,
        limit: float | None = None,
        once: bool = False,
        force: bool = False,
        counted: bool = True,
        follows: bool = False,
    ) -> Lease | Idle:
        """Leases the oldest due requests of a group.

        Args:
            group: Id of the group.
            trigger: The claimer's own: a batch is never larger than its `flush_every`.
            token: Names this run; the same token again gets the same batch. Default: a fresh one.
            bell: Id of the doorbell that is answered, if any.
            rung_ms: When it was rung.
            limit: Seconds that the run may take, or None.
            once: Whether a lost run must not be repeated.
            force: Whether to take what waits though it is not due.
            counted: Whether a script booked the doorbell.
            follows: Whether the run has answered this doorbell, and goes on: only while more
                batches wait than doorbells can be out.
        """
        values: dict[str, Any] = {"rung_ms": rung_ms, "limit_ms": round((limit or 0) * 1000)}
        flags = {"once": once, "force": force, "counted": counted, "follows": follows}
        values |= {name: int(flag) for name, flag in flags.items()}
        return self._claim(group, trigger, token or uuid4().hex, bell=bell_name(bell), **values)

    def _claim(self, group: str, trigger: Trigger, token: str, **values: Any) -> Lease | Idle:
        """Claims in as many steps as the script needs."""
        claim = partial(
            self._redis.run,
            "claim",
            group=group,
            token=token,
            trigger=trigger.packed,
            lease_ms=round(self.settings.lease * 1000),
            max_bytes=self.settings.flush_bytes,
            step=CLAIM_STEP,
            step_bytes=CLAIM_BYTES,
            **values,
        )
        requests: tuple[Claimed, ...] = ()
        got, word = 0, "more"
        while word in ("more", "part"):
            asked = monotonic()
            word, *reply = claim(got=got)
            if word == "part":
                got = int(reply[2])
                requests += read_requests(*reply[4:])
        if word != "claimed":
            return read_idle(word, reply)
        fence, started_ms, signals, route, *joined = reply
        bells = Bells(group, text(route), signals, int(started_ms))
        requests += read_requests(*joined)
        return self._lease(trigger, token, int(fence), bells, requests, asked)

    def cancel(
        self, group: str, ids: Sequence[str], trigger: Trigger, *, token: str = ""
    ) -> tuple[Lease | None, tuple[Found, ...]]:
        """Leases requests that wait or are delayed, and marks those that run, as revoked.

        Args:
            group: Id of their group; those of another one are only looked up.
            ids: At most `CANCEL_CHUNK` ids, none twice.
            trigger: When a batch of the task is due, should it give them back.
            token: Names this call; the same token again gets the same lease. Default: a fresh one.

        Returns:
            The lease on those that nobody runs now, if any, and where each was found.
        """
        token, asked = token or uuid4().hex, monotonic()
        reply = self._redis.run(
            "cancel",
            group=group,
            token=token,
            lease_ms=round(self.settings.lease * 1000),
            window_ms=REVOKED_WINDOW_MS,
            window=REVOKED_IDS,
            ids=ids,
        )
        if reply[0] == "ended":
            return None, ()
        _, fence, started_ms, route, places, lengths, joined = reply
        found, requests = read_found(places), read_requests(lengths, joined)
        if not requests:
            return None, found
        bells = Bells(group, text(route), 0, int(started_ms))
        return self._lease(trigger, token, int(fence), bells, requests, asked), found

    def extend(self, lease: Lease) -> bool:
        """Keeps a lease as `Lease.extend` does, on the connection of this store."""
        return lease.extend(self._redis)

    def sweep(
        self,
        trigger: Trigger,
        *,
        sweeper: str = "",
        fresh_ms: int = 0,
        ring_again: bool = False,
        limit: int = SWEEP_LIMIT,
    ) -> Swept | None:
        """Finds what is overdue, and books a doorbell for each group that nobody rang for.

        Args:
            trigger: The task's: nothing waits longer, and what was too few for workers with larger
                batches may be a batch for one that has just started.
            sweeper: Who sweeps; None is returned while another one leads. "" sweeps always.
            fresh_ms: How long a leader leads after its last sweep.
            ring_again: Whether to ring for what nobody answered, since a worker has just started.
            limit: Names of each kind.
        """
        reply = self._redis.run(
            "sweep",
            sweeper=sweeper,
            fresh_ms=fresh_ms,
            trigger=trigger.packed,
            longest_ms=PUT_BACK_DELAY_MS,
            greet=int(ring_again),
            limit=limit,
            window_ms=DEDUPLICATION_WINDOW_MS,
        )
        return None if reply[0] == "follower" else read_swept(reply)

    def reclaim(
        self, token: str, group: str, trigger: Trigger, *, seen_dead: bool = False
    ) -> Bells:
        """Takes a dead run's batch back, unless it is alive; returns the doorbells to ring."""
        reclaim = partial(
            self._redis.run,
            "reclaim",
            group=group,
            token=token,
            trigger=trigger.packed,
            window_ms=DEDUPLICATION_WINDOW_MS,
            seen_dead=int(seen_dead),
            step=RECLAIM_STEP,
        )
        while (reply := reclaim())[0] == "more":
            pass
        if reply[0] != "reclaimed":
            return Bells(group, "", 0, 0)
        return read_bells(reply, group)

    def promote(self, group: str, ids: Sequence[str], trigger: Trigger) -> Bells:
        """Lets delayed requests wait with the others; returns the doorbells to ring."""
        signals, route = 0, ""
        for chunk in chunked(ids, PUSH_CHUNK):
            reply = self._redis.run(
                "promote",
                group=group,
                trigger=trigger.packed,
                ids=chunk,
            )
            signals, route = signals + reply[2], text(reply[3])
        return Bells(group, route, signals, 0)

    def _lease(
        self,
        trigger: Trigger,
        token: str,
        fence: int,
        bells: Bells,
        requests: tuple[Claimed, ...],
        asked: float,
    ) -> Lease:
        return Lease(
            self._redis,
            self.settings,
            task=self.task,
            trigger=trigger,
            token=token,
            fence=fence,
            bells=bells,
            requests=requests,
            confirmed=asked,
        )
