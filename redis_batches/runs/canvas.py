"""What hangs on a call: links and errbacks, the next steps of its chain, its chord.

Calls of these are made as Celery makes them, with the call as the current request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from celery import Task, group, signature
from celery._state import _task_stack  # type: ignore[attr-defined]
from celery.app.task import Context
from celery.exceptions import Ignore, SoftTimeLimitExceeded
from celery.utils.log import get_logger

from redis_batches.core.batch_task import BatchTask
from redis_batches.core.errors import LeaseLost
from redis_batches.driver.server_errors import is_from_redis
from redis_batches.runs.request import SimpleRequest
from redis_batches.runs.state_writer import is_transient

logger = get_logger(__name__)

_HANGS = ("callbacks", "errbacks", "chain", "chord")


def is_plain(request: SimpleRequest) -> bool:
    """Whether nothing hangs on a call: no link, no chain, no chord, no errback."""
    return not request.embed


def go_on(task: BatchTask, request: SimpleRequest, value: Any) -> None:
    """Calls what is linked to a call that succeeded, then the next step of its chain."""
    if request.embed and (request.embed.get("callbacks") or request.embed.get("chain")):
        with as_current(task, request.context):
            _go_on(task, request.context, value)


def _go_on(task: BatchTask, context: Any, value: Any) -> None:
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


def call_instead(task: Any, request: SimpleRequest, sig: Any) -> None:
    """Calls something else in the place of a call, with its id and what hangs on it."""
    with as_current(task, request.context), suppress(Ignore):
        Task.replace(task, sig)


def add_to_chord(task: Any, request: SimpleRequest, sig: Any, lazy: bool) -> Any:
    """Adds a call to the chord that a call is a part of."""
    add: Any = Task.add_to_chord
    with as_current(task, request.context):
        return add(task, sig, lazy)


def steps_after(request: SimpleRequest) -> list[Context] | None:
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


def with_what_hangs_on_it(
    task: BatchTask, request: SimpleRequest, report: Callable[[Context], None]
) -> None:
    """Reports an outcome, to the caller alone if what hangs on the call cannot be called.

    An errback that raises, or a signature that is none, is this call's fault, and no other's.

    Args:
        task: The batch task.
        request: The call.
        report: Is given the call's request context, if need be without what hangs on it.
    """
    try:
        with as_current(task, request.context):
            report(request.context)
    except SoftTimeLimitExceeded:
        raise
    except Exception as exc:
        known = is_transient(task.backend, exc) or isinstance(exc, LeaseLost)
        # What a server says for the first time is no fault of a signature.
        if known or is_from_redis(exc) or not request.embed:
            raise
        logger.exception("%s[%s] cannot call what hangs on it", request.name, request.id)
        report(Context({**vars(request.context), **dict.fromkeys(_HANGS)}))


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
