"""What calls of a task have in common: made once by Celery's own path, used for many calls."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from celery import Task, signals
from celery.app.amqp import AMQP
from celery.app.routes import MapRoute, Router
from kombu.utils.uuid import uuid

from redis_batches.app.state import runtime_of
from redis_batches.calls.send import Hop, Made
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.requests import Outgoing
from redis_batches.wire.envelope import Encoder, held_size
from redis_batches.wire.options import check_call

_BEFORE, _AFTER, _SENT = (
    signals.before_task_publish,
    signals.after_task_publish,
    signals.task_sent,
)
#: Headers that say a time, and so hold for a moment only.
_TIMES = ("eta", "expires")


class _Sample(Hop):
    """Keeps what Celery made of a call, in the place of Redis."""

    made: Made

    def _store(self, made: Made) -> None:
        self.made = made


class Template:
    """Makes requests of calls that differ only in their arguments, as Celery's own path would.

    Args:
        task: The batch task.
        args: Of one of these calls.
        kwargs: Of that call.
        options: What `apply_async` takes besides arguments and id.

    Attributes:
        group: Where they wait.
        priority: Of the doorbells that they cause.
        retry: How often and when they are sent again; None: as the connection does by itself.
        timeless: Whether it holds for later calls, too.
    """

    def __init__(
        self,
        task: BatchTask,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        check_call(task, options)
        # Celery's own, whatever the task's class makes of it.
        celery_call: Any = Task.apply_async
        sample = _Sample(task, nonce="", keep_reprs=False, producer=None)
        options = {**options, "producer": sample, "router": sample, "add_to_parent": False}
        self._ignored = celery_call(task, args, kwargs, uuid(), **options).ignored
        made = sample.made
        self.group, self.priority, self._eta_ms = made.group, made.priority, made.eta_ms
        self.retry = sample.retry
        self.timeless = not any(made.envelope.headers.get(name) for name in _TIMES)
        limit = runtime_of(task.app).settings.max_payload
        self._encode = Encoder(made.envelope, made.serializer, made.compression, limit)
        self._compressed = bool(made.compression)
        self._task = task
        self._check = task.__header__ if task.typing else None
        # A task's own one may take nothing but an id, as in Celery.
        self._takes_backend = _definitions(task, "AsyncResult") == 2

    def request(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outgoing:
        """Returns the request of a call, with an id of its own.

        Raises:
            EncodeError: The arguments cannot be serialized.
            PayloadTooLarge: The encoded call is too large.
            TypeError: The arguments do not fit the signature that the task has as `typing`.
        """
        if self._check is not None:
            self._check(*args, **kwargs)
        data = self._encode(args, kwargs)
        size = held_size(data) if self._compressed else None
        return Outgoing(new_id(), "", self._eta_ms, data, size)

    def results(self, ids: Iterable[str]) -> Iterator[Any]:
        """Yields the AsyncResults of calls."""
        task = self._task
        options = {"backend": task.backend} if self._takes_backend else {}
        for task_id in ids:
            result = task.AsyncResult(task_id, **options)
            result.ignored = self._ignored
            yield result


def new_id() -> str:
    """Returns a random UUID as text, as `str(uuid4())` does, but without making a UUID first."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def somebody_listens() -> bool:
    """Whether a signal of a call has receivers, which may change the call or count it."""
    return bool(_BEFORE.receivers or _AFTER.receivers or _SENT.receivers)


def takes_templates(task: BatchTask) -> bool:
    """Whether a template makes the same of a call as Celery's own path, whatever its arguments."""
    return not somebody_listens() and _only_celery_decides(task)


def _only_celery_decides(task: BatchTask) -> bool:
    """Whether only Celery's own code decides what becomes of a call, whatever its arguments."""
    app: Any = task.app
    conf, amqp = app.conf, app.amqp
    if conf.task_always_eager or conf.task_send_sent_event:
        return False
    own = (Task.apply_async, app.send_task, amqp.create_task_message, amqp.send_task_message)
    return (
        _definitions(task, "shadow_name") == 1
        # Its own and Celery's.
        and _definitions(task, "apply_async") == 2
        and all(_is_celerys(function) for function in own)
        and type(amqp) is AMQP
        and _is_static(amqp.router)
    )


def _is_static(router: Any) -> bool:
    """Whether a router looks at the task's name only."""
    kind: Any = type(router)
    return kind is Router and all(isinstance(route, MapRoute) for route in router.routes)


def _definitions(task: BatchTask, name: str) -> int:
    return sum(name in vars(cls) for cls in type(task).__mro__) + (name in vars(task))


def _is_celerys(function: Any) -> bool:
    """Whether a function is as Celery wrote it, not wrapped by a tool that traces calls."""
    plain = getattr(function, "__func__", function)
    return isinstance(plain, FunctionType) and plain.__globals__["__name__"].startswith("celery.")
