"""Claims a batch, runs the function, settles every request."""

from __future__ import annotations

import json
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject, Retry, WorkerLostError
from celery.utils.log import get_task_logger
from celery.utils.nodenames import gethostname
from kombu.serialization import prepare_accept_content
from kombu.utils.uuid import uuid

from redis_batches import completion
from redis_batches.backends import watch
from redis_batches.batch import Batch, running
from redis_batches.codec import Envelope, decode
from redis_batches.doorbell import GOES_ON, new_token, ring
from redis_batches.errors import BatchesError, LeaseLost
from redis_batches.following import MOMENT, is_watched
from redis_batches.lease import Lease
from redis_batches.model import Claimed, Idle
from redis_batches.request import SimpleRequest
from redis_batches.runtime import runtime_of
from redis_batches.store import Store

if TYPE_CHECKING:
    from redis_batches.task import Batches

logger = get_task_logger(__name__)

#: A request that killed its worker so often, alone in its batch, is not run again.
MAX_CRASHES_ALONE = 3
#: How long a request waits whose outcome could not be told: the result backend may be down.
UNTOLD_DELAY_MS = 5000
#: The attribute of a doorbell's request that holds the batch it runs.
RUNNING = "redis_batches_running"


class Runner:
    """Runs the batches of one task.

    Args:
        task: The batch task; while it answers a doorbell, `task.request` is the doorbell's.
        store: The task's store, or None for this process's own.
    """

    def __init__(self, task: Batches, store: Store | None = None) -> None:
        self._task = task
        self._runtime = runtime_of(task.app)
        self._store = store or self._runtime.store(task.name)

    def answer(self, marker: dict[str, Any]) -> Any:
        """Claims a batch for a doorbell, runs it and settles it; returns what the function did.

        While a backlog is deep it goes on with the next ones; see `following`.

        Raises:
            Ignore: There was nothing to run.
            Retry: The function raised, and at least one request runs again.
            LeaseLost: Another worker took the batch over.
        """
        until = monotonic() + MOMENT
        lease = self._claim(marker)
        if isinstance(lease, Idle):
            raise Ignore(f"nothing to run: {lease.reason}")
        force = bool(marker.get("force"))
        if force and self._store.waiting(lease.group):
            ring(self._task.app, self._task.name, replace(lease.bells, count=1), force=True)
        # A doorbell was rung for the rest, so there may be more than those that are out are for.
        goes_on = marker.get(GOES_ON) and lease.bells.count and not force
        returned = self._keep(lease)
        while goes_on and monotonic() < until and not is_watched(self._task):
            setattr(self._task.request, RUNNING, None)
            lease = self._claim(marker, follows=True)
            if isinstance(lease, Idle):
                break
            returned = self._keep(lease)
        return returned

    def _claim(self, marker: dict[str, Any], *, follows: bool = False) -> Lease | Idle:
        task, bell = self._task, self._task.request
        lease = self._store.claim(
            marker["group"],
            task.trigger,
            token=new_token(str(bell.hostname)),
            bell=str(bell.id),
            rung_ms=marker["rung_ms"],
            limit=task.time_limit,
            once=not task.acks_late,
            force=bool(marker.get("force")),
            counted=marker.get("counted", True),
            follows=follows,
        )
        if isinstance(lease, Lease):
            ring(task.app, task.name, lease.bells)
        return lease

    def _keep(self, lease: Lease) -> Any:
        with self._runtime.heartbeat.keep(lease):
            return self._run(lease)

    def run_alone(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a call outside Redis (direct or eager) as a batch of one.

        Returns:
            The call's own result.

        Raises:
            Exception: What the call failed with.
        """
        task, context = self._task, self._task.request
        request = SimpleRequest(
            context.id or uuid(),
            task.name,
            args,
            kwargs,
            dict(context.delivery_info or {}),
            context.hostname or gethostname(),
            context.ignore_result,
            context.reply_to,
            context.correlation_id,
            {**context.__dict__, "args": args, "kwargs": kwargs},
        )
        batch = Batch(task, [request], None)
        returned = self._call_function(batch)
        if task.returns_results:
            batch.finish(batch.results_of(returned))
            returned = None
        outcome = batch.values.get(request.id, returned)
        if isinstance(outcome, Retry) and not context.called_directly:
            when: Any = outcome.when
            raise task.retry(exc=outcome.exc, countdown=when)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def discard(self, lease: Lease, patience: float) -> None:
        """Tells of requests that a cancel leased that they were revoked, and forgets them.

        Those of which it cannot be told now wait for a worker that tells it later.

        Args:
            lease: What a cancel leased.
            patience: Seconds to tell again for while the result backend cannot be reached.
        """
        batch, hopeless = self._open(lease)
        batch.patience = patience
        try:
            self._sift(batch, hopeless)
            self._settle(batch)
        except Exception:
            self._put_back(batch, UNTOLD_DELAY_MS)
            raise

    def fail(self, group: str, token: str, exc: Exception) -> None:
        """Fails what a run that Celery ended has not decided, as Celery fails a single task.

        It is called in the event loop of a worker's main process, so it does not wait.
        """
        lease = self._store.claim(group, self._task.trigger, token=token)
        if isinstance(lease, Lease):
            batch, hopeless = self._open(lease)
            batch.patience = 0
            self._sift(batch, hopeless, ran=True)
            batch.fail_undecided(exc)
            self._settle(batch)

    def _run(self, lease: Lease) -> Any:
        watch(self._task.backend)
        batch, hopeless = self._open(lease)
        setattr(self._task.request, RUNNING, batch)
        try:
            self._sift(batch, hopeless)
            returned, raised = self._call(batch)
            self._settle(batch, well=raised is None)
        except Exception:
            self._put_back(batch, UNTOLD_DELAY_MS)
            raise
        except BaseException:
            self._put_back(batch, 0)
            raise
        if raised is not None:
            raise raised
        # The results are the requests' own: neither logs nor signals of the batch shall have them.
        return f"{len(batch.requests)} requests" if self._task.returns_results else returned

    def _call(self, batch: Batch) -> tuple[Any, Exception | None]:
        """Runs the function and tells every outcome; returns what Celery shall see of it."""
        if not batch.requests:
            return None, Ignore("no request of the batch is to be run")
        try:
            returned = self._call_function(batch)
            results = batch.results_of(returned) if self._task.returns_results else {}
        except Exception as exc:
            return None, self._end(batch, exc)
        batch.finish(results)
        return returned, None

    def _call_function(self, batch: Batch) -> Any:
        ids = [request.id for request in batch.requests]
        running.update(dict.fromkeys(ids, batch))
        try:
            return self._task.function(batch.requests)
        finally:
            for task_id in ids:
                running.pop(task_id, None)

    def _end(self, batch: Batch, exc: Exception) -> Exception:
        """Settles what is undecided when the function raised; returns what Celery shall see."""
        if batch.lost:
            return exc
        if isinstance(exc, Ignore):
            batch.abandon()
            return exc
        if isinstance(exc, Retry):
            batch.retry_undecided(exc)
            return exc
        if isinstance(exc, Reject):
            batch.reject(exc)
            return Ignore(f"rejected: {exc}")
        return Retry(exc=exc) if batch.take_raised(exc) else exc

    def _settle(self, batch: Batch, *, well: bool = False) -> None:
        """Gives back what runs again, and ends the batch."""
        for bells in batch.settle(well=well):
            ring(self._task.app, self._task.name, bells)

    def _put_back(self, batch: Batch, delay_ms: int) -> None:
        """Lets another worker run what this one cannot finish.

        Not if it must not run twice (`acks_late=False`): then its lease ends, and it fails.
        """
        if not self._task.acks_late:
            return
        for request in batch.undecided:
            batch.put_back(request, delay_ms)
        try:
            self._settle(batch)
        except LeaseLost:
            logger.info("batch %s is not this run's any more: nothing to put back", batch.token)
        except BatchesError as exc:
            logger.warning("cannot put batch %s back, its lease will end: %s", batch.token, exc)

    def _open(self, lease: Lease) -> tuple[Batch, list[tuple[SimpleRequest, Exception]]]:
        """Returns the batch, and those of its requests that cannot run with the reason."""
        task = self._task
        route = json.loads(lease.bells.route or "{}")
        accept = prepare_accept_content(task.app.conf.accept_content)
        hostname = task.request.hostname or gethostname()
        good: list[SimpleRequest] = []
        hopeless: list[tuple[SimpleRequest, Exception]] = []
        for claimed in lease.requests:
            envelope, exc = _decode(claimed, accept)
            request = SimpleRequest.of(
                task.name,
                claimed,
                envelope,
                hostname=hostname,
                route=route,
                ignore_result=task.ignore_result,
            )
            if exc is not None:
                hopeless.append((request, exc))
            else:
                good.append(request)
        batch = Batch(task, good, lease)
        for request, _ in hopeless:
            batch.hold(request)
        return batch, hopeless

    def _sift(
        self, batch: Batch, hopeless: list[tuple[SimpleRequest, Exception]], *, ran: bool = False
    ) -> None:
        """Takes out what an earlier run settled, gives up what cannot run, tells that others do.

        Args:
            batch: The batch.
            hopeless: What cannot run, with the reason.
            ran: Whether this very run may have settled requests before it died.
        """
        task = self._task
        seen_before = [request for request in batch.requests if ran or request.attempt > 1]
        settled = completion.settled(task, seen_before)
        for request, meta in settled:
            batch.tell_rest(request, meta)
        batch.leave_out([request for request, _ in settled])
        for request, exc in hopeless:
            batch.give_up(request, exc)
        if not ran:
            discarded = [(r, reason) for r in batch.requests if (reason := _why_not(r))]
            for request, reason in discarded:
                batch.revoke(request, reason)
            batch.leave_out([request for request, _ in discarded])
            completion.tell_started(task, batch.requests, batch.confirm)


def _why_not(request: SimpleRequest) -> str | None:
    """Returns why a request is not to be run any more, if so, in Celery's words."""
    if request.attempts.revoked:
        return "revoked"
    return "expired" if request.is_expired() else None


def _decode(claimed: Claimed, accept: Any) -> tuple[Envelope, Exception | None]:
    """Returns a call, and why it must not run, if so."""
    try:
        envelope = decode(claimed.envelope, accept)
    except BatchesError as exc:
        return Envelope(), exc
    if claimed.attempts.revoked:
        return envelope, None
    if claimed.attempts.lost:
        return envelope, WorkerLostError(
            "the worker died, and acks_late=False forbids a second run"
        )
    if claimed.attempts.alone >= MAX_CRASHES_ALONE:
        return envelope, WorkerLostError(
            f"the worker died {claimed.attempts.crashes} times while it ran this request, "
            f"{claimed.attempts.alone} times with no other in its batch"
        )
    return envelope, None
