"""Threads of the operating system, also where gevent or eventlet put greenlets in their place.

A greenlet runs only when another one yields, which a function that computes for a minute does not.
Both libraries are looked for, never imported. A socket of theirs belongs to the event loop of the
thread that opened it, so a thread needs connections of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any, ClassVar
from weakref import WeakSet


def are_greenlets() -> bool:
    """Tells whether `threading` makes greenlets in this process."""
    return _patcher() is not None


def start(run: Callable[[], None]) -> None:
    """Runs a function in a thread that ends with the process, whatever the others do."""
    _original("_thread", "start_new_thread")(run, ())


def sleep(seconds: float) -> None:
    """Pauses a thread that `start` made, and no event loop."""
    _original("time", "sleep")(seconds)


def new_lock() -> Any:
    """Returns a lock between such threads and others: hold it for moments, and never yield."""
    return _original("_thread", "allocate_lock")()


def _original(module: str, name: str) -> Any:
    patcher = _patcher()
    if patcher is None:
        return getattr(sys.modules[module], name)
    if hasattr(patcher, "get_original"):
        return patcher.get_original(module, name)
    return getattr(patcher.original(module), name)


def _patcher() -> Any:
    """Returns what replaced the threads, if anything did."""
    gevent: Any = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("threading"):
        return gevent
    eventlet: Any = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return eventlet
    return None


class Unforked:
    """A block during which this process rather does not fork: a fork waits for it, for a moment.

    A child has none of its parent's threads, but the locks that they held when it was made; kombu
    and Celery have some that parent and child share. What a thread waits for longer than a moment
    is a server's answer, and then it holds none of those.
    """

    #: Seconds for which a fork waits, at most.
    MOMENT = 0.2
    _all: ClassVar[WeakSet[Unforked]] = WeakSet()
    _held: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        self._lock = new_lock()
        Unforked._all.add(self)

    def __enter__(self) -> None:
        """Begins the block."""
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        """Ends it."""
        self._lock.release()

    @classmethod
    def _before_fork(cls) -> None:
        until = monotonic() + cls.MOMENT
        for guard in list(cls._all):
            if guard._lock.acquire(timeout=max(until - monotonic(), 0)):
                cls._held.append(guard._lock)

    @classmethod
    def _after_fork(cls) -> None:
        while cls._held:
            cls._held.pop().release()

    @classmethod
    def _in_child(cls) -> None:
        cls._after_fork()
        cls._all.clear()


os.register_at_fork(
    before=Unforked._before_fork,
    after_in_parent=Unforked._after_fork,
    after_in_child=Unforked._in_child,
)
