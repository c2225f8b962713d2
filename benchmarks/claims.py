"""The limit of a worker: the scripts and redis-py alone, without Celery."""

from __future__ import annotations

import json
import multiprocessing
import time
from typing import Any

import redis

from benchmarks import workload
from redis_batches.buffer.chunks import chunked
from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.settings import Settings
from redis_batches.driver.connection import connect
from redis_batches.driver.sources import folder
from redis_batches.runs.states import CHUNK as RESULTS_CHUNK
from redis_batches.wire.envelope import decode

#: As long as what Celery's backend stores of a result, without the result.
_META: dict[str, Any] = {
    **{"status": "SUCCESS", "traceback": None, "children": []},
    "date_done": "2026-01-01T00:00:00.000000+00:00",
}
_EXPIRES = 86_400


class Claims:
    """Claims, decodes and acks what waits for a task, and stores a result each if it has any.

    Args:
        task: The batch task.
    """

    def __init__(self, task: Any) -> None:
        self._store = Store(connect(f"{workload.SERVER}/0", 5, 0), Settings(), task.name)
        self._trigger = task.trigger
        (self._group,) = self._store.groups()
        self._backend: redis.Redis | None = None
        if not task.ignore_result:
            self._backend = redis.Redis.from_url(f"{workload.SERVER}/1")
            self._backend.ping()

    def take_all(self) -> int:
        """Goes on until nothing is due; returns how many requests there were."""
        count = 0
        while isinstance(lease := self._store.claim(self._group, self._trigger), Lease):
            calls = [(request.id, decode(request.envelope, None)) for request in lease.requests]
            if self._backend is not None:
                results = [(task_id, call.body[0][0]) for task_id, call in calls]
                _store_results(self._backend, results)
            lease.ack()
            count += len(calls)
        return count


def _store_results(backend: redis.Redis, results: list[tuple[str, Any]]) -> None:
    """Stores what Celery's Redis backend would, by the script that a worker uses."""
    script = backend.register_script((folder() / "results" / "store.lua").read_text("utf-8"))
    for chunk in chunked(results, RESULTS_CHUNK):
        rows: list[Any] = []
        for task_id, result in chunk:
            rows += (b"", _EXPIRES, json.dumps({**_META, "result": result, "task_id": task_id}))
        script([f"celery-task-meta-{task_id}" for task_id, _ in chunk], rows)


def claim_in_processes(task: Any, count: int, processes: int) -> float:
    """Returns requests per second of some processes that together claim `count` requests."""
    context = multiprocessing.get_context("fork")
    barrier, done = context.Barrier(processes + 1), context.Queue()

    def work() -> None:
        claims = Claims(task)
        barrier.wait()
        done.put(claims.take_all())

    pool = [context.Process(target=work) for _ in range(processes)]
    for process in pool:
        process.start()
    barrier.wait()
    began = time.perf_counter()
    claimed = sum(done.get(timeout=60) for _ in pool)
    elapsed = time.perf_counter() - began
    for process in pool:
        process.join()
    if claimed != count:
        raise RuntimeError(f"{claimed} of {count} requests were claimed")
    return count / elapsed
