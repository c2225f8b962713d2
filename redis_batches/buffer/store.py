"""The one door to Redis: what the domain asks of it, in its own words.

Every method is one script, and every script can be sent again without harm: a push by the ids and
nonces of its calls, everything else by the token of its run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from hashlib import blake2b
from time import monotonic
from typing import Any, TypeAlias
from uuid import uuid4

import redis

from redis_batches.buffer.chunks import CLAIM_BYTES, CLAIM_STEP, PUSH_CHUNK, RECLAIM_STEP, chunked
from redis_batches.buffer.lease import Lease
from redis_batches.core.age import Age
from redis_batches.core.errors import ScriptReplyError
from redis_batches.core.model import (
    Attempts,
    Bells,
    Claimed,
    Found,
    Group,
    Idle,
    Outgoing,
    Place,
    Pushed,
    Status,
    Swept,
    Trigger,
)
from redis_batches.core.settings import (
    DEDUPLICATION_WINDOW_MS,
    MAX_FLUSH_EVERY,
    PUT_BACK_DELAY_MS,
    REVOKED_IDS,
    REVOKED_WINDOW_MS,
    TASK_ID,
    Settings,
)
from redis_batches.driver.keys import Keys
from redis_batches.driver.patience import patiently
from redis_batches.driver.scripts import BoundScript, Script, load_scripts, shape
from redis_batches.driver.server_errors import translated
from redis_batches.wire.envelope import text

Clock: TypeAlias = Callable[[], str]

#: Names of each kind that one sweep asks for.
SWEEP_LIMIT = 500
#: Of a request that has not run before.
NO_ATTEMPTS = Attempts()
_STATUSES = {status.value: status for status in Status}
_COUNTS = (
    ("hlen", "items"),
    ("hlen", "own"),
    ("zcard", "delayed"),
    ("zcard", "eta"),
    ("zcard", "dead"),
    ("hgetall", "stats"),
)


def server_time() -> str:
    """Lets a script ask the server for the time; tests pass a clock of their own instead."""
    return ""


class Store:
    """The requests of one task in Redis.

    Args:
        client: A connection to Redis.
        settings: Limits and the lease.
        task: The name of the task.
        clock: Returns the time in ms as text, or "" for the server's.
    """

    def __init__(
        self,
        client: redis.Redis,
        settings: Settings,
        task: str,
        clock: Clock = server_time,
    ) -> None:
        self.task = task
        self.settings = settings
        self.keys = Keys(settings.namespace, task)
        self.client = client
        self._clock = clock
        self._scripts = load_scripts()
        # Pushes of a group differ in nothing but their requests.
        bind_push = partial(_bind_push, self._scripts["push"], self.keys)
        self._bind_push = lru_cache(maxsize=64)(bind_push)

    def run(self, script: str, **values: Any) -> list[Any]:
        """Runs one script with this task's keys and the clock.

        That of push is followed by the number of replicas that miss it, if there should be some.
        """
        found = self._scripts[script]
        rest = values.pop(found.rest, ()) if found.rest else ()
        age = values.pop("age", None)
        bind = self._bind_push if script == "push" else partial(found.bind, self.keys)
        bound: BoundScript = bind(now_ms=self._clock(), **values)
        if script == "push" and self.settings.wait_replicas:
            key = self.keys.resolve("stats")
            return bound.replicated(self.client, rest, self.settings.wait_replicas, key, age)
        return bound(self.client, rest, age)

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
        reply = self.run(
            "push",
            group=group.id,
            route=group.route,
            trigger=trigger,
            max_pending=self.settings.max_pending,
            caller=caller,
            requests=flat,
            age=age or Age(self.settings.timeout),
        )
        words = reply[0].split()
        if words[:1] != ["pushed"] or len(words) != 3 + len(requests):
            raise ScriptReplyError(f"push answered {shape(words)}, which no script does")
        _, signals, now_ms, *statuses = words
        bells = Bells(group.id, group.route, int(signals), int(now_ms))
        missing = sum(reply[1:])
        return Pushed(bells, tuple([_STATUSES[status] for status in statuses]), missing)

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
        token = token or uuid4().hex
        claim = partial(
            self.run,
            "claim",
            group=group,
            token=token,
            bell=_bell_name(bell),
            rung_ms=rung_ms,
            flush_every=trigger.flush_every,
            interval_ms=trigger.interval_ms,
            lease_ms=round(self.settings.lease * 1000),
            limit_ms=round((limit or 0) * 1000),
            once=int(once),
            force=int(force),
            counted=int(counted),
            max_bytes=self.settings.flush_bytes,
            follows=int(follows),
            step=CLAIM_STEP,
            step_bytes=CLAIM_BYTES,
        )
        rows: list[bytes] = []
        got, word = 0, "more"
        while word in ("more", "part"):
            asked = monotonic()
            word, *reply = claim(got=got)
            if word == "part":
                got = int(reply[2])
                rows += parted(*reply[4:])
        if word != "claimed":
            return Idle(word, int(reply[0]) if word == "not_due" else 0)
        fence, started_ms, signals, route, *joined = reply
        bells = Bells(group, text(route), signals, int(started_ms))
        rows += parted(*joined)
        return self._lease(trigger, token, int(fence), bells, rows, asked)

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
        reply = self.run(
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
        found = tuple(
            Found(text(places[i]), Place(text(places[i + 1])), text(places[i + 2]))
            for i in range(0, len(places), 3)
        )
        rows = parted(lengths, joined)
        if not rows:
            return None, found
        bells = Bells(group, text(route), 0, int(started_ms))
        return self._lease(trigger, token, int(fence), bells, rows, asked), found

    def _lease(
        self,
        trigger: Trigger,
        token: str,
        fence: int,
        bells: Bells,
        rows: Sequence[bytes],
        asked: float,
    ) -> Lease:
        """Returns a lease on what a script answered: entry, record and value of each request."""
        requests = tuple(read_row(*rows[i : i + 3]) for i in range(0, len(rows), 3))
        started_ms = bells.rung_ms
        return Lease(self, trigger, token, bells.group, fence, started_ms, bells, requests, asked)

    def sweep(
        self,
        longest_ms: int,
        *,
        sweeper: str = "",
        fresh_ms: int = 0,
        ring_again: bool = False,
        flush_every: int = MAX_FLUSH_EVERY,
        limit: int = SWEEP_LIMIT,
    ) -> Swept | None:
        """Finds what is overdue, and books a doorbell for each group that nobody rang for.

        Args:
            longest_ms: The longest flush interval of the task.
            sweeper: Who sweeps; None is returned while another one leads. "" sweeps always.
            fresh_ms: How long a leader leads after its last sweep.
            ring_again: Whether to ring for what nobody answered, since a worker has just started.
            flush_every: Of that worker: what was too few for others may be a batch for it.
            limit: Names of each kind.
        """
        reply = self.run(
            "sweep",
            sweeper=sweeper,
            fresh_ms=fresh_ms,
            interval_ms=longest_ms,
            longest_ms=PUT_BACK_DELAY_MS,
            greet=int(ring_again),
            limit=limit,
            flush_every=flush_every,
            window_ms=DEDUPLICATION_WINDOW_MS,
        )
        if reply[0] == "follower":
            return None
        _, wait, due, expired, members, now_ms = reply
        ready: dict[str, list[str]] = {}
        for member in members:
            group, _, task_id = text(member).partition(":")
            ready.setdefault(group, []).append(task_id)
        return Swept(
            wait_ms=None if int(wait) < 0 else int(wait),
            bells=tuple(
                Bells(text(group), text(route), 1, int(now_ms))
                for group, route in zip(due[::2], due[1::2], strict=True)
            ),
            expired=tuple(
                (text(token), text(group))
                for token, group in zip(expired[::2], expired[1::2], strict=True)
            ),
            ready=tuple((group, tuple(ids)) for group, ids in ready.items()),
        )

    def reclaim(
        self, token: str, group: str, trigger: Trigger, *, seen_dead: bool = False
    ) -> Bells:
        """Takes a dead run's batch back, unless it is alive; returns the doorbells to ring."""
        reclaim = partial(
            self.run,
            "reclaim",
            group=group,
            token=token,
            flush_every=trigger.flush_every,
            interval_ms=trigger.interval_ms,
            window_ms=DEDUPLICATION_WINDOW_MS,
            seen_dead=int(seen_dead),
            step=RECLAIM_STEP,
        )
        while (reply := reclaim())[0] == "more":
            pass
        if reply[0] != "reclaimed":
            return Bells(group, "", 0, 0)
        return Bells(group, text(reply[3]), reply[2], 0)

    def promote(self, group: str, ids: Sequence[str], trigger: Trigger) -> Bells:
        """Lets delayed requests wait with the others; returns the doorbells to ring."""
        signals, route = 0, ""
        for chunk in chunked(ids, PUSH_CHUNK):
            reply = self.run(
                "promote",
                group=group,
                flush_every=trigger.flush_every,
                interval_ms=trigger.interval_ms,
                ids=chunk,
            )
            signals, route = signals + reply[2], text(reply[3])
        return Bells(group, route, signals, 0)

    def find_token(self, bell: str) -> str | None:
        """Returns the token of the run that a doorbell started, while it has one."""
        with translated("find a run"):
            name = f"bell:{_bell_name(bell)}"
            found = self.client.hget(self.keys.resolve("claims"), name)
        return text(found) if found else None

    def last_errors(self, ids: Sequence[str]) -> list[str]:
        """Returns why each of some requests ran again or was put back, or ""."""
        with translated("read the last errors"):
            found: Any = self.client.hmget(self.keys.resolve("errors"), list(ids))
        return [text(error or b"") for error in found]

    def still_revoked(self, ids: Iterable[str], now_ms: int) -> set[str]:
        """Returns which ids, or hashes of stamps, were revoked and not forgotten since.

        Args:
            ids: Any number.
            now_ms: The server's time.
        """
        asked, key = list(ids), self.keys.resolve("revoked")

        def look() -> list[Any]:
            pipe: Any = self.client.pipeline(transaction=False)
            for name in asked:
                pipe.zscore(key, name)
            found: list[Any] = pipe.execute()
            return found

        with translated("look for what was revoked"):
            scores = patiently(self.client, look)
        return {name for name, score in zip(asked, scores, strict=True) if (score or 0) > now_ms}

    def waiting(self, group: str) -> int:
        """Returns how many requests of a group wait, without the delayed ones."""
        with translated("count requests"):
            return int(self.client.llen(self.keys.pending(group)))

    def ledger(self) -> tuple[int, int]:
        """Returns how many requests are stored, and how many the counters say should be."""
        stats = self.stats()
        stored = stats["waiting"] + stats["running"] + stats["dead"]
        return stored, stats["pushed"] - stats["acked"] - stats["dropped"]

    def groups(self) -> dict[str, str]:
        """Returns the route of each group, by its id."""
        with translated("list the groups"):
            found = self.client.hgetall(self.keys.resolve("routes"))
        return {text(group): text(route) for group, route in found.items()}

    def stats(self) -> dict[str, int]:
        """Returns counts of requests by where they are, and counters since the first one.

        Keys: `waiting` (pending and delayed), `running`, `delayed`, `dead` are now; `pushed`,
        `acked`, `claimed` (batches), `reclaimed` (batches), `dropped`, `revoked`, `put_backs` and
        `postponed` only grow. What was revoked while it ran counts as revoked, too, although it may
        have succeeded. The last two count runs that gave a request back without an outcome:
        `postponed` for a cause outside it, such as a shutdown or an outage.
        """
        key = self.keys.resolve

        def count() -> list[Any]:
            pipe: Any = self.client.pipeline(transaction=False)
            for command, name in _COUNTS:
                getattr(pipe, command)(key(name))
            counts: list[Any] = pipe.execute()
            return counts

        with translated("count requests"):
            items, running, delayed, eta, dead, counters = patiently(self.client, count)
        counted = {text(name): value for name, value in counters.items()}
        grown = ("pushed", "acked", "claimed", "reclaimed", "dropped", "revoked")
        put_back = ("put_backs", "postponed")
        return {
            "waiting": items - running - dead,
            "running": running,
            "delayed": delayed + eta,
            "dead": dead,
            **{name: int(counted.get(name, 0)) for name in (*grown, *put_back)},
        }


