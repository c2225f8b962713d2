"""Settles the requests of one run: decides, reports, and notes it then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from celery import Task
from celery.exceptions import TaskRevokedError
from celery.utils.log import get_logger

from redis_batches.buffer.chunks import chunked
from redis_batches.buffer.lease import Lease
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.errors import StoreError
from redis_batches.core.outcomes import Outcome, Verb
from redis_batches.runs import canvas, earlier, report
from redis_batches.runs.batch import Batch, Fate
from redis_batches.runs.decide import Action, Rules
from redis_batches.runs.endings import failure_of, shown
from redis_batches.runs.request import SimpleRequest
from redis_batches.runs.running import found_by
from redis_batches.runs.state_writer import StateWriter, is_transient
from redis_batches.runs.states import CHUNK, Guard
from redis_batches.wire.envelope import UnknownEnvelope

logger = get_logger(__name__)

#: How long a request of a newer version waits for a newer worker, at first.
UNKNOWN_DELAY_MS = 5000


class Reporter:
    """Settles the requests of one run: by the function, one by one, or all when it ended.

    Args:
        task: The batch task.
        lease: The run's, or None outside Redis: then nobody is told anything.
        patience: Seconds for which it waits for a result backend; default: `PATIENCE`.

    Attributes:
        task: The batch task.
        lease: The run's, or None.
        batch: What was decided.
        rules: How it is decided.
        writer: Writes what is reported.
        ended: Whether all is settled now, because the function ended.
    """

    def __init__(self, task: BatchTask, lease: Lease | None, patience: float | None = None) -> None:
        self.task = task
        self.lease = lease
        self.batch: Batch[SimpleRequest] = Batch()
        self.writer = StateWriter(task, lease, patience)
        self.rules = Rules(task)
        self.ended = False

    @property
    def token(self) -> str:
        """Names this run of the batch; "" outside Redis."""
        return self.lease.token if self.lease else ""

    # -- one request

    def succeed(self, request: SimpleRequest, value: Any, *, store: bool = True) -> None:
        """Settles one request with a result; one that cannot be serialized fails it."""
        self._report(request, value, lambda: self._write_success(request, value, store))

    def fail(self, request: SimpleRequest, exc: object) -> None:
        """Settles one request with an exception.

        Raises:
            TypeError: It is none.
        """
        failure = failure_of(exc)
        self._report(request, failure, lambda: self._write_failure(request, failure))

    def fail_instead(self, request: SimpleRequest, exc: Exception) -> None:
        """Fails one request whose outcome could not be written, unless it is stored after all."""
        self._report(request, exc, lambda: self._write_failure_instead(request, exc))

    def revoke(self, request: SimpleRequest, reason: str) -> None:
        """Reports of one request that it will not run.

        Args:
            request: The call.
            reason: "revoked" or "expired".
        """
        write = partial(report.revoked, self.task, request, reason)
        self._report(request, TaskRevokedError(reason), lambda: self.writer.write(write))

    def dead_letter(self, request: SimpleRequest, exc: BaseException) -> None:
        """Fails one request, and keeps it as a dead letter for an operator."""
        failure = failure_of(exc)
        letter = Outcome(request.id, Verb.DEAD, error=shown(failure))
        self._report(request, failure, lambda: self._write_failure(request, failure), letter)

    def put_back(self, request: SimpleRequest, reason: str = "") -> None:
        """Lets one request run again, as if it had not been claimed; it is counted, though.

        Args:
            request: The call.
            reason: Why; kept for an operator.
        """
        if self._is_open(request):
            self.batch.decide(request.id, Outcome(request.id, Verb.PUT_BACK, error=reason))

    def retry(
        self,
        request: SimpleRequest,
        *,
        exc: BaseException | None = None,
        options: Mapping[str, Any] | None = None,
        **when: Any,
    ) -> bool:
        """Lets one request run again later; one that has no tries left is a dead letter.

        Args:
            request: The call.
            exc: Why.
            options: Other options of `apply_async` that the call has from now on.
            when: `countdown`: seconds to wait, the task's `default_retry_delay` by default;
                `eta`: when to run it instead, in UTC if it has no time zone, as in Celery;
                `max_retries`: overrides the task's; `verb`: `RETRY_BATCH` if the batch as a whole
                failed.

        Returns:
            Whether it will run again.

        Raises:
            OptionError: `countdown` or `eta` is no time, or another option has no meaning for a
                retry; nothing was reported.
        """
        if self.batch.is_decided(request.id):
            return False
        again = self.rules.retry(request, exc=exc, options=options, **when)
        if again is None:
            why = exc if isinstance(exc, BaseException) else self.rules.exhausted(request)
            self.dead_letter(request, why)
            return False
        write = partial(self.writer.write, partial(report.retry, self.task, request, again.reason))
        if options and self.lease is not None:
            write()
            self._call_again(request, again.seconds, options)
        else:
            self._report(request, again.reason, write, again.outcome)
        return True

    def _call_again(
        self, request: SimpleRequest, seconds: float, options: Mapping[str, Any]
    ) -> None:
        """Calls the task with a request's id, arguments and what hangs on it: that is its retry."""
        context: Any = request.context
        changed = {"countdown": seconds or None, "retries": request.retries + 1, **options}
        with found_by(self, [request.id]), canvas.as_current(self.task, context):
            self.task.signature_from_request(context, **changed).apply_async()

    def decide(self, request: SimpleRequest, exc: Any, verb: Verb = Verb.RETRY) -> bool:
        """Does for one request what Celery does for a task that raises an exception.

        Returns:
            Whether it will run again.
        """
        verdict = self.rules.verdict(request, exc, leased=self.lease is not None)
        if verdict.action is Action.RETRY:
            return self.retry(request, verb=verb, **verdict.how)
        if verdict.action is Action.PUT_BACK:
            self.put_back(request, shown(exc))
            return True
        if verdict.action is Action.FORGET:
            self.batch.decide(request.id, Fate.FORGOTTEN)
            self.batch.values[request.id] = exc
        elif verdict.action is Action.DEAD_LETTER:
            self.dead_letter(request, exc)
        else:
            self.fail(request, exc)
        return False

    def give_up(self, request: SimpleRequest, exc: Exception) -> None:
        """Settles a request that cannot be run."""
        if isinstance(exc, UnknownEnvelope):
            later = Outcome(request.id, Verb.POSTPONE, UNKNOWN_DELAY_MS, shown(exc))
            self.batch.decide(request.id, later)
            return
        logger.error("%s[%s] is given up: %s", request.name, request.id, exc)
        try:
            self.dead_letter(request, exc)
        except Exception as unreported:
            if self.writer.may_pass(unreported):
                raise
            # What cannot be reported at all would be given up again and again.
            logger.exception("nobody can be told that %s[%s] failed", request.name, request.id)
            self.batch.decide(request.id, Outcome(request.id, Verb.DEAD, error=shown(exc)))

    def requeued(self, task_id: str) -> None:
        """Notes that the function called the task again with the id of one of its requests."""
        self.batch.decide(task_id, Fate.ELSEWHERE)

    def replace(self, request: SimpleRequest, sig: Any) -> None:
        """Calls something else in the place of a request, with its id and what hangs on it."""
        if not self._is_open(request):
            return
        if self.lease is None:
            task: Any = self.task
            self.succeed(request, Task.replace(task, sig))
            return

        def send() -> bool:
            canvas.call_instead(self.task, request, sig)
            # No state of this request is stored, so nothing would tell a second run.
            return False

        self._report(request, None, send)

    def add_to_chord(self, request: SimpleRequest, sig: Any, lazy: bool) -> Any:
        """Adds a call to the chord that a request is a part of."""
        if self.lease is None:
            task: Any = self.task
            add: Any = Task.add_to_chord
            return add(task, sig, lazy)
        self.writer.confirm()
        return canvas.add_to_chord(self.task, request, sig, lazy)

    def start(self) -> None:
        """Reports that requests run, if the task has `track_started`."""
        if not self.task.track_started:
            return
        stored = (r for r in self.batch.requests if not report.is_ignored(self.task, r))
        for chunk in chunked(stored, CHUNK):
            self.writer.write(partial(report.started, self.task, chunk))

    # -- reporting one

    def _is_open(self, request: SimpleRequest) -> bool:
        if not self.batch.is_decided(request.id):
            return True
        logger.warning(
            "%s[%s] has an outcome already: a second one is ignored", request.name, request.id
        )
        return False

    def _report(
        self,
        request: SimpleRequest,
        value: Any,
        write: Callable[[], bool],
        outcome: Outcome | None = None,
    ) -> None:
        """Reports an outcome, and notes it then.

        Args:
            request: The call.
            value: Its result, or an exception.
            write: Reports it; returns whether a second run could find that.
            outcome: How the request is given back, or None: it is forgotten.
        """
        if not self._is_open(request):
            return
        stored = True
        if self.lease is not None:
            # Whatever breaks in here may do so before it is stored, or after it.
            self.batch.suspect([request.id])
            self.writer.confirm()
            stored = write()
        decision = self.batch.settle(request.id, value, outcome or Fate.FORGOTTEN)
        if decision is Fate.FORGOTTEN and not stored and not self.ended:
            self._forget(request)

    def _forget(self, request: SimpleRequest) -> None:
        """Forgets a request at once, of whose outcome nothing else would tell a second run."""
        if self.lease is None:
            return
        try:
            self.lease.ack([request.id])
            self.batch.note_saved([request.id])
        except StoreError as exc:
            # It goes with the others when the batch ends.
            logger.warning("cannot forget a request of batch %s yet: %s", self.token, exc)

    def _write_success(self, request: SimpleRequest, value: Any, store: bool) -> bool:
        """Goes on and stores; a result that can never be stored fails its request instead."""
        task = self.task

        def write(guard: Guard) -> bool:
            try:
                return report.success(task, request, value, guard, store=store)
            except Exception as exc:
                if stores and is_transient(task.backend, exc):
                    report.check_value(task, value)
                raise

        stores = store and not report.is_ignored(task, request)
        try:
            if stores and request.embed:
                # Before the next step is sent: nobody undoes that.
                report.check_value(task, value)
            self.writer.patiently(partial(canvas.go_on, task, request, value))
            return self.writer.write(write)
        except Exception as exc:
            if self.writer.may_pass(exc):
                raise
            logger.error("%s[%s] cannot report its result: %r", request.name, request.id, exc)
            failure = exc
        return self._write_failure_instead(request, failure)

    def _write_failure_instead(self, request: SimpleRequest, exc: Exception) -> bool:
        """Writes a failure, unless what could not be written was stored all the same."""
        stored = earlier.complete(self.task, [request], self.writer)
        return bool(stored) or self._write_failure(request, exc)

    def _write_failure(self, request: SimpleRequest, exc: Exception) -> bool:
        return self.writer.write(partial(report.failure, self.task, request, exc))
