"""Threads of the operating system, also where gevent or eventlet put greenlets in their place.

A greenlet runs only when another one yields, which a function that computes for a minute does not.
Both libraries are looked for, never imported. A socket of theirs belongs to the event loop of the
thread that opened it, so a thread needs connections of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


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
