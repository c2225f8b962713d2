"""The way of a doorbell: claim, decode, drop what was settled, call, decide, report, give back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

from billiard import current_process
from celery.exceptions import Ignore
from celery.utils.log import get_logger

from redis_batches.app.doorbell import DRAIN_ON, ENFORCED, new_token, ring
from redis_batches.app.state import runtime_of
from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.errors import BatchesError, LeaseLost, StoreError
from redis_batches.core.outcomes import Idle, Verb
from redis_batches.core.triggers import Bells
from redis_batches.runs import give_back
from redis_batches.runs.decide import End, Ending, ending_of, results_of, seen_by_celery
from redis_batches.runs.decode import Unrunnable, decode_claimed
from redis_batches.runs.drop import drop_settled, drop_stored
from redis_batches.runs.endings import (
    failure_of,
    is_caused_by,
    is_crash,
    is_shutdown,
    is_time_limit,
    shown,
)
from redis_batches.runs.mark_as import watch
from redis_batches.runs.next_batch import MOMENT, has_hooks
from redis_batches.runs.report_all import report_all
from redis_batches.runs.reporter import Reporter
from redis_batches.runs.running import call

logger = get_logger(__name__)

#: How long requests wait, at first, that their run could not finish: a server may be down.
UNFINISHED_DELAY_MS = 5000
#: The attribute of a doorbell's request that holds who settles the batch it runs.
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
        self._store = store or self._runtime.store(task.name)

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
        drains_on = marker.get(DRAIN_ON) and lease.bells.count and not force
        returned = self._keep(lease, force=force)
        while drains_on and monotonic() < until and not has_hooks(self._task):
            setattr(self._task.request, RUNNING, None)
            lease = self._claim(marker, follows=True)
            if isinstance(lease, Idle):
                break
            returned = self._keep(lease)
        return returned

    def discard(self, lease: Lease, patience: float) -> None:
        """Reports of requests that a cancel leased that they were revoked, and forgets them.

        Those of which it cannot be reported now wait for a worker that does it later.

        Args:
            lease: What a cancel leased.
            patience: Seconds for which the result backend is waited for.
        """
        reporter = Reporter(self._task, lease, patience)
        try:
            drop_settled(reporter, self._store, self._decode(reporter, lease))
            self._give_back(reporter, lease)
        except BaseException as exc:
            self._put_back(reporter, lease, exc)
            raise

    def fail(self, group: str, token: str, exc: Exception) -> None:
        """Fails what a run that Celery ended has not decided, as Celery fails a single task.

        It is called in the event loop of a worker's main process, so it does not wait.
        """
        lease = self._store.claim(group, self._task.trigger, token=token)
        if isinstance(lease, Lease):
            reporter = Reporter(self._task, lease, patience=0)
            drop_settled(reporter, self._store, self._decode(reporter, lease), ran=True)
            undecided = reporter.batch.undecided
            report_all(reporter, Ending([(request, exc) for request in undecided], final=True))
            self._give_back(reporter, lease)

    def _keep(self, lease: Lease, *, force: bool = False) -> Any:
        """Runs a batch; its lease is kept from here on, whatever takes long."""
        with self._runtime.heartbeat.keep(lease):
            return self._run(lease, force)

    def _run(self, lease: Lease, force: bool) -> Any:
        watch(self._task.backend)
        reporter = Reporter(self._task, lease)
        setattr(self._task.request, RUNNING, reporter)
        end = End()
        try:
            self._ring_for_rest(lease, force)
            unrunnable = self._decode(reporter, lease)
            drop_settled(reporter, self._store, unrunnable)
            reporter.start()
            end = self._call(reporter)
            ending = self._decide(reporter, end)
            kept = report_all(reporter, ending)
            self._give_back(reporter, lease, succeeded=end.raised is None)
        except BaseException as exc:
            if exc is not end.raised and exc.__context__ is None:
                # Whoever reads its traceback sees what the function raised before, too.
                exc.__context__ = end.raised
            self._break_off(reporter, lease, exc)
            if is_crash(exc) and current_process().name == "MainProcess":
                # Only a process of the prefork pool may end: others take the worker along.
                raise failure_of(exc) from exc
            raise
        if (seen := seen_by_celery(end, kept)) is not None:
            raise seen
        # The results are the requests' own: neither logs nor signals of the batch may have them.
        count = len(reporter.batch.requests)
        return f"{count} requests" if self._task.returns_results else end.returned

    # -- the steps

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

    def _ring_for_rest(self, lease: Lease, force: bool) -> None:
        """Rings for what the claim left behind; all of it, if what is not due was claimed, too."""
        self._ring([lease.bells])
        if force and self._store.waiting(lease.group):
            ring(self._task.app, self._task.name, replace(lease.bells, count=1), force=True)

    def _decode(self, reporter: Reporter, lease: Lease) -> Unrunnable:
        """Fills a batch with its calls; returns those that cannot run, with the reason."""
        runnable, unrunnable = decode_claimed(self._task, lease, self._store.settings)
        for request, _ in unrunnable:
            reporter.batch.hold(request)
        reporter.batch.add(runnable)
        return unrunnable

    def _call(self, reporter: Reporter) -> End:
        """Calls the function; returns how it ended."""
        if not reporter.batch.requests:
            return End(raised=Ignore("no request of the batch is to be run"))
        # It may have been paused since the claim, for longer than its lease.
        reporter.writer.confirm()
        task = self._task
        try:
            returned = call(reporter, task.function)
            ids = [request.id for request in reporter.batch.requests]
            results = results_of(task.name, ids, returned) if task.returns_results else {}
        except Exception as exc:
            return End(raised=exc)
        except BaseException as exc:
            if is_shutdown(exc) or is_crash(exc):
                raise
            return End(raised=exc)
        return End(returned, results)

    def _decide(self, reporter: Reporter, end: End) -> Ending:
        """Decides what the function left undecided by how it ended."""
        raised, writer = end.raised, reporter.writer
        if raised is not None:
            if writer.lost:
                return Ending(())
            if isinstance(raised, Exception) and is_caused_by(raised, writer.outage):
                # Not the function's fault: an outcome of it could not be reported.
                raise raised
            drop_stored(reporter, reporter.batch.doubtful)
        return ending_of(end, reporter.batch.undecided, store=self._task.returns_results)

    def _give_back(self, reporter: Reporter, lease: Lease, *, succeeded: bool = False) -> None:
        """Gives back what runs again, and ends the batch."""
        self._ring(give_back.end(lease, self._task.name, reporter.batch, succeeded=succeeded))

    def _ring(self, bells: Iterable[Bells]) -> None:
        for each in bells:
            ring(self._task.app, self._task.name, each)

    # -- what a run cannot finish

    def _break_off(self, reporter: Reporter, lease: Lease, exc: BaseException) -> None:
        """Leaves to others what this run cannot finish, whatever broke in."""
        if is_time_limit(exc):
            try:
                report_all(reporter, self._decide(reporter, End(raised=exc)))
                self._give_back(reporter, lease)
            except Exception as why:
                self._put_back(reporter, lease, why)
        elif is_crash(exc):
            self._try(reporter, partial(self._crash, reporter, lease))
        else:
            self._put_back(reporter, lease, exc)

    def _crash(self, reporter: Reporter, lease: Lease) -> None:
        """Counts a run as one that died, but for what it decided before."""
        self._ring(give_back.save(lease, reporter.batch))
        bells = self._store.reclaim(lease.token, lease.group, self._task.trigger, seen_dead=True)
        reporter.batch.abandon_rest()
        self._ring([bells])

    def _put_back(self, reporter: Reporter, lease: Lease, exc: BaseException) -> None:
        """Lets another worker run what this one cannot finish, or fail it, if it runs only once."""
        batch = reporter.batch
        if batch.called and not self._task.acks_late:
            self._try(reporter, partial(self._crash, reporter, lease))
            return
        verb, delay_ms = Verb.PUT_BACK, UNFINISHED_DELAY_MS
        if is_shutdown(exc):
            verb, delay_ms = Verb.POSTPONE, 0
        elif isinstance(exc, StoreError) or is_caused_by(exc, reporter.writer.outage):
            verb = Verb.POSTPONE
        claimed = [request.id for request in lease.requests]
        batch.put_back_rest(claimed, verb, delay_ms, shown(exc))
        self._try(reporter, partial(self._give_back, reporter, lease))

    def _try(self, reporter: Reporter, give_back: Callable[[], None]) -> None:
        """Gives a batch back; where that cannot be done, its lease ends and does it."""
        try:
            give_back()
        except LeaseLost:
            logger.info("batch %s is not this run's any more: nothing to put back", reporter.token)
        except BatchesError as exc:
            logger.warning("cannot put batch %s back, its lease will end: %s", reporter.token, exc)
