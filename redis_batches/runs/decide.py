"""What the end of a function, or an exception in the place of a result, makes of a request.

Nothing is stored or sent here: see `redis_batches.runs.reporter` for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from celery.exceptions import Ignore, Reject, Retry

from redis_batches.core.batch_task import BatchTask
from redis_batches.core.errors import (
    OptionError,
    ResultCountError,
    ResultKeyError,
    ResultTypeError,
)
from redis_batches.core.outcomes import Outcome, Verb
from redis_batches.runs.endings import VERDICTS, failure_of, is_exception, is_time_limit, shown
from redis_batches.runs.request import SimpleRequest
from redis_batches.wire.options import check_call, delay_of

#: What a retry says by itself, so that its options may not.
_OF_A_RETRY = ("task_id", "retries", "args", "kwargs")
#: What `Rules.retry` takes of a plan; the rest of it are options of the call.
_OF_A_PLAN = {"countdown", "eta", "max_retries"}


@dataclass(frozen=True)
class End:
    """How a batch function ended.

    Attributes:
        returned: What it returned.
        results: That by request id, if it is the requests' results.
        raised: What it raised, or what broke in; or None.
    """

    returned: Any = None
    results: Mapping[str, Any] = field(default_factory=dict)
    raised: BaseException | None = None


@dataclass(frozen=True)
class Ending:
    """What is to be reported when a function ended.

    Attributes:
        outcomes: Undecided requests and their results, or exceptions.
        store: Whether results are stored, if a call does not ignore its result.
        verb: How a request that is retried is given back.
        final: Whether no failure is retried.
    """

    outcomes: Sequence[tuple[SimpleRequest, Any]]
    store: bool = True
    verb: Verb = Verb.RETRY
    final: bool = False


class Action(Enum):
    """What an exception makes of one request."""

    FORGET = "forget"
    PUT_BACK = "put back"
    DEAD_LETTER = "dead letter"
    RETRY = "retry"
    FAIL = "fail"


@dataclass(frozen=True)
class Verdict:
    """What an exception makes of one request; `how` is what `Reporter.retry` takes."""

    action: Action
    how: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Again:
    """A retry of one request.

    Attributes:
        seconds: How long it waits.
        reason: What its caller is told.
        outcome: How it is given back.
    """

    seconds: float
    reason: Retry
    outcome: Outcome


class Rules:
    """Decides as Celery does for a task, by the options of the task.

    Args:
        task: The batch task.
    """

    def __init__(self, task: BatchTask) -> None:
        self._task = task
        self._plans: dict[tuple[type, int], dict[str, Any] | None] = {}

    def verdict(self, request: SimpleRequest, exc: Any, *, leased: bool = True) -> Verdict:
        """Decides one request by what its function raised, or returned in the place of a result.

        Args:
            request: The call.
            exc: An exception.
            leased: Whether it waits in Redis, and so can be put back.
        """
        if isinstance(exc, Ignore):
            return Verdict(Action.FORGET)
        if isinstance(exc, Reject):
            requeue = bool(getattr(exc, "requeue", False))
            return Verdict(Action.PUT_BACK if requeue and leased else Action.DEAD_LETTER)
        if isinstance(exc, Retry):
            return Verdict(Action.RETRY, {"exc": exc.exc, **time_of(exc)})
        plan = self._plan(request, exc)
        if plan is None:
            return Verdict(Action.FAIL)
        own = {name: plan[name] for name in plan.keys() & _OF_A_PLAN}
        options = {name: plan[name] for name in plan.keys() - own.keys()}
        return Verdict(Action.RETRY, {"exc": exc, "options": options, **own})

    def is_final(self, request: SimpleRequest, value: Any) -> bool:
        """Whether a request with this result, or exception, does not run again for it."""
        if not is_exception(value):
            return True
        return not isinstance(value, VERDICTS) and self._plan(request, value) is None

    def _plan(self, request: SimpleRequest, exc: Any) -> dict[str, Any] | None:
        """Returns how a failure is retried, if at all.

        Those that failed together wait together: jitter must not scatter a batch.
        """
        failure = (type(exc), request.retries)
        if failure not in self._plans:
            self._plans[failure] = self._task.autoretry_plan(exc, request.retries)
        return self._plans[failure]

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
    ) -> Again | None:
        """Returns a retry of one request, or None: it has no tries left; see `Reporter.retry`.

        Raises:
            OptionError: `countdown` or `eta` is no time, or another option has no meaning for a
                retry.
        """
        task = self._task
        check_retry(task, options or {})
        if countdown is None and eta is None:
            countdown = task.default_retry_delay
        seconds = delay_of(countdown, eta)
        limit = task.max_retries if max_retries is None else max_retries
        if limit is not None and request.retries >= limit:
            return None
        cause: Any = failure_of(exc) if isinstance(exc, BaseException) else exc
        when: Any = eta or countdown
        error = "" if cause is None else shown(cause)
        outcome = Outcome(request.id, verb, round(seconds * 1000), error)
        return Again(seconds, Retry(exc=cause, when=when), outcome)

    def exhausted(self, request: SimpleRequest) -> Exception:
        """Returns what a request fails with that has no tries left, if nobody said why."""
        make: Any = self._task.MaxRetriesExceededError
        text = f"Can't retry {self._task.name}[{request.id}] after {request.retries} retries"
        exc: Exception = make(text, task_args=request.args, task_kwargs=request.kwargs)
        return exc


def ending_of(end: End, undecided: Sequence[SimpleRequest], *, store: bool = True) -> Ending:
    """Returns what is to be reported of requests that their function left undecided.

    Args:
        end: How it ended.
        undecided: The requests.
        store: Whether results are stored, if a call does not ignore its result.
    """
    raised = end.raised
    if raised is None:
        return Ending([(r, end.results.get(r.id)) for r in undecided], store=store)
    if isinstance(raised, Exception):
        return Ending([(request, raised) for request in undecided], verb=Verb.RETRY_BATCH)
    failure = failure_of(raised)
    return Ending([(request, failure) for request in undecided], final=True)


def seen_by_celery(end: End, kept: bool) -> BaseException | None:
    """Returns what Celery is to see of a run that did not succeed.

    Args:
        end: How its function ended.
        kept: Whether any of its requests runs again for it.
    """
    raised = end.raised
    if isinstance(raised, Reject):
        return Ignore(f"rejected: {raised}")
    if isinstance(raised, Exception):
        return Retry(exc=raised) if kept and not isinstance(raised, Retry) else raised
    # The pool that set a time limit deals with it, as with that of any task.
    return raised if raised is None or is_time_limit(raised) else failure_of(raised)


def check_retry(task: BatchTask, options: Mapping[str, Any]) -> None:
    """Raises OptionError for an option that a retry cannot have."""
    for name in _OF_A_RETRY:
        if name in options:
            raise OptionError(name, options[name], "left out: a retry has that of its request")
    check_call(task, options)


def time_of(reason: Retry) -> dict[str, Any]:
    """Returns when a `Retry` wants its call to run, as `Reporter.retry` takes it."""
    when: Any = reason.when
    if when is None:
        return {}
    return {"eta": when} if isinstance(when, (datetime, str)) else {"countdown": when}


def results_of(task: str, ids: Sequence[str], returned: Any) -> Mapping[str, Any]:
    """Returns what a function returned as results by request id.

    Args:
        task: The task's name.
        ids: Of the requests that the function was given, in order.
        returned: None; a list or tuple with a result per request, in order; or a mapping of
            request id to result.

    Raises:
        ResultCountError: A list has another length than the batch.
        ResultKeyError: A mapping has a key that is no request's id.
        ResultTypeError: It is something else.
    """
    if returned is None:
        return {}
    if isinstance(returned, (list, tuple)):
        if len(returned) != len(ids):
            raise ResultCountError(task, len(returned), len(ids))
        return dict(zip(ids, returned, strict=True))
    if isinstance(returned, Mapping):
        if unknown := returned.keys() - set(ids):
            raise ResultKeyError(task, unknown.pop())
        return returned
    raise ResultTypeError(task, returned)
