"""A running batch: one outcome per request, told at once, settled at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from enum import Enum
from functools import partial
from itertools import islice
from logging import ERROR, INFO
from time import monotonic, sleep
from typing import Any, TypeVar

from celery import Task
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded, TaskRevokedError
from celery.utils.log import get_logger

from redis_batches.buffer.lease import Lease
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.errors import (
    LeaseLost,
    OptionError,
    ResultCountError,
    ResultKeyError,
    ResultTypeError,
    StoreError,
)
from redis_batches.core.model import Bells, Outcome, Verb
from redis_batches.core.settings import HEARTBEATS_PER_LEASE
from redis_batches.runs import report
from redis_batches.runs.endings import VERDICTS, failure_of, is_exception, shown
from redis_batches.runs.request import SimpleRequest
from redis_batches.runs.states import CHUNK, again
from redis_batches.wire.envelope import UnknownEnvelope
from redis_batches.wire.options import check_call, delay_of

logger = get_logger(__name__)
_T = TypeVar("_T")

#: Seconds for which an outcome is told again while the result backend cannot be reached.
TELL_PATIENCE = 30.0
#: Requests that failed, or retry, that one line of the log names.
LOGGED_REQUESTS = 10
#: How long a request of a newer version waits for a newer worker, at first.
UNKNOWN_DELAY_MS = 5000

#: Batches that run in this process, by the ids of their requests: whoever names a request, in
#: whatever thread, finds the batch that it is in.
running: dict[str, Batch] = {}


_NO_FAILURES = (*VERDICTS, TaskRevokedError)
#: What a retry says by itself, so that its options may not.
_OF_A_RETRY = ("task_id", "retries", "args", "kwargs")


class Fate(Enum):
    """What became of a request that its batch does not give back."""

    #: Its outcome was told, or it is to have none: it is forgotten.
    FORGOTTEN = "forgotten"
    #: It is not this batch's any more: a call with its id took it over, or it was reclaimed.
    ELSEWHERE = "elsewhere"


class Batch:
    """The requests of one call of a batch function.

    Attributes:
        task: The batch task.
        requests: The calls, oldest first.
        token: Names this run of the batch; fresh at each run.
        fence: A number larger than that of every earlier run of the task, for writes that must
            not be undone by a late run; see Kleppmann, "How to do distributed locking" (2016).
    """

    def __init__(
        self, task: BatchTask, requests: Sequence[SimpleRequest], lease: Lease | None
    ) -> None:
        self.task = task
        self.lease = lease
        self.token = lease.token if lease else ""
        self.fence = lease.fence if lease else 0
        self.values: dict[str, Any] = {}
        self.requests: list[SimpleRequest] = []
        self._known: dict[str, SimpleRequest] = {}
        #: By id; what is not in it has no outcome. One assignment decides a request, so that a
        #: signal's exception comes before it or after it.
        self._decided: dict[str, Outcome | Fate] = {}
        #: Ids that Redis has forgotten, or taken back, already.
        self._saved: set[str] = set()
        self._doubtful: set[str] = set()
        self._plans: dict[tuple[type, int], dict[str, Any] | None] = {}
        self._ending = False
        self.patience = TELL_PATIENCE
        #: The error of a server that kept an outcome from being told.
        self.outage: Exception | None = None
        #: Whether the function was called.
        self.called = False
        self.add(requests)

    def add(self, requests: Iterable[SimpleRequest]) -> None:
        """Adds calls that the function shall see."""
        for request in requests:
            self.requests.append(request)
            self.hold(request)

    def hold(self, request: SimpleRequest) -> None:
        """Adds a request that the function shall not see, but that has no outcome yet."""
        self._known[request.id] = request
        request.batch = self

    @property
    def attempt(self) -> int:
        """The highest attempt of its requests; 1 is the first."""
        return max((request.attempt for request in self.requests), default=1)

    @property
    def lost(self) -> bool:
        """Whether another worker took the batch over: whatever this run does is in vain."""
        return self.lease is not None and self.lease.lost

    @property
    def undecided(self) -> list[SimpleRequest]:
        """The requests that have no outcome yet."""
        return [request for task_id, request in self._known.items() if task_id not in self._decided]

    @property
    def doubtful(self) -> list[SimpleRequest]:
        """Those of the undecided requests whose outcome may have been stored all the same."""
        return [request for request in self.undecided if request.id in self._doubtful]

    def find(self, task_id: str) -> SimpleRequest | None:
        """Returns the undecided request with an id."""
        return None if task_id in self._decided else self._known.get(task_id)

    # -- one request

    def succeed(self, request: SimpleRequest, value: Any, *, store: bool = True) -> None:
        """Settles one request with a result; one that cannot be serialized fails it."""
        self._tell(request, value, lambda: self._tell_success(request, value, store))

    def fail(self, request: SimpleRequest, exc: object) -> None:
        """Settles one request with an exception.

        Raises:
            TypeError: It is none.
        """
        failure = failure_of(exc)
        self._tell(request, failure, lambda: self._tell_failure(request, failure))

    def revoke(self, request: SimpleRequest, reason: str) -> None:
        """Tells of one request that it will not run.

        Args:
            request: The call.
            reason: "revoked" or "expired".
        """

        def tell() -> bool:
            return report.tell_revoked(self.task, request, reason, self.confirm)

        self._tell(request, TaskRevokedError(reason), lambda: self.patiently(tell))

    def bury(self, request: SimpleRequest, exc: BaseException) -> None:
        """Fails one request, and keeps it as a dead letter for an operator."""
        failure = failure_of(exc)
        letter = Outcome(request.id, Verb.DEAD, error=shown(failure))
        self._tell(request, failure, lambda: self._tell_failure(request, failure), letter)

    def put_back(self, request: SimpleRequest, reason: str = "") -> None:
        """Lets one request run again, as if it had not been claimed; it is counted, though.

        Args:
            request: The call.
            reason: Why; kept for an operator.
        """
        if self._is_open(request):
            self._decided[request.id] = Outcome(request.id, Verb.PUT_BACK, error=reason)

    def retry(
        self,
        request: SimpleRequest,
        *,
        countdown: float | None = None,
        eta: datetime | str | None = None,
        exc: BaseException | None = None,
        max_retries: int | None = None,
        verb: Verb = Verb.RETRY,
        options: Mapping[str, Any] | None = None,
    ) -> bool:
        """Lets one request run again later; one that has no tries left is a dead letter.

        Args:
            request: The call.
            countdown: Seconds to wait, the task's `default_retry_delay` by default.
            eta: When to run it instead; without a time zone it is UTC, as in Celery.
            exc: Why.
            max_retries: Overrides the task's.
            verb: `RETRY_BATCH` if the batch as a whole failed.
            options: Other options of `apply_async` that the call has from now on.

        Returns:
            Whether it will run again.

        Raises:
            OptionError: `countdown` or `eta` is no time, or another option has no meaning for a
                retry; nothing was told.
        """
        if request.id in self._decided:
            return False
        _check_retry(self.task, options or {})
        if countdown is None and eta is None:
            countdown = self.task.default_retry_delay
        seconds = delay_of(countdown, eta)
        limit = self.task.max_retries if max_retries is None else max_retries
        if limit is not None and request.retries >= limit:
            self.bury(request, exc if isinstance(exc, BaseException) else self._exhausted(request))
            return False
        cause: Any = failure_of(exc) if isinstance(exc, BaseException) else exc
        when: Any = eta or countdown
        reason = Retry(exc=cause, when=when)
        error = "" if cause is None else shown(cause)
        outcome = Outcome(request.id, verb, round(seconds * 1000), error)

        def tell() -> bool:
            return report.tell_retry(self.task, request, reason, self.confirm)

        if options and self.lease is not None:
            self.patiently(tell)
            self._call_again(request, seconds, options)
        else:
            self._tell(request, reason, lambda: self.patiently(tell), outcome)
        return True

    def _call_again(
        self, request: SimpleRequest, seconds: float, options: Mapping[str, Any]
    ) -> None:
        """Calls the task with a request's id, arguments and what hangs on it: that is its retry."""
        context: Any = request.context
        changed = {"countdown": seconds or None, "retries": request.retries + 1, **options}
        with self._found_by([request.id]), report.as_current(self.task, context):
            self.task.signature_from_request(context, **changed).apply_async()

    def decide(self, request: SimpleRequest, exc: Any, verb: Verb = Verb.RETRY) -> bool:
        """Does for one request what Celery does for a task that raises an exception.

        Returns:
            Whether it will run again.
        """
        if isinstance(exc, Ignore):
            self._decided[request.id] = Fate.FORGOTTEN
            self.values[request.id] = exc
            return False
        if isinstance(exc, Reject):
            requeue = bool(getattr(exc, "requeue", False))
            if requeue and self.lease is not None:
                self.put_back(request, shown(exc))
            else:
                self.bury(request, exc)
            return requeue
        if isinstance(exc, Retry):
            return self.retry(request, exc=exc.exc, verb=verb, **time_of(exc))
        plan = self._plan(request, exc)
        if plan is None:
            self.fail(request, exc)
            return False
        own = {name: plan[name] for name in plan.keys() & {"countdown", "eta", "max_retries"}}
        options = {name: plan[name] for name in plan.keys() - own.keys()}
        return self.retry(request, exc=exc, verb=verb, options=options, **own)

    def _plan(self, request: SimpleRequest, exc: Any) -> dict[str, Any] | None:
        """Returns how a failure is retried, if at all.

        Those that failed together wait together: jitter must not scatter a batch.
        """
        failure = (type(exc), request.retries)
        if failure not in self._plans:
            self._plans[failure] = self.task.autoretry_plan(exc, request.retries)
        return self._plans[failure]

    def give_up(self, request: SimpleRequest, exc: Exception) -> None:
        """Settles a request that cannot be run."""
        if isinstance(exc, UnknownEnvelope):
            self._decided[request.id] = Outcome(
                request.id, Verb.POSTPONE, UNKNOWN_DELAY_MS, shown(exc)
            )
            return
        logger.error("%s[%s] is given up: %s", request.name, request.id, exc)
        try:
            self.bury(request, exc)
        except Exception as untold:
            if self._may_pass(untold):
                raise
            # What cannot be told at all would be given up again and again.
            logger.exception("nobody can be told that %s[%s] failed", request.name, request.id)
            self._decided[request.id] = Outcome(request.id, Verb.DEAD, error=shown(exc))

    def _exhausted(self, request: SimpleRequest) -> Exception:
        make: Any = self.task.MaxRetriesExceededError
        text = f"Can't retry {self.task.name}[{request.id}] after {request.retries} retries"
        exc: Exception = make(text, task_args=request.args, task_kwargs=request.kwargs)
        return exc

    def requeued(self, task_id: str) -> None:
        """Notes that the function called the task again with the id of one of its requests."""
        self._decided[task_id] = Fate.ELSEWHERE

    def replace(self, request: SimpleRequest, sig: Any) -> None:
        """Calls something else in the place of a request, with its id and what hangs on it."""
        if not self._is_open(request):
            return
        task: Any = self.task
        if self.lease is None:
            self.succeed(request, Task.replace(task, sig))
            return

        def send() -> bool:
            with report.as_current(task, request.context), suppress(Ignore):
                Task.replace(task, sig)
            # No state of this request is stored, so nothing would tell a second run.
            return False

        self._tell(request, None, send)

    def add_to_chord(self, request: SimpleRequest, sig: Any, lazy: bool) -> Any:
        """Adds a call to the chord that a request is a part of."""
        task: Any = self.task
        add: Any = Task.add_to_chord
        if self.lease is None:
            return add(task, sig, lazy)
        self.confirm()
        with report.as_current(task, request.context):
            return add(task, sig, lazy)

    def leave_out(self, settled: Sequence[SimpleRequest]) -> None:
        """Takes out requests whose outcome is told already."""
        for request in settled:
            self._decided[request.id] = Fate.FORGOTTEN
        if settled:
            self.show_undecided()

    def show_undecided(self) -> None:
        """Leaves out of `requests` what has an outcome."""
        self.requests = [request for request in self.requests if request.id not in self._decided]

    def tell_rest(self, request: SimpleRequest, meta: Mapping[str, Any]) -> None:
        """Tells what hangs on a request whose outcome was stored by a run that died then."""
        self.patiently(lambda: report.tell_rest(self.task, request, meta))

    # -- all that are undecided

    def results_of(self, returned: Any) -> Mapping[str, Any]:
        """Returns what a function returned as results by request id.

        Args:
            returned: None; a list or tuple with a result per request, in order; or a mapping of
                request id to result.

        Raises:
            ResultCountError: A list has another length than the batch.
            ResultKeyError: A mapping has a key that is no request's id.
            ResultTypeError: It is something else.
        """
        ids = [request.id for request in self.requests]
        if returned is None:
            return {}
        if isinstance(returned, (list, tuple)):
            if len(returned) != len(ids):
                raise ResultCountError(self.task.name, len(returned), len(ids))
            return dict(zip(ids, returned, strict=True))
        if isinstance(returned, Mapping):
            if unknown := returned.keys() - set(ids):
                raise ResultKeyError(self.task.name, unknown.pop())
            return returned
        raise ResultTypeError(self.task.name, returned)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Settles what is undecided when the function returned.

        Args:
            results: By request id; an exception fails its request, a missing one is None.
        """
        self._ending = True
        store = self.task.returns_results
        self._tell_together([(r, results.get(r.id)) for r in self.undecided], store=store)
        for request in self.undecided:
            result = results.get(request.id)
            if is_exception(result):
                self._decide_or_fail(request, result, Verb.RETRY)
            else:
                self.succeed(request, result, store=store)

    def take_raised(self, exc: BaseException) -> bool:
        """Settles what is undecided by what the function raised.

        Returns:
            Whether any of it will run again.
        """
        self._ending = True
        self._tell_together([(request, exc) for request in self.undecided], store=True)
        kept = [self._decide_or_fail(each, exc, Verb.RETRY_BATCH) for each in self.undecided]
        return any(kept)

    def fail_undecided(self, exc: Exception) -> None:
        """Settles what is undecided when something else ended the run; none of it is retried."""
        self._ending = True
        self._tell_together([(request, exc) for request in self.undecided], store=True, final=True)
        for request in self.undecided:
            self.fail(request, exc)

    def _decide_or_fail(self, request: SimpleRequest, exc: Any, verb: Verb) -> bool:
        """Decides one request; what cannot be done with it, such as a retry, fails it alone."""
        try:
            return self.decide(request, exc, verb)
        except Exception as why:
            if self._may_pass(why) or request.id in self._decided:
                raise
            self.fail(request, why)
            return False

    # -- the end

    def save(self, *, ends: bool = False, well: bool = False) -> list[Bells]:
        """Lets Redis know what was decided: gives back what runs again, and forgets the rest.

        Args:
            ends: Whether the batch ends with it: then all was decided.
            well: Whether the function returned.

        Returns:
            The doorbells to ring.
        """
        assert self.lease is not None
        rest = {task_id: d for task_id, d in self._decided.items() if task_id not in self._saved}
        given_back = [each for each in rest.values() if isinstance(each, Outcome)]
        bells = self.lease.release(given_back) if given_back else []
        told = [task_id for task_id, each in rest.items() if each is Fate.FORGOTTEN]
        if told or ends:
            self.lease.ack(told, ends=ends, well=well)
        self._saved.update(rest)
        return bells

    def settle(self, *, well: bool) -> list[Bells]:
        """Gives back what runs again, and ends the batch; returns the doorbells to ring.

        Args:
            well: Whether the function returned.
        """
        self.put_back_rest(Verb.PUT_BACK, 0, "its run left it undecided")
        for request in self._known.values():
            request.batch = None
        bells = self.save(ends=True, well=well)
        if well:
            self._log_outcomes()
        return bells

    def put_back_rest(self, verb: Verb, delay_ms: int, reason: str) -> None:
        """Lets everything that was claimed and has no outcome run again.

        Args:
            verb: `PUT_BACK`, or `POSTPONE` for a cause outside the requests.
            delay_ms: How long it waits for that, if it was not put back before.
            reason: Why; kept for an operator.
        """
        for claimed in self.lease.requests if self.lease else ():
            if claimed.id not in self._decided:
                self._decided[claimed.id] = Outcome(claimed.id, verb, delay_ms, reason)

    def abandon_rest(self) -> None:
        """Notes that what has no outcome was taken back from this run."""
        for task_id in self._known:
            self._decided.setdefault(task_id, Fate.ELSEWHERE)

    def call(self, function: Callable[[list[SimpleRequest]], _T]) -> _T:
        """Calls a function with the requests, in a list of its own."""
        self.called = True
        with self._found_by([request.id for request in self.requests]):
            return function(list(self.requests))

    @contextmanager
    def _found_by(self, ids: Sequence[str]) -> Iterator[None]:
        """Lets whoever names one of some requests find this batch."""
        before = {task_id: running.get(task_id) for task_id in ids}
        running.update(dict.fromkeys(ids, self))
        try:
            yield
        finally:
            for task_id, other in before.items():
                # A newer run of the request, in another thread, may be found by now.
                if running.get(task_id) is not self:
                    continue
                if other is None:
                    del running[task_id]
                else:
                    running[task_id] = other

    def _log_outcomes(self) -> None:
        """Says which failed or retry; of a batch that raised, Celery logs the exception."""
        ended = {i: value for i, value in self.values.items() if is_exception(value)}
        failed = {i: value for i, value in ended.items() if not isinstance(value, _NO_FAILURES)}
        retried = {i: value for i, value in ended.items() if isinstance(value, Retry)}
        for level, verb, found, text in (
            (ERROR, "failed", failed, shown),
            (INFO, "retry", retried, str),
        ):
            if found:
                logger.log(
                    level,
                    "%d of %d requests of batch %s of %s %s: %s%s",
                    len(found),
                    len(self.values),
                    self.token,
                    self.task.name,
                    verb,
                    ", ".join(f"{i}: {text(found[i])}" for i in islice(found, LOGGED_REQUESTS)),
                    ", ..." if len(found) > LOGGED_REQUESTS else "",
                )

    # -- telling

    def _is_open(self, request: SimpleRequest) -> bool:
        if request.id not in self._decided:
            return True
        logger.warning(
            "%s[%s] has an outcome already: a second one is ignored", request.name, request.id
        )
        return False

    def _tell(
        self,
        request: SimpleRequest,
        value: Any,
        tell: Callable[[], bool],
        outcome: Outcome | None = None,
    ) -> None:
        """Tells an outcome, and notes it then.

        Args:
            request: The call.
            value: Its result, or an exception.
            tell: Tells it; returns whether a second run could find that.
            outcome: How the request is given back, or None: it is forgotten.
        """
        if not self._is_open(request):
            return
        stored = True
        if self.lease is not None:
            # Whatever breaks in here may do so before it is told, or after it.
            self._doubtful.add(request.id)
            self.confirm()
            stored = tell()
        self.values[request.id] = value
        # A call with its id may have taken it over meanwhile.
        fate = self._decided.setdefault(request.id, outcome or Fate.FORGOTTEN)
        if fate is Fate.FORGOTTEN and not stored and not self._ending:
            self._forget(request)

    def _forget(self, request: SimpleRequest) -> None:
        """Forgets a request at once, of whose outcome nothing else would tell a second run."""
        if self.lease is None:
            return
        try:
            self.lease.ack([request.id])
            self._saved.add(request.id)
        except StoreError as exc:
            # It goes with the others when the batch ends.
            logger.warning("cannot forget a request of batch %s yet: %s", self.token, exc)

    def _tell_together(
        self,
        outcomes: Sequence[tuple[SimpleRequest, Any]],
        *,
        store: bool,
        final: bool = False,
    ) -> None:
        """Tells many outcomes with few round trips; what it leaves open is told one by one.

        Args:
            outcomes: Undecided requests and their results, or exceptions.
            store: Whether values are stored, if a call does not ignore its result.
            final: Whether no failure is retried.
        """
        if self.lease is None:
            return
        rest = [
            (request, failure_of(value) if is_exception(value) else value)
            for request, value in outcomes
            if report.is_plain(request) and (final or self._is_final(request, value))
        ]
        while chunk := rest[:CHUNK]:
            self.confirm()
            try:
                told = self.patiently(partial(self._try_together, chunk, store))
            except Exception as exc:
                if self._may_pass(exc):
                    raise
                logger.warning("batch %s tells its outcomes one by one: %r", self.token, exc)
                return
            values = {request.id: value for request, value in chunk}
            for request in told:
                self.values[request.id] = values[request.id]
                self._decided[request.id] = Fate.FORGOTTEN
            # Large ones go out in parts; if none did, they can only be told one by one.
            left = [pair for pair in chunk if pair[0].id not in self._decided] if told else []
            rest = left + rest[CHUNK:]

    def _is_final(self, request: SimpleRequest, value: Any) -> bool:
        if not is_exception(value):
            return True
        return not isinstance(value, VERDICTS) and self._plan(request, value) is None

    def _try_together(
        self, outcomes: Sequence[tuple[SimpleRequest, Any]], store: bool
    ) -> list[SimpleRequest]:
        tell = partial(report.tell_together, self.task, outcomes, self.confirm, store=store)
        self._doubtful.update(request.id for request, _ in outcomes)
        return again(tell, self.confirm)

    def _tell_success(self, request: SimpleRequest, value: Any, store: bool) -> bool:
        """Goes on and stores; a result that can never be stored fails its request instead."""
        task = self.task

        def tell() -> bool:
            try:
                return report.tell_success(task, request, value, self.confirm, store=store)
            except Exception as exc:
                if stores and report.is_transient(task, exc):
                    report.check_value(task, value)
                raise

        stores = store and not report.ignored(task, request)
        try:
            if stores and request.embed:
                # Before the next step is sent: nobody undoes that.
                report.check_value(task, value)
            self.patiently(lambda: report.go_on(task, request, value))
            return self.patiently(tell)
        except Exception as exc:
            if self._may_pass(exc):
                raise
            logger.error("%s[%s] cannot tell its result: %r", request.name, request.id, exc)
            failure = exc
        return self._tell_failure(request, failure)

    def _tell_failure(self, request: SimpleRequest, exc: Exception) -> bool:
        return self.patiently(lambda: report.tell_failure(self.task, request, exc, self.confirm))

    def _may_pass(self, exc: Exception) -> bool:
        """Whether an error is not the fault of what was told."""
        if isinstance(exc, (LeaseLost, SoftTimeLimitExceeded)):
            return True
        return report.is_transient(self.task, exc)

    def patiently(self, tell: Callable[[], _T]) -> _T:
        """Tells again while the result backend cannot be reached; the lease is kept meanwhile."""
        deadline, pause = monotonic() + self.patience, 0.1
        while True:
            try:
                return tell()
            except Exception as exc:
                if self.lost or not report.is_transient(self.task, exc):
                    raise
                if monotonic() + pause > deadline:
                    # What is told next is not waited for as long again.
                    self.outage, self.patience = exc, 0.0
                    raise
                logger.warning("cannot tell an outcome of batch %s yet: %r", self.token, exc)
            sleep(pause)
            pause = min(2 * pause, 2.0)

    def confirm(self, *, anew: bool = False) -> None:
        """Raises LeaseLost unless this run holds its requests for long enough to tell of one.

        Args:
            anew: Whether to ask Redis, however short ago it was asked.
        """
        lease = self.lease
        if lease is None:
            return
        old = lease.age > self.task.lease / HEARTBEATS_PER_LEASE
        # Past its deadline a lease is not kept any more, but not lost before it ends.
        if (old or anew) and not lease.lost:
            try:
                lease.extend()
            except StoreError as exc:
                self.outage = exc
                raise
        if lease.lost:
            raise LeaseLost(
                f"the lease on batch {self.token} of {self.task.name} ended while its function ran:"
                " another worker runs its requests, and nothing of this run counts"
            )


def _check_retry(task: BatchTask, options: Mapping[str, Any]) -> None:
    """Raises OptionError for an option that a retry cannot have."""
    for name in _OF_A_RETRY:
        if name in options:
            raise OptionError(name, options[name], "left out: a retry has that of its request")
    check_call(task, options)


def time_of(reason: Retry) -> dict[str, Any]:
    """Returns when a `Retry` wants its call to run, as `Batch.retry` takes it."""
    when: Any = reason.when
    if when is None:
        return {}
    return {"eta": when} if isinstance(when, (datetime, str)) else {"countdown": when}
