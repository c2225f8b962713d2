"""What a result backend does at each call, and whether this package has changed that."""

from __future__ import annotations

from typing import Any

from celery.backends.base import Backend
from celery.backends.redis import RedisBackend

#: The attribute of a backend that knows batch tasks.
WATCHED = "_redis_batches_watched"


def is_watched(backend: Any) -> bool:
    """Whether a backend instance knows batch tasks; see `redis_batches.runs.mark_as`."""
    return bool(getattr(backend, WATCHED, False))


def listens_late(backend: Any) -> bool:
    """Whether a backend subscribes at each call, which can wait for the first wait."""
    return bool(type(backend).on_task_call is RedisBackend.on_task_call)


def needs_no_word(backend: Any) -> bool:
    """Whether a backend need not be told of a call: the rpc backend declares its queue."""
    return listens_late(backend) or type(backend).on_task_call is Backend.on_task_call
