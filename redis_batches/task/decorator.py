"""`batched_task`, the decorator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, overload

from celery import Celery, Task, current_app
from celery._state import _get_active_apps, connect_on_app_finalize  # type: ignore[attr-defined]
from celery.local import Proxy

from redis_batches.core.settings import make_trigger
from redis_batches.task.batches import Batches
from redis_batches.task.checks import (
    check_function,
    check_option_names,
    check_pydantic,
    check_typing,
)

_Decorator: TypeAlias = Callable[[Callable[..., Any]], Batches]


@overload
def batched_task(flush_every: Callable[..., Any]) -> Batches: ...


@overload
def batched_task(
    flush_every: int = 10,
    flush_interval: float = 30,
    *,
    app: Any = None,
    base: type[Task] | None = None,  # type: ignore[type-arg]
    **options: Any,
) -> _Decorator: ...


def batched_task(
    flush_every: int | Callable[..., Any] = 10,
    flush_interval: float = 30,
    *,
    app: Any | None = None,
    base: type[Task] | None = None,  # type: ignore[type-arg]
    **options: Any,
) -> Batches | _Decorator:
    """Makes a batch task of a function that takes a list of `SimpleRequest`.

    The function may return a list with a result per request, in order, or a dict of request id to
    result; an exception in the place of a result fails that request. Returning None is the result
    None for every request that has no outcome yet.

    Args:
        flush_every: Requests that make a full batch, 1 to 10,000.
        flush_interval: Seconds that the oldest request waits for others, 0 to 7 days.
        app: The app of the task; by default each app that uses it, as `shared_task` does.
        base: A task class to build on instead of the app's own.
        options: Any option of `app.task`. As `typing` a function may be given: calls whose
            arguments do not fit its signature are refused, as Celery refuses them for other tasks.

    Raises:
        OptionError: An option has a value that is not allowed.
    """
    if callable(flush_every):
        return batched_task()(flush_every)
    make_trigger(flush_every, flush_interval)
    check_option_names(options, {*dir(Batches), *dir(base)})
    check_typing(options.get("typing"))
    check_pydantic(bool(options.get("pydantic")))
    chosen = {"flush_every": flush_every, "flush_interval": flush_interval, **options}

    def decorate(fun: Callable[..., Any]) -> Any:
        check_function(fun, bound=bool(options.get("bind")))
        if app is not None:
            return app.task(fun, base=_base_for(app, base), returns_results=True, **chosen)
        return _share(fun, base, chosen)

    return decorate


def _share(fun: Callable[..., Any], base: Any, chosen: dict[str, Any]) -> Any:
    """Makes the task in each app that is or will be finalized, as `shared_task` does."""

    def make(owner: Celery) -> Any:
        return owner._task_from_fun(
            fun, base=_base_for(owner, base), returns_results=True, **chosen
        )

    connect_on_app_finalize(make)
    for active in _get_active_apps():
        if active.finalized:
            with active._finalize_mutex:
                make(active)
    name = chosen.get("name")

    def find() -> Any:
        owner: Any = current_app._get_current_object()  # type: ignore[attr-defined]
        return owner.tasks[name or owner.gen_task_name(fun.__name__, fun.__module__)]

    return Proxy(find)


def _base_for(app: Any, base: type[Task] | None) -> type[Task]:  # type: ignore[type-arg]
    """Returns a batch task class that keeps what the app's own task class adds."""
    parent = base or app.Task
    if issubclass(parent, Batches):
        return parent
    return type("BatchTask", (Batches, parent), {"abstract": True})
