"""Tells a call's outcome to whoever waits for it, in the order in which Celery does.

First what is linked to it or follows in its chain, then the stored result, which also counts its
part of a chord: see `celery.app.trace`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from errno import (
    EHOSTDOWN,
    EHOSTUNREACH,
    ENETDOWN,
    ENETRESET,
    ENETUNREACH,
    ENOTCONN,
    EPIPE,
    ETIMEDOUT,
)
from functools import partial
from socket import gaierror
from traceback import format_exception
from typing import Any

from celery import group, signals, signature, states
from celery._state import _task_stack  # type: ignore[attr-defined]
from celery.app.task import Context
from celery.backends.base import DisabledBackend
from celery.exceptions import Retry, SoftTimeLimitExceeded
from celery.utils.log import get_logger
from celery.utils.serialization import get_pickleable_exception
from kombu.exceptions import EncodeError, OperationalError

from redis_batches.buffer.chunks import chunked
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.errors import BacklogFull, LeaseLost
from redis_batches.driver.server_errors import is_from_redis, is_refusal
from redis_batches.runs.endings import ends_the_run, is_exception, shown
from redis_batches.runs.request import SimpleRequest
from redis_batches.runs.states import CHUNK, Confirm, Gathering, again, can_gather, states_of
from redis_batches.runs.states import store as store_state

logger = get_logger(__name__)

_HANGS = ("callbacks", "errbacks", "chain", "chord")

#: Errors of the operating system that a network causes.
_NETWORK = {EPIPE, ENETDOWN, ENETUNREACH, ENETRESET, EHOSTDOWN, EHOSTUNREACH, ENOTCONN, ETIMEDOUT}


def go_on(task: BatchTask, request: SimpleRequest, value: Any) -> None:
    """Calls what is linked to a call that succeeded, then the next step of its chain."""
    if request.embed and (request.embed.get("callbacks") or request.embed.get("chain")):
        with as_current(task, request.context):
            _go_on(task, request.context, value)


def tell_success(
    task: BatchTask, request: SimpleRequest, value: Any, confirm: Confirm, *, store: bool
) -> bool:
    """Stores a result, and counts it as a part of its chord.

    Args:
        task: The batch task.
        request: The call.
        value: Its result.
        confirm: Raises LeaseLost if another run tells the call's outcome.
        store: Whether the value is stored, if the call does not ignore its result.

    Returns:
        Whether a state was stored that a second run could find.
    """
    store = store and not ignored(task, request)
    backend, guarded = task.backend, store and can_gather(task.backend)
    if guarded:
        _store(task, request, value, states.SUCCESS, confirm, request=request.context)
    if request.embed or (store and not guarded):
        confirm()
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


def tell_together(
    task: BatchTask,
    outcomes: Sequence[tuple[SimpleRequest, Any]],
    confirm: Confirm,
    first_try: bool = True,
    *,
    store: bool,
) -> list[SimpleRequest]:
    """Tells results, and exceptions for failures, with as few round trips as possible.

    Args:
        task: The batch task.
        outcomes: At most `results.CHUNK` calls on which nothing hangs (`is_plain`).
        confirm: Raises LeaseLost if another run tells the calls' outcomes.
        first_try: Whether it may assume that calls which run for the first time have no state.
        store: Whether values are stored, if a call does not ignore its result.

    Returns:
        The calls that were told. If it is none of them, their outcomes cannot be stored together.

    Raises:
        Changed: Somebody else told one of them.
    """
    stored, told = [], []
    for request, value in outcomes:
        if _is_stored(task, request, value, store):
            stored.append((request, value))
        else:
            told.append(request)
    if not stored or not can_gather(task.backend):
        return told
    extended = task.app.conf.result_extended
    unread = first_try and _are_new(task, [request for request, _ in stored])
    gathering = Gathering(
        task.backend, [request.id for request, _ in stored], confirm, unread=unread
    )
    for request, value in stored:
        try:
            _note(gathering, request, value, extended)
        except BaseException as exc:
            if ends_the_run(exc) or isinstance(exc, SoftTimeLimitExceeded):
                raise
            logger.debug("%s[%s] is told alone: %s", request.name, request.id, shown(exc))
            continue
        told.append(request)
        if gathering.is_full:
            break
    gathering.send()
    return told


def _are_new(task: BatchTask, requests: Sequence[SimpleRequest]) -> bool:
    """Whether calls have no state yet, as a rule: a store that finds one reads it then."""
    return not task.track_started and all(request.attempt == 1 for request in requests)


def _store(
    task: BatchTask, call: SimpleRequest, value: Any, state: str, confirm: Confirm, **more: Any
) -> None:
    """Stores the state of one call; `more` is what `Backend.store_result` takes."""
    unread = _are_new(task, [call])
    store_state(task.backend, call.id, value, state, confirm, unread=unread, **more)


def is_plain(request: SimpleRequest) -> bool:
    """Whether nothing hangs on a call: no link, no chain, no chord, no errback."""
    return not request.embed


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
    return (store or is_exception(value)) and not ignored(task, request)


def tell_revoked(task: BatchTask, request: SimpleRequest, reason: str, confirm: Confirm) -> bool:
    """Tells that a call will not run, as Celery's workers do; a chord that it is a part of fails.

    Args:
        task: The batch task.
        request: The call.
        reason: "revoked" or "expired".
        confirm: Raises LeaseLost if another run tells the call's outcome.

    Returns:
        Whether a state was stored.
    """
    confirm()
    store = not ignored(task, request) or task.store_errors_even_if_ignored
    logger.info("Discarding %s task: %s[%s]", reason, request.name, request.id)

    def tell(context: Context) -> None:
        task.backend.mark_as_revoked(request.id, reason, request=context, store_result=store)

    _with_what_hangs_on_it(task, request, tell)
    signals.task_revoked.send(
        sender=task,
        request=request.context,
        terminated=False,
        signum=None,
        expired=reason == "expired",
    )
    return bool(store)


def is_transient(task: BatchTask, exc: Exception) -> bool:
    """Whether telling may succeed later: a server is down, or the next step's backlog is full."""
    backend: Any = task.backend
    if isinstance(exc, (ConnectionError, TimeoutError, gaierror, OperationalError, BacklogFull)):
        return True
    if isinstance(exc, OSError):
        return exc.errno in _NETWORK
    # What a Redis says of itself, such as OOM or READONLY, is never the fault of what is told.
    if is_refusal(exc):
        return True
    # Some of Celery's lists name KeyError, which any code may raise.
    if isinstance(exc, LookupError):
        return False
    known = getattr(backend, "connection_errors", ())
    return isinstance(exc, known) or bool(backend.exception_safe_to_retry(exc))


