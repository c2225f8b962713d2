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


def ends_the_run(exc: BaseException) -> bool:
    """Whether an exception is for the process, or the pool, and not for who happens to meet it."""
    return is_shutdown(exc) or is_crash(exc) or is_time_limit(exc)


def is_exception(value: object) -> bool:
    """Whether something is an exception; asked of its type, since some objects lie or raise."""
    return issubclass(type(value), BaseException)


def is_caused_by(exc: BaseException | None, cause: BaseException | None) -> bool:
    """Whether an exception is another one, was raised from it, or is a group that has it."""
    seen: set[int] = set()
    rest: list[Any] = [exc]
    while rest and cause is not None:
        each = rest.pop()
        if each is cause:
            return True
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            rest += (each.__cause__, each.__context__, *getattr(each, "exceptions", ()))
    return False


def failure_of(exc: object) -> Exception:
    """Returns what callers are told of what ended their run, as Celery's pools tell it.

    Raises:
        TypeError: It is no exception, and no class of exceptions.
    """
    if isinstance(exc, type) and issubclass(exc, BaseException):
        exc = exc()
    if not isinstance(exc, BaseException):
        raise TypeError(f"a request fails with an exception, not with {type(exc).__name__}")
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
    try:
        return str(safe_repr(value))
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"
