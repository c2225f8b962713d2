"""Storing calls: again where that may be repeated, and what their callers are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from time import monotonic, sleep
from typing import Any

from celery.utils.log import get_logger

from redis_batches.app import chords
from redis_batches.app.doorbell import ring
from redis_batches.app.state import runtime_of
from redis_batches.buffer.group_commit import Committed, PushKey
from redis_batches.calls.publish_retry import PublishRetry
from redis_batches.core.age import Age
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.errors import (
    BacklogFull,
    DuplicateTaskId,
    NotReplicated,
    ResendTooLate,
    StoreError,
)
from redis_batches.core.requests import Group, Outgoing, Pushed, Status

logger = get_logger(__name__)

#: Seconds between two tries to store the body of a chord.
BODY_PAUSE = 0.5


def push(
    task: BatchTask,
    group: Group,
    requests: Sequence[Outgoing],
    retry: PublishRetry | None,
    caller: str = "",
    age: Age | None = None,
) -> Pushed:
    """Pushes requests, and again if that fails, as `retry` and `retry_policy` of a call say.

    Args:
        task: The batch task.
        group: Where they wait.
        requests: At most 500.
        retry: How often and when; None: as the connection does by itself.
        caller: Token of the batch that they are called from, if any.
        age: Knows when they were first sent; default: they are sent first by this.
    """
    runtime = runtime_of(task.app)
    if retry is None:
        return runtime.store(task.name).push(group, task.trigger, requests, caller, age)
    store, age = runtime.single_try_store(task.name), age or Age(runtime.settings.timeout)
    for retries in count():
        try:
            return store.push(group, task.trigger, requests, caller, age)
        except StoreError as exc:
            pause = retry.pause(retries) if exc.passes_by_itself else None
            if pause is None:
                raise
            if retry.errback is not None:
                retry.errback(exc, pause)
        sleep(pause)
    raise AssertionError("unreachable")


def push_body(store: Callable[[Age], Pushed], slack: float) -> Pushed:
    """Stores a call; the body of a chord again and again, since nobody would send it later."""
    until, age = chords.deadline(), Age(slack)
    while True:
        try:
            pushed = store(age)
            # If it was refused it is sure that it was not stored.
            age = Age(slack)
            if pushed.statuses[0] is not Status.FULL or monotonic() >= until:
                return pushed
            logger.warning("the body of a chord is sent again: the backlog is full")
        except StoreError as exc:
            if monotonic() >= until:
                raise
            logger.warning("the body of a chord is sent again: %s", exc)
        sleep(BODY_PAUSE)


def committing(
    task: BatchTask, group: Group, priority: int | None
) -> Callable[[Outgoing], Committed]:
    """Returns what stores a request, together with what other threads call meanwhile.

    It holds as long as this process does, and the task's trigger.
    """
    key = PushKey(group, task.trigger, priority)
    return partial(runtime_of(task.app).committer(task.name).commit, key)


def finish(
    task: BatchTask, task_id: str, done: Committed, priority: int | None, producer: Any = None
) -> None:
    """Rings if that is this caller's part, and raises what became of its request."""
    if done.bells is not None and done.bells.count:
        ring(task.app, task.name, done.bells, priority=priority, producer=producer)
    if done.status is Status.FULL:
        limit = runtime_of(task.app).settings.max_pending
        raise BacklogFull(task.name, limit, [task_id])
    if done.status is Status.DUPLICATE:
        raise DuplicateTaskId(task_id)
    if done.status is Status.FORGOTTEN:
        raise ResendTooLate(task.name, [task_id])
    if done.missing:
        raise NotReplicated(task.name, done.missing)