def _bind_push(
    script: Script,
    keys: Keys,
    now_ms: str,
    group: str,
    route: str,
    trigger: Trigger,
    max_pending: int,
    caller: str,
) -> BoundScript:
    return script.bind(
        keys,
        now_ms=now_ms,
        group=group,
        route=route,
        flush_every=trigger.flush_every,
        interval_ms=trigger.interval_ms,
        max_pending=max_pending,
        window_ms=DEDUPLICATION_WINDOW_MS,
        caller=caller,
    )


def _bell_name(bell: str) -> str:
    """Returns an id of a doorbell as records hold it: a forged one may be of any characters."""
    if not bell or TASK_ID.fullmatch(bell):
        return bell
    return blake2b(bell.encode("utf-8", "replace"), digest_size=16).hexdigest()


def parted(lengths: bytes, joined: bytes) -> list[bytes]:
    """Returns the strings that a script joined."""
    found, end = [], 0
    for length in map(int, lengths.split()):
        start, end = end, end + length
        found.append(joined[start:end])
    return found


def read_row(entry: bytes, attempts: bytes, value: bytes) -> Claimed:
    """Returns a request of its entry, its record of attempts and its stored value."""
    since_ms, _, _, task_id = entry.decode(errors="replace").split(":", 3)
    envelope = value.split(b":", 3)[-1]
    if not attempts:
        return Claimed(task_id, int(since_ms), NO_ATTEMPTS, envelope)
    tries, crashes, alone, split, lost, tried_ms, revoked, *put_back = map(
        int, attempts.split(b":")
    )
    state = Attempts(tries, crashes, alone, split, bool(lost), tried_ms, bool(revoked), *put_back)
    return Claimed(task_id, int(since_ms), state, envelope)
