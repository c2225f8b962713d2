"""Doorbells are published on connections that are dropped as soon as anything is odd."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from redis_batches.app.publisher import PATIENCE, Publisher
from redis_batches.core.errors import Unanswered


class Line:
    """Sends, or fails as a test says, and notes with which producer."""

    def __init__(self) -> None:
        self.used: list[Any] = []
        self.errors: list[BaseException | None] = []
        self.now = 0.0
        self.takes = 0.0

    def clock(self) -> float:
        """Returns the time in seconds."""
        return self.now

    def __call__(self, producer: Any) -> None:
        """Sends."""
        self.used.append(producer)
        self.now += self.takes
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error


@pytest.fixture
def line() -> Line:
    """What sends."""
    return Line()


@pytest.fixture
def publisher(app: Celery, line: Line) -> Publisher:
    """A publisher that has a connection."""
    made = Publisher(app, line.clock)
    made.publish(line)
    return made


def test_a_connection_is_used_again(publisher: Publisher, line: Line) -> None:
    """While all is well."""
    publisher.publish(line)
    assert len(set(map(id, line.used))) == 1


def test_a_lost_connection_is_replaced_at_once(publisher: Publisher, line: Line) -> None:
    """Once: the message is sent again on a fresh one, which is kept."""
    line.errors = [ConnectionResetError("lost")]
    publisher.publish(line)
    publisher.publish(line)

    first, second, third, fourth = line.used
    assert first is second is not third is fourth


def test_a_fresh_connection_that_fails_is_not_replaced(publisher: Publisher, line: Line) -> None:
    """The broker is down."""
    line.errors = [ConnectionResetError("lost"), ConnectionResetError("again")]
    with pytest.raises(ConnectionResetError, match="again"):
        publisher.publish(line)
    assert len(line.used) == 3


@pytest.mark.parametrize("exc", [KeyboardInterrupt(), ValueError("odd")], ids=repr)
def test_an_interrupted_message_leaves_no_connection(
    publisher: Publisher, line: Line, exc: BaseException
) -> None:
    """Its answer would be read as that of the next message."""
    line.errors = [exc]
    with pytest.raises(type(exc)):
        publisher.publish(line)
    publisher.publish(line)

    assert line.used[1] is not line.used[2]


def test_a_broker_that_did_not_answer_is_left_alone(publisher: Publisher, line: Line) -> None:
    """For some seconds, in which nobody waits for it."""
    line.errors, line.takes = [TimeoutError("no answer")] * 2, PATIENCE
    with pytest.raises(TimeoutError):
        publisher.publish(line)
    with pytest.raises(Unanswered, match="the broker did not answer"):
        publisher.publish(line)
    assert len(line.used) == 3
    line.now, line.takes = line.now + 5, 0.0
    publisher.publish(line)
    publisher.publish(line)

    assert len(line.used) == 5


def test_a_connection_of_redis_waits_for_no_answer_without_end(app: Celery) -> None:
    """Also if the app's own connections do; one that waits for less stays so."""
    app.conf.broker_url = "redis://127.0.0.1:1/0"
    app.conf.broker_transport_options = {"socket_timeout": 1, "priority_steps": [0, 5]}
    seen: list[Any] = []

    def refuse(connection: Any, *_: Any, **__: Any) -> None:
        seen.append((connection.connect_timeout, connection.transport_options))
        raise ConnectionRefusedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kombu.Connection.ensure_connection", refuse)
        with pytest.raises(ConnectionRefusedError):
            Publisher(app).publish(lambda _: None)

    expected = {"socket_timeout": 1, "socket_connect_timeout": PATIENCE, "priority_steps": [0, 5]}
    assert seen == [(PATIENCE, expected)]