def tell_failure(task: BatchTask, request: SimpleRequest, exc: Exception, confirm: Confirm) -> bool:
    """Stores a failure, fails the rest of the chain and the chord, and calls errbacks.

    Args:
        task: The batch task.
        request: The call.
        exc: Why it failed.
        confirm: Raises LeaseLost if another run tells the call's outcome.

    Returns:
        Whether a state was stored that a second run could find.
    """
    store = not ignored(task, request) or task.store_errors_even_if_ignored
    failure: Any = get_pickleable_exception(exc)
    text, context = traceback_of(exc), request.context
    # With a chain Celery stores its other steps as failed, too.
    steps = _steps_after(request) if store and can_gather(task.backend) else None
    guarded = steps is not None
    if steps:
        again(partial(_fail_together, task, [context, *steps], failure, text, confirm), confirm)
    elif guarded:
        _store(task, request, failure, states.FAILURE, confirm, traceback=text, request=context)
    confirm()

    def tell(context: Context) -> None:
        stores = store and not guarded
        task.backend.mark_as_failure(request.id, failure, text, context, store_result=stores)

    _with_what_hangs_on_it(task, request, tell)
    return bool(store)


def _steps_after(request: SimpleRequest) -> list[Context] | None:
    """Returns the steps behind a call in its chain; None if only Celery knows how they fail."""
    found = []
    for step in (request.embed or {}).get("chain") or ():
        context: Any = Context(step)
        options = getattr(context, "options", None)
        if not isinstance(options, dict) or "chord" in options:
            return None
        if step.get("subtask_type") == "chord":
            return None
        context.update(options)
        context.id = options.get("task_id")
        if context.id is not None:
            found.append(context)
    return found


