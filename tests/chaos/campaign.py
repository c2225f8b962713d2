"""One run: a cluster, faults for a while, then peace, and the check."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from redis_batches.config import Settings
from redis_batches.scripts import chunked
from redis_batches.store import Store
from tests.chaos import tasks
from tests.chaos.check import Evidence, Report, Sample, check
from tests.chaos.cluster import Cluster
from tests.chaos.faults import Faults
from tests.chaos.ledger import Call, Log, read_calls, read_runs

#: Seconds in which everything must have run once the faults are over.
DRAIN_TIMEOUT = 120.0
#: Seconds after that in which the last keys must be gone.
KEYS_TIMEOUT = 10.0
#: Seconds between two lines that say how far it is.
SAY_INTERVAL = 5.0
#: Where the broker keeps the doorbells that no worker has fetched.
QUEUE = "celery"
#: Keys that stay when nothing waits or runs: counters, tombstones and what tasks there are.
LASTING = {"stats", "done", "revoked", "tasks", "beat"}


@dataclass(frozen=True)
class Plan:
    """How long a run takes: until the first of these.

    Attributes:
        seed: Decides the calls and the faults.
        rate: Calls a second in a rush.
        every: Seconds between two faults, at most.
        minutes: Time with faults.
        faults: Faults.
        requests: Accepted calls.
    """

    seed: int
    rate: float = 200.0
    every: float = 1.0
    minutes: float | None = None
    faults: int | None = None
    requests: int | None = None

    def is_over(self, seconds: float, faults: int, requests: Callable[[], int]) -> bool:
        """Whether there were faults for long enough."""
        return (
            (self.minutes is not None and seconds >= self.minutes * 60)
            or (self.faults is not None and faults >= self.faults)
            or (self.requests is not None and requests() >= self.requests)
        )


class Campaign:
    """Runs a plan on a cluster.

    Args:
        cluster: The cluster, started.
        plan: The plan.
        say: What it says while it goes on.
    """

    def __init__(self, cluster: Cluster, plan: Plan, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._plan = plan
        self._say = say
        self._faults = Faults(cluster, plan.seed, plan.every)
        self._client: Any = redis.Redis.from_url(cluster.store.url)
        self._broker: Any = redis.Redis.from_url(cluster.broker.url)
        self._most_doorbells = 0
        self._samples: list[Sample] = []
        settings = Settings(namespace=tasks.NAMESPACE)
        self._stores = {
            name: Store(self._client, settings, getattr(tasks, name).name)
            for name in tasks.INTERVALS
        }

    def rage(self) -> None:
        """Strikes until the plan is over."""
        began = said = time.monotonic()
        log = Log("faults")
        while True:
            next_at = time.monotonic() + self._faults.pause()
            while time.monotonic() < next_at:
                self._cluster.idle()
            seconds, blows = time.monotonic() - began, self._faults.blows
            if self._plan.is_over(seconds, len(blows), lambda: self._total("pushed")):
                return
            self._most_doorbells = max(self._most_doorbells, self._broker.llen(QUEUE))
            self._faults.strike()
            log.write([asdict(blow) for blow in blows[-1:]], sync=False)
            if time.monotonic() > said + SAY_INTERVAL:
                said = time.monotonic()
                self._samples.append(self._sample(seconds))
                self._say(f"{seconds:6.0f} s {len(blows):5,} faults {self._progress()}")

    def drain(self) -> float | None:
        """Waits until everything ran; returns the seconds it took, or None if it did not."""
        began = time.monotonic()
        self._say("       the faults are over")
        self._cluster.settle_down()
        try:
            self._cluster.wait(self._is_drained, DRAIN_TIMEOUT, "everything has run")
        except TimeoutError:
            self._say(f"       not drained: {self._progress()}")
            return None
        finally:
            self._say(f"       {self._progress()}")
        return round(time.monotonic() - began, 1)

    def gather(self, folder: Path, drained: float | None) -> Evidence:
        """Returns what is known about the run."""
        try:
            self._cluster.wait(lambda: not self._strays(), KEYS_TIMEOUT, "the last keys are gone")
        except TimeoutError:
            self._say("       some keys stay")
        calls = read_calls(folder)
        return Evidence(
            calls=calls,
            runs=read_runs(folder),
            blows=self._faults.blows,
            stats={name: store.stats() for name, store in self._stores.items()},
            answers=self._answers(calls),
            strays={key: self._content(key) for key in self._strays()},
            samples=[*self._samples, self._sample(math.inf)],
            drained=drained,
            doorbells=self._most_doorbells,
            stuck=self._cluster.stuck,
            surprises=self._cluster.surprises,
        )

    def _answers(self, calls: dict[str, Call]) -> dict[str, tuple[str, Any]]:
        backend: Any = Celery(backend=self._cluster.backend_url, set_as_current=False).backend
        asked = {
            key: backend.get_key_for_task(call.task_id)
            for key, call in calls.items()
            if call.task_id and call.task != "count"
        }
        answers: dict[str, tuple[str, Any]] = {}
        for chunk in chunked(asked.items(), 1000):
            stored = backend.client.mget([name for _, name in chunk])
            for (key, _), value in zip(chunk, stored, strict=True):
                meta = backend.decode_result(value) if value else {"status": "PENDING"}
                answers[key] = meta["status"], meta.get("result")
        return answers

    def _sample(self, seconds: float) -> Sample:
        memory = int(self._client.info("memory")["used_memory"])
        return Sample(seconds, memory, int(self._client.dbsize()), self._total("waiting"))

    def _is_drained(self) -> bool:
        stats = [store.stats() for store in self._stores.values()]
        return all(counts["waiting"] == counts["running"] == 0 for counts in stats)

    def _strays(self) -> list[str]:
        keys = [key.decode() for key in self._client.keys("*")]
        return sorted(key for key in keys if key.rpartition(":")[2] not in LASTING)

    def _content(self, key: str) -> str:
        kind = self._client.type(key).decode()
        reads: dict[str, Callable[[], Any]] = {
            "hash": lambda: self._client.hgetall(key),
            "list": lambda: self._client.lrange(key, 0, 20),
            "zset": lambda: self._client.zrange(key, 0, 20, withscores=True),
        }
        return f"{kind} {reads[kind]()!r}"[:500]

    def _total(self, counter: str) -> int:
        return sum(store.stats()[counter] for store in self._stores.values())

    def _progress(self) -> str:
        counts = (f"{self._total(name):7,} {name}" for name in ("pushed", "acked", "waiting"))
        return " ".join(counts)


def run(plan: Plan, folder: Path, say: Callable[[str], None] = lambda _: None) -> Report:
    """Runs a plan.

    Args:
        plan: The plan.
        folder: Where logs and ledgers go.
        say: What it says while it goes on.

    Returns:
        The figures, and what went wrong.
    """
    with Cluster(folder, seed=plan.seed, rate=plan.rate) as cluster:
        campaign = Campaign(cluster, plan, say)
        campaign.rage()
        drained = campaign.drain()
        return check(campaign.gather(folder, drained))
