"""The result of a call: it listens to a Redis result backend from the first wait on, not before.

Celery subscribes to a result at each call, which costs as much as the call itself. `get()` and
`join()` subscribe, too, and then read what is stored: they need no earlier subscription. `then()`
does not read, so here it does.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import result as celery_result
from celery.app import app_or_default
from celery.result import AsyncResult
from vine import barrier, promise

from redis_batches.app.backends import is_watched, listens_late

if TYPE_CHECKING:
    _Base = AsyncResult[Any]
else:
    # Celery 5.5 cannot subscript it.
    _Base = AsyncResult


class LateBarrier(barrier):
    """A barrier for which it does not matter when its promises are kept.

    vine's own counts one that is kept at once, but then waits for another one.
    """

    size: int
    _value: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.finalized and not self.ready and self._value >= self.size:
            self.ready = True
            self.p(*self.args, **self.kwargs)

    def add(self, p: Any) -> Any:
        """Adds a promise; its size grows first, so that one more has to be kept."""
        self.size += 1
        try:
            self.add_noincr(p)
        except ValueError:
            self.size -= 1
            raise


# A result set that is made of results which are there already would wait for ever.
celery_result.barrier = LateBarrier  # type: ignore[attr-defined]


class LateResult(_Base):
    """An `AsyncResult` that listens late; what only a wait needs is made at the first one."""

    def __init__(
        self,
        id: str,
        backend: Any = None,
        task_name: str | None = None,
        app: Any = None,
        parent: Any = None,
    ) -> None:
        if id is None:
            raise ValueError("a result needs the id of its call")
        # As the base class, but for `on_ready`: few calls need that promise, and each pays for it.
        self.app = app or self.app or app_or_default()
        self.id = id
        self._task_name = task_name
        self.backend = backend or self.app.backend
        self.parent = parent
        self._cache = None
        self._ignored = False

    @cached_property
    def on_ready(self) -> Any:  # type: ignore[override]
        """Called when the result is there."""
        return promise(self._on_fulfilled, weak=True)  # type: ignore[attr-defined]

    def __del__(self) -> None:
        """Stops waiting, if anybody ever waited."""
        backend = self.__dict__.get("backend")
        if backend is not None and ("on_ready" in self.__dict__ or not is_watched(backend)):
            backend.remove_pending_result(self)

    def then(self, callback: Any, on_error: Any = None, weak: bool = False) -> Any:
        """Calls back when the result is there, also if it came before anybody listened."""
        promise = super().then(callback, on_error, weak)
        if listens_late(self.backend) and not self.ignored:
            self._get_task_meta()  # type: ignore[attr-defined]
        return promise
