"""What the end of a run says of the requests that have no outcome: whose fault it is."""

from __future__ import annotations

import sys
from typing import Any

from billiard import common
from celery.exceptions import (
    Ignore,
    Reject,
    Retry,
    TimeLimitExceeded,
    WorkerLostError,
    WorkerShutdown,
    WorkerTerminate,
)
from kombu.utils.encoding import safe_repr

#: What a batch function may raise, or return in the place of a result, that is no failure.
VERDICTS = (Ignore, Reject, Retry)


def is_shutdown(exc: BaseException) -> bool:
    """Whether an exception is the worker's end, not something that the function did."""
    if isinstance(exc, (WorkerShutdown, WorkerTerminate)):
        return True
    # The handler of SIGTERM in a process of the prefork pool.
    fired: list[bool] = getattr(common, "_should_have_exited", [False])
    return isinstance(exc, SystemExit) and fired[0]


def is_crash(exc: BaseException) -> bool:
    """Whether an exception ends the process: a run that raised it counts as one that died."""
    return isinstance(exc, (SystemExit, KeyboardInterrupt)) and not is_shutdown(exc)


def is_time_limit(exc: BaseException) -> bool:
    """Whether an exception is the hard time limit of the gevent pool, as that pool takes it."""
    gevent = sys.modules.get("gevent")
    return gevent is not None and isinstance(exc, gevent.Timeout)


def failure_of(exc: BaseException) -> Exception:
    """Returns what callers are told of what ended their run, as Celery's pools tell it."""
    if isinstance(exc, Exception):
        return exc
    if is_time_limit(exc):
        seconds: Any = getattr(exc, "seconds", None)
        failure: Exception = TimeLimitExceeded(seconds)
    else:
        failure = WorkerLostError(shown(exc))
    return failure.with_traceback(exc.__traceback__)


def shown(value: object) -> str:
    """Returns the repr of something that may have none."""
    return str(safe_repr(value))
