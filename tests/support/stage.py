"""A task with requests in every place, on which each script has something to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis

from redis_batches.buffer.store import Store
from redis_batches.driver.keys import NamespaceKeys
from redis_batches.driver.scripts import load_scripts
from redis_batches.testing.clock import Clock
from tests.support import raw, steps

#: What the scripts are called with: as much as possible happens at once.
COMMON = {"group": steps.GROUP.id, "route": steps.GROUP.route, "trigger": "3:0"}
OWN = ("own", "n", "", "", b"2")
VALUES: dict[str, dict[str, Any]] = {
    "push": {
        "max_pending": 1000,
        "window_ms": 1000,
        "caller": "held",
        "requests": ["new", "", "", "", b"1", *OWN, "dead", "n", "9" * 13, "9", b"3"],
    },
    "claim": {
        "token": "fresh",
        "bell": "bell",
        "rung_ms": 0,
        "lease_ms": steps.LEASE_MS,
        "limit_ms": 0,
        "once": 0,
        "force": 1,
        "max_bytes": 1000,
        "counted": 1,
        "follows": 0,
        "got": 0,
        "step": 1000,
        "step_bytes": 1_000_000,
    },
    "ack": {
        "token": "held",
        "window_ms": 1000,
        "window": 1,
        "well": 1,
        "ends": 1,
        "ids": "own own2 own3",
    },
    "release": {
        "token": "held",
        "max_dead": 1,
        "size": 1,
        "window_ms": 1000,
        "outcomes": [
            *("own", 0, "dead", 0, "x"),
            *("own2", 0, "put_back", 0, "x"),
            *("own3", 0, "retry", 9, "x"),
        ],
    },
    "extend": {"token": "held", "lease_ms": steps.LEASE_MS},
    "sweep": {
        "sweeper": "anne",
        "fresh_ms": 1000,
        "trigger": "1:0",
        "longest_ms": 0,
        "greet": 1,
        "limit": 10,
        "window_ms": 1000,
    },
    "reclaim": {"token": "held", "window_ms": 1000, "seen_dead": 1, "step": 1000},
    "promote": {"ids": ["delayed", "eta"]},
    "requeue": {"ids": ["dead"]},
    "drop": {"members": [f"{steps.GROUP.id}:dead"]},
    "repair": {"noted": 3, "counted": 3, "lost": [":own", ":lost"]},
    "cancel": {
        "token": "fresh",
        "lease_ms": steps.LEASE_MS,
        "window_ms": 1000,
        "window": 1,
        "ids": ["a", "own", "delayed", "eta", "dead", "nobody"],
    },
    "knock": {"opened": 0},
}


@dataclass
class Stage:
    """An hour after its requests came."""

    store: Store
    clock: Clock

    def __post_init__(self) -> None:
        """Brings them to their places."""
        store, client, now_ms = self.store, raw.client(self.store), self.clock.now_ms
        steps.ack_all(steps.push_and_claim(store, "done"))
        steps.bury(store, "dead")
        lease = steps.push_and_claim(store, "delayed")
        lease.release(steps.retry("delayed", delay_ms=steps.SECOND))
        steps.ack_all(lease)
        steps.push(store, steps.call("eta", eta_ms=now_ms + steps.SECOND), "own", "own2", "own3")
        self._fence = steps.claim(store, token="held", bell="rung").fence
        steps.push(store, "lost", "a", "b", "c")
        client.lpop(raw.key(store, "pending", steps.GROUP.id))
        client.hset(self.keys("knock").resolve("beat"), "out", "1")
        self.clock.advance(steps.HOUR)

    def dump(self, but: str = "") -> dict[bytes, bytes]:
        """Returns the content of every key but one."""
        client = raw.client(self.store)
        keys = client.keys("rb:{" + self.store.settings.namespace + "*")
        return {key: client.dump(key) for key in sorted(keys) if key.decode() != but}

    def keys(self, script: str) -> Any:
        """Returns the keys that a script takes."""
        shared = script == "knock"
        return NamespaceKeys(self.store.settings.namespace) if shared else raw.keys(self.store)

    def run(self, name: str, client: redis.Redis | None = None) -> list[Any]:
        """Runs a script with everything that it may have to do."""
        script = load_scripts()[name]
        known = {"now_ms": self.clock(), "fence": self._fence, **COMMON, **VALUES[name]}
        taken = {slot: known[slot] for slot in (*script.slots, script.rest) if slot in known}
        places = {"group": steps.GROUP.id, "token": known.get("token", "")}
        return script(client or raw.client(self.store), self.keys(name), **{**places, **taken})
