"""What is asked about a task's requests without changing them: one read each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

from redis_batches.core.settings import TASK_ID
from redis_batches.driver.executor import Executor
from redis_batches.wire.envelope import text

_COUNTS = (
    ("hlen", "items"),
    ("hlen", "own"),
    ("zcard", "delayed"),
    ("zcard", "eta"),
    ("zcard", "dead"),
    ("hgetall", "stats"),
)


class Reads:
    """The reads of a store.

    Args:
        redis: Asks Redis.
    """

    def __init__(self, redis: Executor) -> None:
        self._redis = redis

    def find_token(self, bell: str) -> str | None:
        """Returns the token of the run that a doorbell started, while it has one."""
        name = f"bell:{bell_name(bell)}"
        found = self._redis.ask("find a run", "hget", "claims", name)
        return text(found) if found else None

    def last_errors(self, ids: Sequence[str]) -> list[str]:
        """Returns why each of some requests ran again or was put back, or ""."""
        found = self._redis.ask("read the last errors", "hmget", "errors", list(ids))
        return [text(error or b"") for error in found]

    def still_revoked(self, ids: Iterable[str], now_ms: int) -> set[str]:
        """Returns which ids, or hashes of stamps, were revoked and not forgotten since.

        Args:
            ids: Any number.
            now_ms: The server's time.
        """
        asked = list(ids)
        commands = [("zscore", "revoked", name) for name in asked]
        scores = self._redis.ask_all("look for what was revoked", commands)
        return {name for name, score in zip(asked, scores, strict=True) if (score or 0) > now_ms}

    def waiting(self, group: str) -> int:
        """Returns how many requests of a group wait, without the delayed ones."""
        return int(self._redis.ask("count requests", "llen", "pending", group=group))

    def ledger(self) -> tuple[int, int]:
        """Returns how many requests are stored, and how many the counters say should be."""
        stats = self.stats()
        stored = stats["waiting"] + stats["running"] + stats["dead"]
        return stored, stats["pushed"] - stats["acked"] - stats["dropped"]

    def groups(self) -> dict[str, str]:
        """Returns the route of each group, by its id."""
        found = self._redis.ask("list the groups", "hgetall", "routes")
        return {text(group): text(route) for group, route in found.items()}

    def stats(self) -> dict[str, int]:
        """Returns counts of requests by where they are, and counters since the first one.

        Keys: `waiting` (pending and delayed), `running`, `delayed`, `dead` are now; `pushed`,
        `acked`, `claimed` (batches), `reclaimed` (batches), `dropped`, `revoked`, `put_backs` and
        `postponed` only grow. What was revoked while it ran counts as revoked, too, although it may
        have succeeded. The last two count runs that gave a request back without an outcome:
        `postponed` for a cause outside it, such as a shutdown or an outage.
        """
        counts = self._redis.ask_all("count requests", _COUNTS)
        items, running, delayed, eta, dead, counters = counts
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


def bell_name(bell: str) -> str:
    """Returns an id of a doorbell as records hold it: a forged one may be of any characters."""
    if not bell or TASK_ID.fullmatch(bell):
        return bell
    return blake2b(bell.encode("utf-8", "replace"), digest_size=16).hexdigest()
