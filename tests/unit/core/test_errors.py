"""Errors that travel: between processes by pickle, to a caller through a result backend."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from celery import Celery

import redis_batches
from redis_batches.core import errors
from redis_batches.wire import envelope

#: Objects that neither pickle nor JSON takes.
ODD: Any = [lambda: None]

MADE: list[errors.BatchesError] = [
    errors.BatchesError("why"),
    errors.ServerNotFound("why"),
    errors.UnsupportedServer("why"),
    errors.StoreError("why"),
    errors.OutOfMemory("why"),
    errors.ResendTooLate("shop.click", ["a", "b"]),
    errors.RouteLost("shop.click", 2, 3),
    errors.Unanswered("Redis", 2.5),
    errors.ScriptReplyError("why"),
    errors.OptionError("flush_every", ODD, "an int"),
    errors.UnknownOption("flush_evry", "flush_every"),
    errors.UnknownOption("nonsense", None),
    errors.RequestError("why"),
    errors.PayloadTooLarge(2000, 1000),
    errors.InvalidTaskId(ODD),
    errors.UnusableCall(3, 2, TypeError("no number")),
    errors.NotReplicated("shop.click", 1),
    errors.DuplicateTaskId("an-id"),
    errors.NotReplicated("shop.click", 1),
    errors.BacklogFull("shop.click", 1000, ["a", "b"]),
    errors.PutBackTooOften("shop.click", "a", 100, "Reject()"),
    errors.LeaseLost("why"),
    errors.ResultCountError("shop.click", 3, 4),
    errors.ResultKeyError("shop.click", ("a", 1)),
    errors.ResultTypeError("shop.click", ODD),
    envelope.UnknownEnvelope("why"),
    envelope.CorruptEnvelope("why"),
]


def subclasses(cls: type) -> set[type]:
    """Returns a class and all that are derived from it."""
    return {cls}.union(*(subclasses(child) for child in cls.__subclasses__()))


def test_every_error_is_tried() -> None:
    """One of each class of the package."""
    assert {type(exc) for exc in MADE} == {
        cls for cls in subclasses(errors.BatchesError) if cls.__module__.startswith("redis_batches")
    }


@pytest.mark.parametrize("exc", MADE, ids=lambda exc: type(exc).__name__)
@pytest.mark.parametrize("serializer", ["pickle", "json"])
def test_an_error_arrives_as_it_was_raised(
    app: Celery, serializer: str, exc: errors.BatchesError
) -> None:
    """Its class, its text and its attributes; also when it travels on from there."""
    app.conf.update(result_serializer=serializer, accept_content=["json", "pickle"])
    backend: Any = app.backend
    got: Any = exc
    for _ in range(2):
        got = backend.exception_to_python(
            backend.decode(backend.encode(backend.prepare_exception(got)))
        )
        assert type(got) is type(exc)
        assert (str(got), repr(got)) == (str(exc), repr(exc))
        assert vars(got) == vars(exc)


def test_an_error_of_many_calls_keeps_what_was_accepted() -> None:
    """By pickle."""
    exc = errors.BacklogFull("shop.click", 1000, ["a"])
    exc.accepted = ("result",)

    assert pickle.loads(pickle.dumps(exc)).accepted == ("result",)


def test_the_text_is_what_a_log_shows() -> None:
    """Not what the class was called with."""
    assert repr(errors.DuplicateTaskId("x")).startswith(
        "DuplicateTaskId(\"a request with task_id 'x'"
    )


def test_what_a_caller_needs_is_exported() -> None:
    """From the package itself, with its version."""
    assert redis_batches.__version__[0].isdigit()
    assert {"DeadLetter", "UnknownOption", *redis_batches.__all__} <= set(dir(redis_batches))