def _fail_together(
    task: BatchTask,
    contexts: Sequence[Any],
    failure: Any,
    text: str | None,
    confirm: Confirm,
    _first_try: bool,
) -> None:
    """Stores a failure for a call and the steps behind it, all of them or none."""
    gathering = Gathering(task.backend, [context.id for context in contexts], confirm)
    for context in contexts:
        gathering.note(context.id, failure, states.FAILURE, traceback=text, request=context)
    gathering.send()


def _with_what_hangs_on_it(
    task: BatchTask, request: SimpleRequest, tell: Callable[[Context], None]
) -> None:
    """Tells an outcome, to the caller alone if what hangs on the call cannot be told.

    An errback that raises, or a signature that is none, is this call's fault, and no other's.

    Args:
        task: The batch task.
        request: The call.
        tell: Is given the call's request context, if need be without what hangs on it.
    """
    try:
        with as_current(task, request.context):
            tell(request.context)
    except SoftTimeLimitExceeded:
        raise
    except Exception as exc:
        known = is_transient(task, exc) or isinstance(exc, LeaseLost)
        # What a server says for the first time is no fault of a signature.
        if known or is_from_redis(exc) or not request.embed:
            raise
        logger.exception("%s[%s] cannot tell what hangs on it", request.name, request.id)
        tell(Context({**vars(request.context), **dict.fromkeys(_HANGS)}))


def tell_retry(task: BatchTask, request: SimpleRequest, reason: Retry, confirm: Confirm) -> bool:
    """Stores that the call will be retried, and why.

    Args:
        task: The batch task.
        request: The call.
        reason: Why.
        confirm: Raises LeaseLost if another run tells the call's outcome.

    Returns:
        Whether a state was stored.
    """
    if ignored(task, request):
        return False
    cause = reason.exc if isinstance(reason.exc, Exception) else reason
    retried: Any = get_pickleable_exception(cause)
    more: dict[str, Any] = {"traceback": traceback_of(cause), "request": request.context}
    if can_gather(task.backend):
        _store(task, request, retried, states.RETRY, confirm, **more)
    else:
        confirm()
        task.backend.mark_as_retry(request.id, retried, **more)
    return True


def tell_started(task: BatchTask, requests: Sequence[SimpleRequest], confirm: Confirm) -> None:
    """Stores that calls run, if the task has `track_started`.

    Args:
        task: The batch task.
        requests: The calls.
        confirm: Raises LeaseLost if another run tells their outcomes.
    """
    if not task.track_started:
        return
    stored = [request for request in requests if not ignored(task, request)]
    for chunk in chunked(stored, CHUNK):
        again(partial(_tell_started, task, chunk, confirm), confirm)


def _tell_started(
    task: BatchTask, requests: Sequence[SimpleRequest], confirm: Confirm, first_try: bool
) -> None:
    unread = first_try and all(request.attempt == 1 for request in requests)
    ids = [request.id for request in requests]
    found = states_of(task.backend, ids, confirm, unread=unread)
    for request in requests:
        meta = {"hostname": request.hostname}
        found.note(request.id, meta, states.STARTED, request=request.context)
    found.send()


