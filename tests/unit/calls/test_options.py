"""Bad input is refused where it is given, with an error that names what is allowed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from kombu.exceptions import EncodeError, OperationalError

from redis_batches import (
    BacklogFull,
    Batches,
    DuplicateTaskId,
    InvalidTaskId,
    OptionError,
    PayloadTooLarge,
    UnusableCall,
    batched_task,
)
from redis_batches.app.address import address_of
from redis_batches.app.state import runtime_of


def function(requests: list[Any]) -> None:
    """A batch function."""


@pytest.mark.parametrize("value", [0, -1, 10_001, True, 1.5, "10", None])
def test_flush_every_is_refused_at_decoration(app: Celery, value: Any) -> None:
    """Only an int from 1 to 10,000 is one."""
    with pytest.raises(OptionError, match=r"flush_every is .* an int from 1 to 10,000"):
        batched_task(value, 1, app=app)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, True, "1", None, 7 * 86400 + 1])
def test_flush_interval_is_refused_at_decoration(app: Celery, value: Any) -> None:
    """Only 0 to 7 days are one."""
    with pytest.raises(OptionError, match=r"flush_interval is .*, but must be a number of seconds"):
        batched_task(10, value, app=app)


def test_the_base_class_refuses_bad_options_too(app: Celery) -> None:
    """As soon as the task's class is made."""
    with pytest.raises(OptionError, match="flush_every is 0"):
        type("Bad", (Batches,), {"flush_every": 0})


@pytest.mark.parametrize(
    "bad",
    [lambda: None, lambda a, b: None, lambda *, requests: None],
    ids=["none", "two", "keyword"],
)
def test_a_function_that_cannot_take_the_requests_is_refused(app: Celery, bad: Any) -> None:
    """It has to take exactly one positional argument."""
    with pytest.raises(OptionError, match="one positional argument, the list of requests"):
        batched_task(10, 1, app=app)(bad)


async def coroutine(requests: list[Any]) -> None:
    """Is not awaited by anybody."""


def generator(requests: list[Any]) -> Any:
    """Is not run by anybody."""
    yield from requests


async def stream(requests: list[Any]) -> Any:
    """Is not run by anybody."""
    for request in requests:
        yield request


@pytest.mark.parametrize(
    ("bad", "hint"),
    [
        (coroutine, "it may call asyncio.run()"),
        (generator, "return a list of the results"),
        (stream, "return a list of the results"),
    ],
)
def test_a_function_that_does_not_run_when_called_is_refused(
    app: Celery, bad: Any, hint: str
) -> None:
    """It would do nothing; the error says what to do instead."""
    with pytest.raises(OptionError, match="a plain function; ") as caught:
        batched_task(10, 1, app=app)(bad)
    assert hint in str(caught.value)


@pytest.mark.parametrize("task_id", ["", "a b", "x" * 129, "ü", 7, "a\n"])
def test_a_task_id_that_redis_cannot_hold_is_refused(app: Celery, task_id: Any) -> None:
    """Nothing is stored."""
    task = batched_task(10, 1, app=app)(function)

    with pytest.raises(InvalidTaskId, match="1 to 128 characters"):
        task.apply_async(task_id=task_id)
    assert task.stats()["pushed"] == 0


def test_a_task_id_that_waits_is_refused(app: Celery) -> None:
    """The first call is kept."""
    task = batched_task(10, 1, app=app)(function)
    task.apply_async((1,), task_id="mine")

    with pytest.raises(DuplicateTaskId, match="'mine' is already waiting or running"):
        task.apply_async((2,), task_id="mine")
    assert task.stats()["pushed"] == 1


def test_arguments_that_cannot_be_serialized_are_refused(app: Celery) -> None:
    """As Celery does, with what the serializer says; nothing is stored."""
    task = batched_task(10, 1, app=app)(function)

    with pytest.raises(EncodeError, match="object is not JSON serializable"):
        task.delay(object())
    assert task.stats()["pushed"] == 0


def test_a_payload_that_is_too_large_is_refused(app: Celery) -> None:
    """With its size and the limit."""
    app.conf.redis_batches_max_payload = 1000
    task = batched_task(10, 1, app=app)(function)

    with pytest.raises(PayloadTooLarge) as caught:
        task.delay("x" * 1000)
    assert caught.value.size > caught.value.limit == 1000
    assert task.stats()["pushed"] == 0


