"""What the declaration of a batch task may hold, checked as soon as it exists."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from difflib import get_close_matches
from typing import Any

from redis_batches.core.errors import OptionError, UnknownOption

_TASK_OPTIONS = ("flush_every", "flush_interval")


def check_function(fun: Callable[..., Any], *, bound: bool) -> None:
    """Raises OptionError unless a function can be called with one positional argument.

    Args:
        fun: The batch function.
        bound: Whether Celery will pass the task in front (`bind=True`).
    """
    hint = _hint_for(fun)
    if hint is not None:
        raise OptionError("the batch function", fun, f"a plain function; {hint}")
    probe = (object(),) * (2 if bound else 1)
    try:
        inspect.signature(fun).bind(*probe)
    except (TypeError, ValueError) as exc:
        wanted = "self and requests" if bound else "one positional argument, the list of requests"
        raise OptionError("the batch function", fun, f"a function that takes {wanted}") from exc


def _hint_for(fun: Callable[..., Any]) -> str | None:
    """Returns what to do instead of a kind of function that runs nothing when it is called."""
    if inspect.iscoroutinefunction(fun):
        return "it may call asyncio.run()"
    if inspect.isgeneratorfunction(fun) or inspect.isasyncgenfunction(fun):
        return "return a list of the results in the place of yielding each"
    return None


def check_option_names(options: Mapping[str, Any], known: Container[str]) -> None:
    """Raises UnknownOption for an option that looks like a mistake.

    Celery lets a task have any attribute, so only names that come close to this package's are
    refused.

    Args:
        options: Options of a task, or the attributes of its class; methods may have any name.
        known: Names that the task's base classes have.
    """
    for name, value in options.items():
        if name in known or callable(value) or hasattr(value, "__get__"):
            continue
        likely = get_close_matches(name, _TASK_OPTIONS, 1, 0.8)
        if likely or name.startswith(("flush_", "redis_batches")):
            raise UnknownOption(name, likely[0] if likely else None)


def check_typing(value: object) -> bool:
    """Returns whether a task's option `typing` is a signature that its calls must fit.

    Raises:
        OptionError: It is True: the batch function's own signature says nothing about calls.
    """
    if not value:
        return False
    if inspect.isfunction(value) and value.__name__.isidentifier():
        return True
    raise OptionError("typing", value, "False, or a function (def) with the arguments of a call")


def check_pydantic(wanted: bool) -> None:
    """Raises OptionError if a task asks Celery to make models of its function's arguments."""
    if wanted:
        allowed = "False: the function takes requests; make models of their arguments in it"
        raise OptionError("pydantic", wanted, allowed)
