"""Revoking calls: in Redis first, where they wait, then by Celery's broadcast to the workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger

from redis_batches.app.state import runtime_of
from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.calls.result import LateResult
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.model import Place
from redis_batches.operate.canceller import Canceller
from redis_batches.runs.batch import TELL_PATIENCE
from redis_batches.runs.runner import Runner

logger = get_logger(__name__)


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
    runner, patience = Runner(task, store), 0.0 if store else TELL_PATIENCE

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
