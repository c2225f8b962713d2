"""Whether the body of a chord is being sent: its parts have ended, so that is their last chance.

Celery sends it once, from the run of the last part. An error there fails the body with a
`ChordError`, although all its parts did well; so it is sent again for as long as an outcome is told
again, and under a name of its own, so that a second sender sends the same call.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from time import monotonic
from typing import Any

from celery._state import get_current_task

#: Seconds for which a body is sent again while the batch store does not take it.
PATIENCE = 30.0
#: The task that sends the body with a result backend that does not count parts.
_UNLOCK = "celery.chord_unlock"

#: Until when; None: no part of a chord is counted.
_until: ContextVar[float | None] = ContextVar("redis_batches_body_until", default=None)


def counting(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps what a result backend does when a part of a chord has ended."""

    @wraps(original)
    def on_chord_part_return(*args: Any, **kwargs: Any) -> Any:
        token = _until.set(monotonic() + PATIENCE)
        try:
            return original(*args, **kwargs)
        finally:
            _until.reset(token)

    return on_chord_part_return


def is_body() -> bool:
    """Whether what is called now is the body of a chord."""
    return _until.get() is not None or getattr(get_current_task(), "name", "") == _UNLOCK


def deadline() -> float:
    """Returns until when a call is to be sent again, by `time.monotonic`; now if it is no body."""
    if (until := _until.get()) is not None:
        return until
    return monotonic() + (PATIENCE if is_body() else 0)
