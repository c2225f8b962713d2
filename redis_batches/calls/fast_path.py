"""The fast path of `delay()`: a call without options that nobody listens to.

Celery's own path costs more than Redis does (see docs/performance.md). Here it is taken once, for a
`Template`, and again when anything has changed that it reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from celery import Celery, Task
from celery._state import get_current_task

from redis_batches.app.backends import needs_no_word
from redis_batches.buffer.group_commit import Committed
from redis_batches.calls.push import committing, finish
from redis_batches.calls.template import Template, somebody_listens, takes_templates
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.requests import Outgoing


class Way(NamedTuple):
    """What calls have in common.

    Attributes:
        template: Makes their requests.
        commit: Stores one.
    """

    template: Template
    commit: Callable[[Outgoing], Committed]


class FastPath:
    """The fast path of one task."""

    def __init__(self, task: BatchTask) -> None:
        self._task = task
        #: What the way was made of, and the way; None: Celery's own path is to be taken.
        self._kept: tuple[Any, Way | None] = (None, None)

    def find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Way | None:
        """Returns what calls have in common now, or None if Celery's own path is to be taken.

        Args:
            args: Of a call; an example, from which a template is made.
            kwargs: Of that call.
        """
        if somebody_listens() or get_current_task() is not None:
            return None
        changes, *rest = seen = self._look()
        known, way = self._kept
        if seen != known:
            way = self._make(args, kwargs)
            self._kept = ((dict(changes), *rest), way)
        return way

    def call(self, way: Way, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls the task; as `Batches.apply_async`."""
        template, commit = way
        request = template.request(args, kwargs)
        finish(self._task, request.id, commit(request), template.priority)
        (result,) = template.results([request.id])
        return result

    def _make(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Way | None:
        task = self._task
        if not takes_templates(task) or not needs_no_word(task.backend):
            return None
        template = Template(task, args, kwargs, {})
        if not template.timeless or template.retry is not None:
            return None
        return Way(template, committing(task, template.group, template.priority))

    def _look(self) -> tuple[Any, ...]:
        """Returns all that may change and that Celery's own path reads anew at each call."""
        task = self._task
        app: Any = task.app
        # Read without kombu's cached_property, which takes a lock each time.
        conf, amqp = app.conf, vars(vars(app).get("amqp", self))
        return (
            conf.changes,
            conf,
            # A header holds the process's id; and a child has connections of its own.
            os.getpid(),
            amqp.get("router"),
            amqp.get("send_task_message"),
            Task.apply_async,
            Celery.send_task,
            type(task.backend),
            task.ignore_result,
            task.flush_every,
            task.flush_interval,
            task.typing,
            task.time_limit,
            task.soft_time_limit,
        )
