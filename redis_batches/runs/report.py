"""What each kind of outcome writes, in the order in which Celery writes it.

First what is linked to a call or follows in its chain, then the stored state, which also counts
the call's part of a chord: see `celery.app.trace`. Each function is one try; whoever calls it
decides what happens if it fails: see `redis_batches.runs.state_writer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from traceback import format_exception
from typing import Any

from celery import signals, states
from celery.app.task import Context
from celery.backends.base import DisabledBackend
from celery.exceptions import Retry, SoftTimeLimitExceeded
from celery.utils.log import get_logger
from celery.utils.serialization import get_pickleable_exception
from kombu.exceptions import EncodeError

from redis_batches.core.batch_task import BatchTask
from redis_batches.runs.canvas import as_current, steps_after, with_what_hangs_on_it
from redis_batches.runs.endings import ends_the_run, is_exception, shown
from redis_batches.runs.request import SimpleRequest
from redis_batches.runs.states import Gathering, Guard, can_gather, states_of

logger = get_logger(__name__)


def success(
    task: BatchTask, request: SimpleRequest, value: Any, guard: Guard, *, store: bool
) -> bool:
    """Stores a result, and counts it as a part of its chord.

    Args:
        task: The batch task.
        request: The call.
        value: Its result.
        guard: What storing must heed.
        store: Whether the value is stored, if the call does not ignore its result.

    Returns:
        Whether a state was stored that a second run could find.

    Raises:
        Changed: Somebody else stored a state of the call.
    """
    store = store and not is_ignored(task, request)
    backend, guarded = task.backend, store and can_gather(task.backend)
    if guarded:
        _store(task, request, value, states.SUCCESS, guard, request=request.context)
    if request.embed or (store and not guarded):
        guard.confirm()
        with as_current(task, request.context):
            backend.mark_as_done(request.id, value, request.context, store and not guarded)
    return store


def check_value(task: BatchTask, value: Any) -> None:
    """Raises EncodeError if a result is one that the result backend cannot write.

    Whatever its own code raises, such as a lost connection of a lazy object, is no outage.
    """
    backend: Any = task.backend
    try:
        backend.encode(backend.encode_result(value, states.SUCCESS))
    except BaseException as exc:
        if ends_the_run(exc) or isinstance(exc, SoftTimeLimitExceeded):
            raise
        raise EncodeError(f"the result cannot be serialized: {shown(exc)}") from exc


def failure(task: BatchTask, request: SimpleRequest, exc: Exception, guard: Guard) -> bool:
    """Stores a failure, fails the rest of the chain and the chord, and calls errbacks.

    Args:
        task: The batch task.
        request: The call.
        exc: Why it failed.
        guard: What storing must heed.

    Returns:
        Whether a state was stored that a second run could find.

    Raises:
        Changed: Somebody else stored a state of the call, or of a step behind it.
    """
    store = not is_ignored(task, request) or task.store_errors_even_if_ignored
    failure: Any = get_pickleable_exception(exc)
    text, context = traceback_of(exc), request.context
    # With a chain Celery stores its other steps as failed, too.
    steps = steps_after(request) if store and can_gather(task.backend) else None
    guarded = steps is not None
    if steps:
        _fail_together(task, [context, *steps], failure, text, guard)
    elif guarded:
        _store(task, request, failure, states.FAILURE, guard, traceback=text, request=context)
    guard.confirm()

    def report(context: Context) -> None:
        stores = store and not guarded
        task.backend.mark_as_failure(request.id, failure, text, context, store_result=stores)

    with_what_hangs_on_it(task, request, report)
    return bool(store)


def _fail_together(
    task: BatchTask, contexts: Sequence[Any], failure: Any, text: str | None, guard: Guard
) -> None:
    """Stores a failure for a call and the steps behind it, all of them or none."""
    gathering = Gathering(task.backend, [context.id for context in contexts], guard.confirm)
    for context in contexts:
        gathering.note(context.id, failure, states.FAILURE, traceback=text, request=context)
    gathering.send()


def retry(task: BatchTask, request: SimpleRequest, reason: Retry, guard: Guard) -> bool:
    """Stores that the call will be retried, and why.

    Args:
        task: The batch task.
        request: The call.
        reason: Why.
        guard: What storing must heed.

    Returns:
        Whether a state was stored.

    Raises:
        Changed: Somebody else stored a state of the call.
    """
    if is_ignored(task, request):
        return False
    cause = reason.exc if isinstance(reason.exc, Exception) else reason
    retried: Any = get_pickleable_exception(cause)
    more: dict[str, Any] = {"traceback": traceback_of(cause), "request": request.context}
    if can_gather(task.backend):
        _store(task, request, retried, states.RETRY, guard, **more)
    else:
        guard.confirm()
        task.backend.mark_as_retry(request.id, retried, **more)
    return True


def revoked(task: BatchTask, request: SimpleRequest, reason: str, guard: Guard) -> bool:
    """Reports that a call will not run, as Celery's workers do; its chord, if any, fails.

    Args:
        task: The batch task.
        request: The call.
        reason: "revoked" or "expired".
        guard: What storing must heed.

    Returns:
        Whether a state was stored.
    """
    guard.confirm()
    store = not is_ignored(task, request) or task.store_errors_even_if_ignored
    logger.info("Discarding %s task: %s[%s]", reason, request.name, request.id)

    def report(context: Context) -> None:
        task.backend.mark_as_revoked(request.id, reason, request=context, store_result=store)

    with_what_hangs_on_it(task, request, report)
    signals.task_revoked.send(
        sender=task,
        request=request.context,
        terminated=False,
        signum=None,
        expired=reason == "expired",
    )
    return bool(store)


def started(task: BatchTask, requests: Sequence[SimpleRequest], guard: Guard) -> None:
    """Stores that calls run.

    Args:
        task: The batch task.
        requests: At most `states.CHUNK` calls that do not ignore their results.
        guard: What storing must heed.

    Raises:
        Changed: Somebody else stored a state of one of them.
    """
    unread = guard.first and all(request.attempt == 1 for request in requests)
    ids = [request.id for request in requests]
    found = states_of(task.backend, ids, guard.confirm, unread=unread)
    for request in requests:
        meta = {"hostname": request.hostname}
        found.note(request.id, meta, states.STARTED, request=request.context)
    found.send()


def together(
    task: BatchTask, outcomes: Sequence[tuple[SimpleRequest, Any]], guard: Guard, *, store: bool
) -> list[SimpleRequest]:
    """Stores results, and exceptions for failures, with as few round trips as possible.

    Args:
        task: The batch task.
        outcomes: At most `states.CHUNK` calls on which nothing hangs (`canvas.is_plain`).
        guard: What storing must heed.
        store: Whether values are stored, if a call does not ignore its result.

    Returns:
        The calls that were reported. If it is none of them, their outcomes cannot be stored
        together.

    Raises:
        Changed: Somebody else stored a state of one of them.
    """
    stored, reported = [], []
    for request, value in outcomes:
        if _is_stored(task, request, value, store):
            stored.append((request, value))
        else:
            reported.append(request)
    if not stored or not can_gather(task.backend):
        return reported
    requests = [request for request, _ in stored]
    unread = guard.first and _are_new(task, requests)
    gathering = Gathering(task.backend, [r.id for r in requests], guard.confirm, unread=unread)
    reported += _note_all(gathering, stored, task.app.conf.result_extended)
    gathering.send()
    return reported


def _note_all(
    gathering: Gathering, outcomes: Sequence[tuple[SimpleRequest, Any]], extended: bool
) -> list[SimpleRequest]:
    """Notes outcomes until that is enough for once; returns the calls that were noted."""
    noted = []
    for request, value in outcomes:
        try:
            _note(gathering, request, value, extended)
        except BaseException as exc:
            if ends_the_run(exc) or isinstance(exc, SoftTimeLimitExceeded):
                raise
            logger.debug("%s[%s] is reported alone: %s", request.name, request.id, shown(exc))
            continue
        noted.append(request)
        if gathering.is_full:
            break
    return noted


def _note(gathering: Gathering, request: SimpleRequest, value: Any, extended: bool) -> None:
    context = request.context if extended else request.brief_context
    if is_exception(value):
        exc, text = get_pickleable_exception(value), traceback_of(value)
        gathering.note(request.id, exc, states.FAILURE, traceback=text, request=context)
    else:
        gathering.note(request.id, value, states.SUCCESS, request=context)


def _is_stored(task: BatchTask, request: SimpleRequest, value: Any, store: bool) -> bool:
    if is_exception(value) and task.store_errors_even_if_ignored:
        return True
    return (store or is_exception(value)) and not is_ignored(task, request)


def _store(
    task: BatchTask, call: SimpleRequest, value: Any, state: str, guard: Guard, **more: Any
) -> None:
    """Stores the state of one call; `more` is what `Backend.store_result` takes."""
    unread = guard.first and _are_new(task, [call])
    found = states_of(task.backend, [call.id], guard.confirm, unread=unread)
    found.note(call.id, value, state, **more)
    found.send()


def _are_new(task: BatchTask, requests: Sequence[SimpleRequest]) -> bool:
    """Whether calls have no state yet, as a rule: a store that finds one reads it then."""
    return not task.track_started and all(request.attempt == 1 for request in requests)


def is_ignored(task: BatchTask, request: SimpleRequest) -> bool:
    """Whether the result of a call is stored nowhere."""
    if isinstance(task.backend, DisabledBackend):
        return True
    return bool(task.ignore_result if request.ignore_result is None else request.ignore_result)


def traceback_of(exc: Exception) -> str | None:
    """Returns the text of an exception's traceback, if it was raised."""
    return "".join(format_exception(exc)) if exc.__traceback__ else None