def settled(
    task: BatchTask, requests: Sequence[SimpleRequest]
) -> list[tuple[SimpleRequest, dict[str, Any]]]:
    """Returns the calls whose final state an earlier run stored, each with what it stored."""
    if not task.backend.persistent:
        return []
    found = []
    for chunk in chunked((r for r in requests if not ignored(task, r)), CHUNK):
        stored = states_of(task.backend, [request.id for request in chunk])
        metas = [(request, stored.meta(request.id)) for request in chunk]
        found += [(request, meta) for request, meta in metas if _is_final(meta, request)]
    return found


def tell_rest(task: BatchTask, request: SimpleRequest, meta: Mapping[str, Any]) -> None:
    """Tells what hangs on a call whose final state an earlier run stored, and then died.

    What follows a success was sent before its state was stored. A part of a chord counts once in
    Redis, however often it is told; other backends count it each time, so it is not told there.

    Args:
        task: The batch task.
        request: The call.
        meta: What was stored.
    """
    if not request.embed:
        return
    backend: Any = task.backend
    result: Any = meta.get("result")
    failed = meta["status"] == states.FAILURE and isinstance(result, Exception)
    counts_once = getattr(backend, "_chord_zset", False)
    if not (counts_once or (failed and not request.chord)):
        return
    stores = bool(request.embed.get("chain"))

    def tell(context: Context) -> None:
        if failed:
            backend.mark_as_failure(
                request.id, result, meta.get("traceback"), context, store_result=stores
            )
        elif request.chord:
            backend.on_chord_part_return(context, meta["status"], result)

    _with_what_hangs_on_it(task, request, tell)


def _is_final(meta: dict[str, Any], request: SimpleRequest) -> bool:
    """Whether a stored state is a call's final one.

    One that is older than the call is that of another one, which had the same id. REVOKED of what
    was revoked is told again: Celery stores it by itself, and tells no chord.
    """
    if meta.get("status") not in states.READY_STATES:
        return False
    if request.attempts.revoked and meta["status"] == states.REVOKED:
        return False
    told, since = meta.get("date_done"), request.enqueued_at
    if told is None or since is None:
        return True
    told = datetime.fromisoformat(told) if isinstance(told, str) else told
    return (told if told.tzinfo else told.replace(tzinfo=timezone.utc)) >= since


def ignored(task: BatchTask, request: SimpleRequest) -> bool:
    """Whether the result of a call is stored nowhere."""
    if isinstance(task.backend, DisabledBackend):
        return True
    return bool(task.ignore_result if request.ignore_result is None else request.ignore_result)


def traceback_of(exc: Exception) -> str | None:
    """Returns the text of an exception's traceback, if it was raised."""
    return "".join(format_exception(exc)) if exc.__traceback__ else None


def _go_on(task: BatchTask, context: Any, value: Any) -> None:
    """Sends what is linked, then the next step of the chain, with a result."""
    app = task.app
    publish = getattr(app.amqp, "_retry_publish", lambda fun, *a, **kw: fun(*a, **kw))
    inherited = app.conf.task_inherit_parent_priority
    options = {
        "parent_id": context.id,
        "root_id": context.root_id or context.id,
        "priority": (context.delivery_info or {}).get("priority") if inherited else None,
    }
    links: list[Any] = [signature(link, app=app) for link in context.callbacks or ()]
    plain = [link for link in links if not isinstance(link, group)]
    for link in links:
        if isinstance(link, group):
            publish(link.apply_async, (value,), **options)
    if len(plain) == 1:
        publish(plain[0].apply_async, (value,), **options)
    elif plain:
        publish(group(plain, app=app).apply_async, (value,), **options)
    if context.chain:
        following = signature(context.chain[-1], app=app)
        publish(following.apply_async, (value,), chain=context.chain[:-1], **options)


@contextmanager
def as_current(task: BatchTask, context: Context) -> Iterator[None]:
    """Makes a call the current request, so that what it sends becomes its child."""
    _task_stack.push(task)
    task.request_stack.push(context)
    try:
        yield
    finally:
        task.request_stack.pop()
        _task_stack.pop()
