"""What a result backend does at each call, and whether this package has changed that."""

from __future__ import annotations

from typing import Any

from celery.backends.base import Backend
from celery.backends.redis import RedisBackend

#: The attribute of what this package has changed, such as a backend that knows batch tasks.
WATCHED = "_redis_batches_watched"


def is_watched(changed: Any) -> bool:
    """Whether this package has changed a backend instance, or a function, already."""
    return bool(getattr(changed, WATCHED, False))


def listens_late(backend: Any) -> bool:
    """Whether a backend subscribes at each call, which can wait for the first wait."""
    return bool(type(backend).on_task_call is RedisBackend.on_task_call)


def needs_no_word(backend: Any) -> bool:
    """Whether a backend need not be told of a call: the rpc backend declares its queue."""
    return listens_late(backend) or type(backend).on_task_call is Backend.on_task_call
