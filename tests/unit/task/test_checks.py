"""A batch function takes the list of requests, however it is written."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from redis_batches.core.errors import OptionError
from redis_batches.task.checks import check_function


class Model:
    """A class-based batch function."""

    def method(self, requests: list[Any]) -> None:
        """Takes the requests."""

    def __call__(self, requests: list[Any]) -> None:
        """Takes them, too."""


def plain(requests: list[Any]) -> None:
    """The usual one."""


def with_more(requests: list[Any], *rest: Any, retries: int = 3, **options: Any) -> None:
    """One that can take more."""


@pytest.mark.parametrize(
    "fun",
    [
        plain,
        with_more,
        lambda *requests: None,
        Model(),
        Model().method,
        functools.partial(with_more, retries=1),
        functools.wraps(plain)(lambda *args, **kwargs: None),
    ],
)
def test_a_function_of_the_requests_is_allowed(fun: Callable[..., Any]) -> None:
    """However it is written."""
    check_function(fun, bound=False)


@pytest.mark.parametrize(
    "fun",
    [
        lambda: None,
        lambda one, two: None,
        lambda *, requests: None,
        lambda requests, *, needed: None,
        Model.method,
        type,
    ],
)
def test_a_function_that_cannot_take_the_requests_is_refused(fun: Callable[..., Any]) -> None:
    """With what it should take."""
    wanted = "must be a function that takes one positional argument, the list of requests"
    with pytest.raises(OptionError, match=wanted):
        check_function(fun, bound=False)


def test_a_bound_function_takes_the_task_first() -> None:
    """With `bind=True`."""
    check_function(lambda self, requests: None, bound=True)
    with pytest.raises(OptionError, match="must be a function that takes self and requests"):
        check_function(plain, bound=True)