@pytest.mark.parametrize("many", [False, True], ids=["delay", "delay_many"])
def test_a_payload_that_is_too_large_is_refused_although_it_is_compressed(
    app: Celery, many: bool
) -> None:
    """A worker would hold all of it."""
    app.conf.redis_batches_max_payload = 1000
    task = batched_task(10, 1, app=app, compression="zlib")(function)

    with pytest.raises((PayloadTooLarge, UnusableCall)) as caught:
        task.delay_many([("x" * 1000,)]) if many else task.delay("x" * 1000)
    cause = caught.value.__cause__ if many else caught.value
    assert isinstance(cause, PayloadTooLarge)
    assert cause.size > cause.limit == 1000
    assert task.stats()["pushed"] == 0


def test_a_full_backlog_is_refused(app: Celery) -> None:
    """With the setting to raise."""
    app.conf.redis_batches_max_pending = 2
    task = batched_task(10, 1, app=app)(function)
    task.delay()
    task.delay()

    with pytest.raises(BacklogFull, match="redis_batches_max_pending") as caught:
        task.apply_async(task_id="third")
    assert caught.value.refused == ("third",)


def test_settings_are_refused_when_they_are_first_used(app: Celery) -> None:
    """The error names the setting."""
    app.conf.redis_batches_lease = 0.1
    task = batched_task(10, 1, app=app)(function)

    with pytest.raises(ImproperlyConfigured, match=r"redis_batches_lease is 0\.1"):
        task.delay()


def test_a_mistyped_setting_is_refused(app: Celery) -> None:
    """Whether it is set on the app or in a namespace."""

    class Config:
        CELERY_REDIS_BATCHES_LEESE = 12

    app.conf.redis_batches_leese = 12
    spaced = Celery("spaced", set_as_current=False)
    spaced.config_from_object(Config, namespace="CELERY")

    for each in (app, spaced):
        with pytest.raises(ImproperlyConfigured, match="did you mean redis_batches_lease"):
            _ = runtime_of(each).settings


def test_without_redis_anywhere_the_error_says_what_to_set() -> None:
    """Neither the broker nor the result backend is Redis."""
    app = Celery("none", broker="memory://", set_as_current=False)
    task = batched_task(10, 1, app=app)(function)

    with pytest.raises(ImproperlyConfigured, match="set redis_batches_url"):
        task.delay()


@pytest.mark.parametrize(
    ("broker", "backend", "expected"),
    [
        ("redis://b/0", "redis://r/1", "redis://b/0"),
        ("amqp://b", "redis://r/1", "redis://r/1"),
        ("valkey://b/0", None, "valkey://b/0"),
    ],
)
def test_the_url_is_the_brokers_else_the_backends(
    broker: str, backend: str | None, expected: str
) -> None:
    """The first of them that is Redis."""
    app = Celery("urls", broker=broker, backend=backend, set_as_current=False)

    assert address_of(app.conf, None).url == expected


def test_settings_come_from_an_object_with_a_namespace() -> None:
    """As with any Celery setting in a Django project."""

    class Config:
        CELERY_REDIS_BATCHES_NAMESPACE = "mine"
        CELERY_REDIS_BATCHES_LEASE = 12

    app = Celery("spaced", set_as_current=False)
    app.config_from_object(Config, namespace="CELERY")

    assert runtime_of(app).settings.namespace == "mine"
    assert runtime_of(app).settings.lease == 12


@pytest.mark.parametrize("backend", [None, "redis://127.0.0.1:1/1"])
@pytest.mark.parametrize("options", [{}, {"countdown": 1}], ids=["plain", "options"])
def test_a_server_that_is_down_is_an_operational_error(
    backend: str | None, options: dict[str, Any]
) -> None:
    """The error that Celery's own delay() raises, within a bounded time."""
    url = "redis://127.0.0.1:1/0"
    app = Celery("down", broker=url, backend=backend, set_as_current=False)
    app.conf.redis_batches_retries = 1
    task = batched_task(10, 1, app=app)(function)

    with pytest.raises(OperationalError, match="could not be reached to push"):
        task.apply_async((1,), **options)
