"""The fast path of `delay()`: a call without options that nobody listens to.

Celery's own path costs three times what Redis does. Here it is gone once, for a `Template`, and
again when anything has changed that it reads.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from celery import Celery, Task
from celery._state import get_current_task

from redis_batches.lateresult import needs_no_word
from redis_batches.producer import commit, finish
from redis_batches.template import Template, is_plain, somebody_listens

if TYPE_CHECKING:
    from redis_batches.task import Batches


class FastPath:
    """The fast path of one task."""

    def __init__(self, task: Batches) -> None:
        self._task = task
        #: What the template was made of, and the template; None: Celery's own path must be gone.
        self._kept: tuple[Any, Template | None] = (None, None)

    def template(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Template | None:
        """Returns what calls have in common now, or None if Celery's own path must be gone.

        Args:
            args: Of a call; an example, from which a template is made.
            kwargs: Of that call.
        """
        if somebody_listens() or get_current_task() is not None:
            return None
        changes, *rest = seen = self._look()
        known, template = self._kept
        if seen != known:
            template = self._make(args, kwargs)
            self._kept = ((dict(changes), *rest), template)
        return template

    def call(self, template: Template, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls the task; as `Batches.apply_async`."""
        request = template.request(args, kwargs)
        done = commit(self._task, template.group, template.priority, request)
        finish(self._task, request.id, done, template.priority)
        (result,) = template.results([request.id])
        return result

    def _make(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Template | None:
        if not is_plain(self._task) or not needs_no_word(self._task.backend):
            return None
        template = Template(self._task, args, kwargs, {})
        return template if template.timeless and template.retry is None else None

    def _look(self) -> tuple[Any, ...]:
        """Returns all that may change and that Celery's own path reads anew at each call."""
        task = self._task
        app: Any = task.app
        # Read without kombu's cached_property, which takes a lock each time.
        conf, amqp = app.conf, vars(vars(app).get("amqp", self))
        return (
            conf.changes,
            conf,
            # A header holds the process's id.
            os.getpid(),
            amqp.get("router"),
            amqp.get("send_task_message"),
            Task.apply_async,
            Celery.send_task,
            type(task.backend),
            task.ignore_result,
            task.typing,
            task.time_limit,
            task.soft_time_limit,
        )
