"""Revoking calls: in Redis first, where they wait, then by Celery's broadcast to the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger

from redis_batches.app.state import runtime_of
from redis_batches.buffer.chunks import CANCEL_CHUNK, chunked
from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.calls.result import LateResult
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.outcomes import Place
from redis_batches.core.triggers import Trigger
from redis_batches.runs.runner import Runner
from redis_batches.runs.state_writer import PATIENCE
from redis_batches.wire.stamps import has_stamp, stamp_keys

logger = get_logger(__name__)

_ByGroup: TypeAlias = dict[str, list[str]]

#: Looks for a request that its own batch moves from one group to another meanwhile.
MAX_ROUNDS = 5


def revoke(task: BatchTask, ids: Iterable[str], store: Store | None = None) -> dict[str, Place]:
    """Revokes calls of a batch task: those that wait or are delayed end at once, as REVOKED.

    Args:
        task: The batch task.
        ids: Their ids.
        store: The store of a process that shall not wait for what cannot be reached.

    Returns:
        Where each was. What runs goes on, but is not run again.

    Raises:
        StoreError: Redis could not be reached, or refused.
    """
    return _canceller(task, store).cancel(ids)


def revoke_stamped(
    task: BatchTask, stamps: Mapping[str, Any], store: Store | None = None
) -> Iterator[dict[str, Place]]:
    """Revokes calls of a batch task by their stamps; see `Canceller.cancel_stamped`."""
    return _canceller(task, store).cancel_stamped(stamps)


def _canceller(task: BatchTask, store: Store | None) -> Canceller:
    runner, patience = Runner(task, store), 0.0 if store else PATIENCE

    def discard(lease: Lease) -> None:
        try:
            runner.discard(lease, patience)
        except SoftTimeLimitExceeded:
            raise
        except Exception as exc:
            logger.warning(
                "cannot tell that %d requests of %s were revoked, a worker will: %r",
                len(lease.requests),
                task.name,
                exc,
            )

    return Canceller(store or runtime_of(task.app).store(task.name), task.trigger, discard)


class Canceller:
    """Cancels requests of one task.

    Args:
        store: The task's store.
        trigger: When a batch of the task is due.
        discard: Settles what a cancel leased; it may fail, and the lease then ends by itself.
    """

    def __init__(self, store: Store, trigger: Trigger, discard: Callable[[Lease], None]) -> None:
        self._store = store
        self._trigger = trigger
        self._discard = discard

    def cancel(self, ids: Iterable[str]) -> dict[str, Place]:
        """Takes out what waits or is delayed, and marks what runs; returns where each was.

        Raises:
            StoreError: Redis could not be reached, or refused.
        """
        places: dict[str, Place] = {}
        for chunk in chunked(dict.fromkeys(ids), CANCEL_CHUNK):
            wanted: _ByGroup = {"": chunk}
            for _ in range(MAX_ROUNDS):
                wanted = self._round(wanted, places)
                if not wanted:
                    break
        return places

    def _round(
        self, wanted: dict[str, list[str]], places: dict[str, Place]
    ) -> dict[str, list[str]]:
        """Asks once per group; returns what waits in another one than was thought."""
        elsewhere: _ByGroup = {}
        for group, ids in wanted.items():
            lease, found = self._store.cancel(group, ids, self._trigger)
            for each in found:
                places[each.id] = each.place
                if each.place is Place.ELSEWHERE:
                    elsewhere.setdefault(each.group, []).append(each.id)
            if lease is not None:
                self._discard(lease)
        return elsewhere

    def cancel_stamped(self, stamps: Mapping[str, Any]) -> Iterator[dict[str, Place]]:
        """Cancels what has one of some stamps, step by step.

        The stamps are remembered as ids are, so that a call that is made later with one of them is
        revoked by whoever claims it. Then it reads every stored request of the task once, so it
        takes time and bandwidth in proportion to the backlog; each step reads some 500 requests.

        Args:
            stamps: A value, or several, by the name of the stamp.

        Yields:
            Where the matching requests of a step were.
        """
        for chunk in chunked(stamp_keys(stamps), CANCEL_CHUNK):
            # No request has such an id: it is remembered, and no more.
            self._store.cancel("", list(dict.fromkeys(chunk)), self._trigger)
        for page in self._store.index.stored():
            yield self.cancel(name for name, envelope in page if has_stamp(envelope, stamps))


class BatchResult(LateResult):
    """The result of one call of a batch task; `revoke` needs no worker for what waits."""

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Revokes the call, as `celery.result.AsyncResult.revoke` does.

        A call that waits or is delayed ends at once, without a worker. One that runs goes on, also
        with `terminate`, because other calls are in its batch; but it is not run again.

        Raises:
            StoreError: Redis could not be reached, or refused.
        """
        if (task := self._task()) is not None:
            revoke(task, [self.id])
        super().revoke(connection, terminate, signal, wait, timeout)

    def revoke_by_stamped_headers(
        self,
        headers: Any,
        connection: Any = None,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Revokes the calls of this task that have one of some stamps, then asks the workers to.

        Raises:
            StoreError: Redis could not be reached, or refused.
        """
        if (task := self._task()) is not None:
            for _ in revoke_stamped(task, headers):
                pass
        super().revoke_by_stamped_headers(headers, connection, terminate, signal, wait, timeout)

    def _task(self) -> Any:
        """The task, unless this process has another app, or did not load it."""
        app: Any = self.app
        task = app.tasks.get(self._task_name)
        return task if getattr(task, "waits_in_redis", False) else None

    def __reduce_args__(self) -> tuple[Any, ...]:
        """Keeps the name of the task in a copy."""
        return self.id, self.backend, self._task_name, None, self.parent
