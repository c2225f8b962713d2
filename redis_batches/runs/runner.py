"""Claims a batch, runs the function, settles every request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from time import monotonic
from typing import Any

from billiard import current_process
from celery.exceptions import Ignore, Reject, Retry, WorkerLostError
from celery.utils.log import get_logger
from celery.utils.nodenames import gethostname
from kombu.serialization import prepare_accept_content
from kombu.utils.uuid import uuid

from redis_batches.app.doorbell import DRAIN_ON, ENFORCED, new_token, ring
from redis_batches.app.state import runtime_of
from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.errors import BatchesError, LeaseLost, PutBackTooOften, StoreError
from redis_batches.core.model import Bells, Claimed, Idle, Verb
from redis_batches.runs import report
from redis_batches.runs.batch import Batch
from redis_batches.runs.endings import (
    failure_of,
    is_caused_by,
    is_crash,
    is_shutdown,
    is_time_limit,
    shown,
)
from redis_batches.runs.mark_as import watch
from redis_batches.runs.next_batch import MOMENT, is_watched
from redis_batches.runs.request import SimpleRequest
from redis_batches.wire import protocol
from redis_batches.wire.envelope import CorruptEnvelope, Envelope, decode
from redis_batches.wire.stamps import stamp_keys

logger = get_logger(__name__)

#: A request that killed its worker so often, alone in its batch, is not run again.
MAX_CRASHES_ALONE = 3
#: How long requests wait, at first, that their run could not finish: a server may be down.
UNFINISHED_DELAY_MS = 5000
#: The attribute of a doorbell's request that holds the batch it runs.
RUNNING = "redis_batches_running"


class Runner:
    """Runs the batches of one task.

    Args:
        task: The batch task; while it answers a doorbell, `task.request` is the doorbell's.
        store: The task's store, or None for this process's own.
    """

    def __init__(self, task: BatchTask, store: Store | None = None) -> None:
        self._task = task
        self._runtime = runtime_of(task.app)
        self._given = store

    @cached_property
    def _store(self) -> Store:
        """The store, made at its first use: what runs outside Redis needs none."""
        return self._given or self._runtime.store(self._task.name)

    @property
    def _largest(self) -> int:
        """Bytes of a call that its caller, with limits of its own, may have compressed."""
        settings = self._store.settings
        return max(settings.max_payload, settings.flush_bytes)

    def answer(self, marker: dict[str, Any]) -> Any:
        """Claims a batch for a doorbell, runs it and settles it; returns what the function did.

        While a backlog is deep it drains on; see `next_batch`.

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
        # A doorbell was rung for the rest, so there may be more than those that are out are for.
        goes_on = marker.get(DRAIN_ON) and lease.bells.count and not force
        returned = self._keep(lease, force=force)
        while goes_on and monotonic() < until and not is_watched(self._task):
            setattr(self._task.request, RUNNING, None)
            lease = self._claim(marker, follows=True)
            if isinstance(lease, Idle):
                break
            returned = self._keep(lease)
        return returned

    def _claim(self, marker: dict[str, Any], *, follows: bool = False) -> Lease | Idle:
        task, bell = self._task, self._task.request
        return self._store.claim(
            marker["group"],
            task.trigger,
            token=new_token(str(bell.hostname)),
            bell=str(bell.id),
            rung_ms=marker["rung_ms"],
            # Where nobody ends a run that takes too long, its lease must not end either.
            limit=task.time_limit if marker.get(ENFORCED) else None,
            once=not task.acks_late,
            force=bool(marker.get("force")),
            counted=marker.get("counted", True),
            follows=follows,
        )

    def _keep(self, lease: Lease, *, force: bool = False) -> Any:
        """Runs a batch; its lease is kept from here on, whatever takes long."""
        with self._runtime.heartbeat.keep(lease):
            return self._run(lease, force)

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
        batch = Batch(self._task, [], lease)
        batch.patience = patience
        try:
            self._sift(batch, self._open(batch))
            self._settle(batch)
        except BaseException as exc:
            self._put_back(batch, exc)
            raise

    def fail(self, group: str, token: str, exc: Exception) -> None:
        """Fails what a run that Celery ended has not decided, as Celery fails a single task.

        It is called in the event loop of a worker's main process, so it does not wait.
        """
        lease = self._store.claim(group, self._task.trigger, token=token)
        if isinstance(lease, Lease):
            batch = Batch(self._task, [], lease)
            batch.patience = 0
            self._sift(batch, self._open(batch), ran=True)
            batch.fail_undecided(exc)
            self._settle(batch)

    def _run(self, lease: Lease, force: bool) -> Any:
        watch(self._task.backend)
        batch = Batch(self._task, [], lease)
        setattr(self._task.request, RUNNING, batch)
        try:
            self._ring(lease, force)
            self._sift(batch, self._open(batch))
            returned, raised = self._call(batch)
            self._settle(batch, well=raised is None)
        except BaseException as exc:
            self._break_off(batch, exc)
            if is_crash(exc) and current_process().name == "MainProcess":
                # Only a process of the prefork pool may end: others take the worker along.
                raise failure_of(exc) from exc
            raise
        if raised is not None:
            raise raised
        # The results are the requests' own: neither logs nor signals of the batch shall have them.
        return f"{len(batch.requests)} requests" if self._task.returns_results else returned

    def _ring(self, lease: Lease, force: bool) -> None:
        """Rings for what the claim left behind; all of it, if what is not due was claimed, too."""
        ring(self._task.app, self._task.name, lease.bells)
        if force and self._store.waiting(lease.group):
            ring(self._task.app, self._task.name, replace(lease.bells, count=1), force=True)

    def _call(self, batch: Batch) -> tuple[Any, BaseException | None]:
        """Runs the function and tells every outcome; returns what Celery shall see of it."""
        if not batch.requests:
            return None, Ignore("no request of the batch is to be run")
        # It may have been paused since the claim, for longer than its lease.
        batch.confirm()
        try:
            returned = self._call_function(batch)
            results = batch.results_of(returned) if self._task.returns_results else {}
        except Exception as exc:
            return None, self._end(batch, exc)
        except BaseException as exc:
            if is_shutdown(exc) or is_crash(exc):
                raise
            return None, self._fail(batch, exc)
        batch.finish(results)
        return returned, None

    def _call_function(self, batch: Batch) -> Any:
        return batch.call(self._task.function)

    def _end(self, batch: Batch, exc: Exception) -> Exception:
        """Settles what is undecided when the function raised; returns what Celery shall see."""
        if batch.lost:
            return exc
        if is_caused_by(exc, batch.outage):
            # Not the function's fault: an outcome of it could not be told.
            raise exc
        self._leave_out_settled(batch, batch.doubtful)
        kept = batch.take_raised(exc)
        if isinstance(exc, Reject):
            return Ignore(f"rejected: {exc}")
        return Retry(exc=exc) if kept and not isinstance(exc, Retry) else exc

    def _fail(self, batch: Batch, exc: BaseException) -> BaseException:
        """Fails what is undecided when something broke in; returns what Celery shall see."""
        failure = failure_of(exc)
        if not batch.lost:
            self._leave_out_settled(batch, batch.doubtful)
            batch.fail_undecided(failure)
        # The pool that set the time limit deals with it, as with that of any task.
        return exc if is_time_limit(exc) else failure

    def _settle(self, batch: Batch, *, well: bool = False) -> None:
        """Gives back what runs again, and ends the batch."""
        self._ring_all(batch.settle(well=well))

    def _ring_all(self, bells: Iterable[Bells]) -> None:
        for each in bells:
            ring(self._task.app, self._task.name, each)

    def _break_off(self, batch: Batch, exc: BaseException) -> None:
        """Leaves to others what this run cannot finish, whatever broke in."""
        if is_time_limit(exc):
            try:
                self._fail(batch, exc)
                self._settle(batch)
            except Exception as why:
                self._put_back(batch, why)
        elif is_crash(exc):
            self._try(batch, partial(self._crash, batch))
        else:
            self._put_back(batch, exc)

    def _crash(self, batch: Batch) -> None:
        """Counts a run as one that died, but for what it decided before."""
        lease = batch.lease
        assert lease is not None
        self._ring_all(batch.save())
        bells = self._store.reclaim(lease.token, lease.group, self._task.trigger, seen_dead=True)
        batch.abandon_rest()
        self._ring_all([bells])

    def _put_back(self, batch: Batch, exc: BaseException) -> None:
        """Lets another worker run what this one cannot finish, or fail it, if it runs only once."""
        if batch.called and not self._task.acks_late:
            self._try(batch, partial(self._crash, batch))
            return
        verb, delay_ms = Verb.PUT_BACK, UNFINISHED_DELAY_MS
        if is_shutdown(exc):
            verb, delay_ms = Verb.POSTPONE, 0
        elif isinstance(exc, StoreError) or is_caused_by(exc, batch.outage):
            verb = Verb.POSTPONE
        batch.put_back_rest(verb, delay_ms, shown(exc))
        self._try(batch, partial(self._settle, batch))

    def _try(self, batch: Batch, give_back: Callable[[], None]) -> None:
        """Gives a batch back; where that cannot be done, its lease ends and does it."""
        try:
            give_back()
        except LeaseLost:
            logger.info("batch %s is not this run's any more: nothing to put back", batch.token)
        except BatchesError as exc:
            logger.warning("cannot put batch %s back, its lease will end: %s", batch.token, exc)

    def _open(self, batch: Batch) -> list[tuple[SimpleRequest, Exception]]:
        """Fills a batch with its calls; returns those that cannot run, with the reason."""
        task, lease = self._task, batch.lease
        assert lease is not None
        route = json.loads(lease.bells.route or "{}")
        accept = prepare_accept_content(task.app.conf.accept_content)
        hostname = task.request.hostname or gethostname()
        most = self._runtime.settings.max_put_backs
        good: list[SimpleRequest] = []
        unrunnable: list[tuple[SimpleRequest, Exception]] = []
        for claimed in lease.requests:
            envelope, exc = _decode(claimed, accept, most, self._largest)
            request = SimpleRequest.of(
                task.name,
                claimed,
                envelope,
                hostname=hostname,
                route=route,
                ignore_result=task.ignore_result,
            )
            if exc is not None:
                unrunnable.append((request, exc))
                batch.hold(request)
            else:
                good.append(request)
        batch.add(good)
        return unrunnable

    def _sift(
        self,
        batch: Batch,
        unrunnable: list[tuple[SimpleRequest, Exception]],
        *,
        ran: bool = False,
    ) -> None:
        """Takes out what an earlier run settled, gives up what cannot run, tells that others do.

        Args:
            batch: The batch.
            unrunnable: What cannot run, with the reason.
            ran: Whether this very run may have settled requests before it died.
        """
        seen_before = [request for request in batch.undecided if ran or request.attempt > 1]
        self._leave_out_settled(batch, seen_before)
        self._give_up(batch, [(r, exc) for r, exc in unrunnable if batch.find(r.id) is not None])
        if not ran:
            stamped = self._revoked_by_stamps(batch)
            discarded = [(r, reason) for r in batch.requests if (reason := _why_not(r, stamped))]
            for request, reason in discarded:
                batch.revoke(request, reason)
            batch.show_undecided()
            tell = partial(report.tell_started, self._task, batch.requests, batch.confirm)
            batch.patiently(tell)

    def _revoked_by_stamps(self, batch: Batch) -> set[str]:
        """Returns the ids of requests that have a stamp which was revoked before they were made."""
        keys = {r.id: set(stamp_keys(stamps)) for r in batch.requests if (stamps := r.stamps)}
        if not keys or batch.lease is None:
            return set()
        found = self._store.still_revoked(set().union(*keys.values()), batch.lease.started_ms)
        return {task_id for task_id, own in keys.items() if own & found}

    def _leave_out_settled(self, batch: Batch, requests: Sequence[SimpleRequest]) -> None:
        """Takes out those of some requests whose final state is stored already."""
        if not requests:
            return
        settled = batch.patiently(partial(report.settled, self._task, requests))
        for request, meta in settled:
            batch.tell_rest(request, meta)
        batch.leave_out([request for request, _ in settled])

    def _give_up(self, batch: Batch, unrunnable: Sequence[tuple[SimpleRequest, Exception]]) -> None:
        tired = [request.id for request, exc in unrunnable if isinstance(exc, PutBackTooOften)]
        reasons = dict(zip(tired, self._store.last_errors(tired), strict=True)) if tired else {}
        for request, exc in unrunnable:
            if request.id in reasons:
                times = request.attempts.put_backs
                exc = PutBackTooOften(self._task.name, request.id, times, reasons[request.id])
            batch.give_up(request, exc)


