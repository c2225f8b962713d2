"""Doorbells: what names a run, and what a broker that is down costs."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded

from redis_batches.app import doorbell
from redis_batches.app.doorbell import MARKER, is_token_of, new_token, read_marker
from redis_batches.app.state import _inherited, runtime_of
from redis_batches.core.triggers import Bells
from redis_batches.testing.worker import in_process


def test_a_token_says_whose_run_it_names() -> None:
    """A worker takes back its own runs only: a redelivered doorbell may run elsewhere."""
    token = new_token("one@here")

    assert is_token_of(token, "one@here")
    assert not is_token_of(token, "two@here")
    assert token != new_token("one@here")


def test_a_marker_is_that_of_a_doorbell(app: Celery) -> None:
    """Also one with a field that only a newer version knows."""
    message = doorbell._create(app, "t", "0123456789ab", 5, counted=False)

    assert read_marker(message.headers) == message.headers[MARKER]
    newer = {**message.headers[MARKER], "new": [1]}
    assert read_marker(Context({MARKER: newer})) == newer


@pytest.mark.parametrize("odd", [None, 5, 1.5, True, "", "garbage", [], [1], {}], ids=repr)
def test_what_anybody_may_send_is_no_marker(odd: Any) -> None:
    """As a whole, and in each of its fields."""
    well = {"group": "0123456789ab", "rung_ms": 5}
    assert read_marker({MARKER: well}) == well
    assert read_marker({}) is None
    assert read_marker({MARKER: odd}) is None
    for name in ("group", "rung_ms"):
        assert read_marker({MARKER: {key: well[key] for key in well.keys() - {name}}}) is None
        if (name, odd) not in (("group", "garbage"), ("rung_ms", 5)):
            assert read_marker({MARKER: {**well, name: odd}}) is None
    for name in ("force", "counted", doorbell.DRAIN_ON):
        if odd is not True:
            assert read_marker({MARKER: {**well, name: odd}}) is None


@pytest.mark.parametrize("field", [{"group": "x" * 65}, {"group": "a|b"}, {"rung_ms": -1}], ids=str)
def test_a_marker_names_a_group_and_a_time(field: dict[str, Any]) -> None:
    """No text of any kind, and no number of any size."""
    assert read_marker({MARKER: {"group": "x", "rung_ms": 5, **field}}) is None


def test_a_broker_that_is_down_does_not_fail_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is stored, and a sweep rings for it."""

    def refuse(*_: Any) -> None:
        raise OSError("the broker is down")

    # The inner one ends first, and so leaves what the outer one has put there.
    with in_process(nothing, 1) as here, monkeypatch.context() as patch:
        patch.setattr(doorbell, "_publish", refuse)
        here.task.delay()

        assert here.task.stats()["waiting"] == 1


def test_the_main_thread_of_a_worker_does_not_wait_for_the_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread publishes what it rings; other threads, and who chose a producer, publish alone."""
    threads = []
    with in_process(nothing, 1) as here, monkeypatch.context() as patch:
        app = here.task.app
        runtime = runtime_of(app)
        runtime.start_ringer(lambda task, bells, _: doorbell.ring_now(app, task, bells))
        patch.setattr(doorbell, "_publish", lambda *_: threads.append(threading.current_thread()))
        here.task.delay()
        assert runtime.ringer is not None
        assert runtime.ringer.drain(10)
        other = threading.Thread(target=here.task.delay)
        other.start()
        other.join(10)
        with app.producer_pool.acquire() as producer:
            here.task.apply_async(producer=producer)

    assert threads[0].name == "redis_batches-ringer"
    assert threads[1:] == [other, threading.main_thread()]


def test_a_child_has_neither_the_ringer_nor_the_connections_of_its_parent(app: Celery) -> None:
    """It may not even close them: they are the parent's."""
    runtime = runtime_of(app)
    ringer, publisher = runtime.start_ringer(lambda *_: None), runtime.publisher
    assert (runtime.ringer, runtime.publisher) == (ringer, publisher)
    runtime._pid = -1

    assert runtime.ringer is None
    assert runtime.publisher is not publisher
    assert publisher in _inherited


def test_a_broker_that_is_down_is_named_once_a_minute(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not once for each doorbell."""

    def refuse(*_: Any) -> None:
        raise ConnectionRefusedError("the broker is down")

    monkeypatch.setattr(doorbell, "_publish", refuse)
    for number in range(30):
        doorbell.ring(app, f"shop.{number}", Bells("group", "", 3, 0))

    assert caplog.text.count("cannot ring for") == 1
    assert "the broker is down" in caplog.text


def test_many_doorbells_take_no_longer_than_a_few_seconds(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However slowly the broker answers each of them."""
    now, rung = 0.0, []

    def publish(*_: Any) -> None:
        nonlocal now
        rung.append(now)
        now += 1.0

    monkeypatch.setattr(doorbell, "_publish", publish)
    monkeypatch.setattr(doorbell, "monotonic", lambda: now)
    doorbell.ring(app, "shop.click", Bells("group", "", 16, 0))

    assert len(rung) == doorbell.DEADLINE + 1
    assert "the broker took more than 5 s" in caplog.text


def test_a_soft_time_limit_is_not_taken_for_an_error_of_the_broker(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the run's to see."""

    def publish(*_: Any) -> None:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(doorbell, "_publish", publish)
    with pytest.raises(SoftTimeLimitExceeded):
        doorbell.ring(app, "shop.click", Bells("group", "", 1, 0))


def nothing(requests: list[Any]) -> None:
    """Does nothing."""
