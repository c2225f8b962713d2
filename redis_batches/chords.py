"""Whether the body of a chord is being sent: its parts have ended, so that is their last chance.

Celery sends it once, from the run of the last part. An error there fails the body with a
`ChordError`, although all its parts did well; so it is sent again for as long as an outcome is told
again, and under a name of its own, so that a second sender sends the same call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from inspect import signature
from time import monotonic
from typing import Any, NamedTuple

from celery._state import get_current_task

#: Seconds for which a body is sent again while the batch store does not take it.
PATIENCE = 30.0
#: The task that sends the body with a result backend that does not count parts.
_UNLOCK = "celery.chord_unlock"


class _Counting(NamedTuple):
    """A part of a chord is counted."""

    group: str
    until: float


_counting: ContextVar[_Counting | None] = ContextVar("redis_batches_counting", default=None)
#: The process and thread that must not wait: a worker's event loop.
_loop: tuple[int, int] | None = None


def never_wait_here() -> None:
    """Says that this thread is an event loop: what it sends is sent once."""
    global _loop
    _loop = (os.getpid(), threading.get_ident())


def counting(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps what a result backend does when a part of a chord has ended."""
    parameters = signature(original)

    @wraps(original)
    def on_chord_part_return(*args: Any, **kwargs: Any) -> Any:
        request = parameters.bind(*args, **kwargs).arguments["request"]
        waits = (os.getpid(), threading.get_ident()) != _loop
        found = _Counting(str(request.group), monotonic() + (PATIENCE if waits else 0.0))
        token = _counting.set(found)
        try:
            return original(*args, **kwargs)
        finally:
            _counting.reset(token)

    return on_chord_part_return


def group_of_body() -> str | None:
    """Returns the id of the group whose chord's body is sent now, if any is."""
    if (found := _counting.get()) is not None:
        return found.group
    task: Any = get_current_task()
    if task is None or task.name != _UNLOCK:
        return None
    args = task.request.args or ()
    return str(args[0] if args else (task.request.kwargs or {}).get("group_id"))


def deadline() -> float:
    """Returns until when a body is to be sent again, by `time.monotonic`."""
    found = _counting.get()
    return found.until if found is not None else monotonic() + PATIENCE
