"""One run: a cluster, faults for a while, then peace, and the check."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redis_batches.buffer.chunks import chunked
from redis_batches.buffer.store import Store
from redis_batches.core.settings import Settings
from redis_batches.operate.inspector import Inspector
from tests.chaos import tasks
from tests.chaos.check import check
from tests.chaos.cluster import Cluster
from tests.chaos.evidence import Evidence, Report, Sample
from tests.chaos.faults import FAULTS, Faults
from tests.chaos.ledger import Call, Log, Outcome, read_calls, read_notes, read_runs, read_waits
from tests.chaos.waiter import PATIENCE
from tests.chaos.watch import PlainWorker, Watch, read_meta

#: Seconds in which everything must have run once the faults are over.
DRAIN_TIMEOUT = PATIENCE
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
        kinds: The faults that may happen, by name.
    """

    seed: int
    rate: float = 200.0
    every: float = 1.0
    minutes: float | None = None
    faults: int | None = None
    requests: int | None = None
    kinds: tuple[str, ...] = tuple(FAULTS)

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
        self._faults = Faults(cluster, plan.seed, plan.every, plan.kinds)
        self._most_doorbells = 0
        self._samples: list[Sample] = []
        self._watch = Watch(cluster.backend)
        self._plain = PlainWorker(cluster.broker, cluster.backend)

    def rage(self) -> None:
        """Strikes until the plan is over."""
        began = said = time.monotonic()
        while True:
            next_at = time.monotonic() + self._faults.pause()
            while time.monotonic() < next_at:
                self._cluster.idle()
            seconds, blows = time.monotonic() - began, self._faults.blows
            if self._plan.is_over(seconds, len(blows), lambda: self._total("pushed")):
                return
            if not self._cluster.broker.struck:
                self._most_doorbells = max(self._most_doorbells, self._doorbells())
            self._faults.strike()
            if time.monotonic() > said + SAY_INTERVAL and not self._cluster.store.struck:
                said = time.monotonic()
                self._samples.append(self._sample(seconds))
                self._say(f"{seconds:6.0f} s {len(blows):5,} faults {self._progress()}")

    def drain(self) -> float | None:
        """Waits until everything ran; returns the seconds it took, or None if it did not."""
        began = time.monotonic()
        self._say("       the faults are over")
        self._cluster.settle_down()
        Log("faults").write(asdict(blow) for blow in self._faults.blows)
        try:
            self._cluster.wait(self._is_drained, DRAIN_TIMEOUT, "everything has run")
        except TimeoutError:
            self._say(f"       not drained: {self._progress()}")
            return None
        finally:
            self._say(f"       {self._progress()}")
            self._cluster.end_producers()
        return round(time.monotonic() - began, 1)

    def gather(self, folder: Path, drained: float | None) -> Evidence:
        """Returns what is known about the run."""
        stats = {name: store.stats() for name, store in self._stores().items()}
        letters = self._drop_dead_letters()
        try:
            self._cluster.wait(lambda: not self._strays(), KEYS_TIMEOUT, "the last keys are gone")
        except TimeoutError:
            self._say("       some keys stay")
        self._watch.stop()
        self._plain.stop()
        calls = read_calls(folder)
        return Evidence(
            calls=calls,
            runs=read_runs(folder),
            notes=read_notes(folder),
            waits=read_waits(folder),
            blows=self._faults.blows,
            stats=stats,
            letters=letters,
            answers=self._answers(calls),
            told=self._watch.told,
            strays={key: self._content(key) for key in self._strays()},
            samples=[*self._samples, self._sample(math.inf)],
            drained=drained,
            doorbells=self._most_doorbells,
            stuck=self._cluster.stuck,
            surprises=self._cluster.surprises,
        )

    def _answers(self, calls: dict[str, Call]) -> dict[str, Outcome]:
        ids = {key: call.task_id or key for key, call in calls.items() if call.expect}
        answers: dict[str, Outcome] = {}
        for chunk in chunked(ids.items(), 1000):
            names = [f"celery-task-meta-{task_id}" for _, task_id in chunk]
            stored = self._cluster.backend.client.mget(names)
            for (key, _), meta in zip(chunk, stored, strict=True):
                answers[key] = read_meta(meta) if meta else ("PENDING", None)
        return answers

    def _drop_dead_letters(self) -> dict[str, str]:
        """Forgets what was given up, since nothing else of it stays; returns ids and reasons."""
        found: dict[str, str] = {}
        # It rings nowhere, for which it would have to know how.
        unused: Any = None
        for name, store in self._stores().items():
            inspector = Inspector(store, getattr(tasks, name).trigger, unused, unused)
            letters = {each.id: each.error for each in inspector.list(store.stats()["dead"])}
            inspector.drop(letters)
            found.update(letters)
        return found

    def _doorbells(self) -> int:
        return int(self._cluster.broker.client.llen(QUEUE))

    def _stores(self) -> dict[str, Store]:
        """Returns what asks the server that is the primary now, by the short name of the task."""
        client, settings = self._cluster.store.client, Settings(namespace=tasks.NAMESPACE)
        return {
            name: Store(client, settings, getattr(tasks, name).name) for name in tasks.INTERVALS
        }

    def _sample(self, seconds: float) -> Sample:
        client = self._cluster.store.client
        memory = int(client.info("memory")["used_memory"])
        return Sample(seconds, memory, int(client.dbsize()), self._total("waiting"))

    def _is_drained(self) -> bool:
        stats = [store.stats() for store in self._stores().values()]
        ended = all(counts["waiting"] == counts["running"] == 0 for counts in stats)
        return ended and self._cluster.quiet and self._plain.is_idle()

    def _strays(self) -> list[str]:
        keys = [key.decode() for key in self._cluster.store.client.keys("*")]
        return sorted(key for key in keys if key.rpartition(":")[2] not in LASTING)

    def _content(self, key: str) -> str:
        client = self._cluster.store.client
        kind = client.type(key).decode()
        reads: dict[str, Callable[[], Any]] = {
            "hash": lambda: client.hgetall(key),
            "list": lambda: client.lrange(key, 0, 20),
            "zset": lambda: client.zrange(key, 0, 20, withscores=True),
        }
        return f"{kind} {reads[kind]()!r}"[:500]

    def _total(self, counter: str) -> int:
        return sum(store.stats()[counter] for store in self._stores().values())

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