def _why_not(request: SimpleRequest, stamped: set[str]) -> str | None:
    """Returns why a request is not to be run any more, if so, in Celery's words.

    Args:
        request: The request.
        stamped: Ids of those that a stamp revoked.
    """
    if request.attempts.revoked or request.id in stamped:
        return "revoked"
    return "expired" if request.is_expired() else None


def _decode(
    claimed: Claimed, accept: Any, most_put_backs: int, limit: int
) -> tuple[Envelope, Exception | None]:
    """Returns a call, and why it must not run, if so."""
    attempts = claimed.attempts
    try:
        envelope = decode(claimed.envelope, accept, limit)
    except BatchesError as exc:
        return Envelope(), exc
    odd = protocol.drop_odd(envelope)
    if attempts.revoked:
        return envelope, None
    if odd:
        wrong = ", ".join(f"{name} is not {allowed}" for name, _, allowed in odd)
        return envelope, CorruptEnvelope(f"the stored request is no call: {wrong}")
    if attempts.lost:
        return envelope, WorkerLostError(
            "the worker died, and acks_late=False forbids a second run"
        )
    if attempts.alone >= MAX_CRASHES_ALONE:
        return envelope, WorkerLostError(
            f"the worker died {attempts.crashes} times while it ran this request, "
            f"{attempts.alone} times with no other in its batch"
        )
    if attempts.put_backs >= most_put_backs:
        return envelope, PutBackTooOften("", claimed.id, attempts.put_backs, "")
    return envelope, None
