"""For how long each script keeps the server from everybody else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from benchmarks.bench import Bench, Section
from benchmarks.stores import leased, outgoing, store_at
from benchmarks.values import Column, Row, Values
from redis_batches.buffer.chunks import PUSH_CHUNK, RELEASE_CHUNK
from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.outcomes import Outcome, Verb
from redis_batches.core.requests import Group
from redis_batches.core.triggers import Trigger

LARGE, PAYLOAD = 1000, 1000
#: Due at once, so that a sweep finds what a claim left.
TRIGGER = Trigger(LARGE, 1000)
GROUP = Group("{}")
_T = TypeVar("_T")


class Block:
    """Takes batches through their life, and notes what each script takes."""

    def __init__(self, store: Store, values: Values) -> None:
        self._store = store
        self._values = values

    def live(self) -> None:
        """Takes three batches through their life."""
        store = self._store
        self._measure("ack of all", self._claim().ack)
        lease = self._claim()
        ids = [request.id for request in lease.requests]
        late = [Outcome(task_id, Verb.RETRY, 0, "an error") for task_id in ids[:RELEASE_CHUNK]]
        self._measure(f"release of {RELEASE_CHUNK}", lambda: lease.release(late))
        self._measure(f"reclaim of {LARGE - RELEASE_CHUNK}", partial(self._reclaim, lease))
        self._finish()
        lease = self._claim()
        self._measure(f"reclaim of {LARGE:,}", partial(self._reclaim, lease))
        self._measure("sweep", lambda: store.sweep(TRIGGER))
        self._finish()

    def _claim(self) -> Lease:
        for _ in range(0, LARGE, PUSH_CHUNK):
            calls = outgoing(PUSH_CHUNK, b'1\n[["' + b"x" * PAYLOAD + b'"],{}]')
            push = partial(self._store.push, GROUP, TRIGGER, calls)
            self._measure(f"push of {PUSH_CHUNK}", push)
        claim = partial(self._store.claim, GROUP.id, TRIGGER, force=True)
        lease = leased(self._measure(f"claim of {LARGE:,}", claim))
        if len(lease.requests) != LARGE:
            raise RuntimeError(f"a batch of {len(lease.requests)} requests")
        return lease

    def _reclaim(self, lease: Lease) -> Any:
        return self._store.reclaim(lease.token, GROUP.id, TRIGGER, seen_dead=True)

    def _finish(self) -> None:
        while isinstance(lease := self._store.claim(GROUP.id, TRIGGER, force=True), Lease):
            lease.ack()

    def _measure(self, name: str, work: Callable[[], _T]) -> _T:
        before = _used_ms(self._store)
        result = work()
        self._values.add(Row(name, "ms"), "busy", _used_ms(self._store) - before)
        return result


def measure(bench: Bench, values: Values) -> None:
    """Every value is that of one script call."""
    for _ in bench.each_round():
        bench.begin(bench.ours, "blocks")
        block = Block(store_at(bench.server), values)
        for _ in range(bench.sizes.blocks):
            block.live()


def _used_ms(store: Store) -> float:
    """Returns the milliseconds that the server's main thread has used."""
    info: Any = store._redis.client.info("cpu")
    return 1000.0 * (
        float(info["used_cpu_user_main_thread"]) + float(info["used_cpu_sys_main_thread"])
    )


SECTION = Section(
    name="blocks",
    title="For how long a script blocks the server",
    note=(
        f"Processor time of the server's main thread in one script call, for requests of"
        f" {PAYLOAD:,} B: the most is the longest that anybody else waits."
    ),
    columns=(Column("busy", "server busy"),),
    measure=measure,
)
