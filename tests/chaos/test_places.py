"""What is done to a server really happens to it, and is over when it is healed."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, OutOfMemoryError, ReadOnlyError
from redis.retry import Retry

from redis_batches.testing.server import HOST
from tests.chaos.places import Blow, Place, Store, crash, cut, hole, oom, readonly, slow
from tests.support.waiting import wait_until


@pytest.fixture
def place() -> Iterator[Place]:
    """A server behind a link."""
    found = Place("backend")
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture
def store() -> Iterator[Store]:
    """A server behind a link, and its replica."""
    found = Store()
    try:
        found.start()
        wait_until(found.is_in_step, description="the replica has everything")
        yield found
    finally:
        found.stop()


def caller(place: Place) -> Any:
    """A client that takes the link, and tries once."""
    return redis.Redis.from_url(place.url, retry=Retry(NoBackoff(), 0))


def struck(place: Place, blip: Callable[..., None], dice: random.Random | None = None) -> Blow:
    """A fault that has begun, and does not end by itself."""
    blow = Blow(blip.__name__, 0.0)
    blip(place, dice or random.Random(1), blow)
    return blow


@pytest.mark.parametrize(
    ("blip", "error"),
    [
        (crash, ConnectionError),
        (cut, ConnectionError),
        (oom, OutOfMemoryError),
        (readonly, ReadOnlyError),
    ],
)
def test_a_blip_is_an_error_until_it_is_healed(
    place: Place, blip: Callable[..., None], error: type[Exception]
) -> None:
    """What was stored is there again, and the blip says how often it hit."""
    client = caller(place)
    client.set("before", 1)

    blow = struck(place, blip)
    with pytest.raises(error):
        client.set("during", 1)
    with pytest.raises(error):
        caller(place).set("during", 1)
    place.heal()

    assert blow.hits
    assert client.mget("before", "during") == [b"1", None]
    assert client.set("after", 1)


class Fixed(random.Random):
    """Answers a question whether something is less likely than half with yes or no."""

    def __init__(self, *answers: bool) -> None:
        super().__init__(1)
        self._answers = [0.0 if answer else 1.0 for answer in answers]

    def random(self) -> float:
        """Returns the next answer."""
        return self._answers.pop(0)

    def choice(self, seq: Any) -> Any:
        """Returns the last one: nothing ends by itself meanwhile."""
        return seq[-1]


def asked(place: Place) -> socket.socket:
    """A connection that has sent a command, whose reply nobody has read."""
    found = socket.create_connection((HOST, place.link.port))
    found.sendall(b"SET late 1\r\n")
    wait_until(lambda: place.link.waiting() == 1, description="the command is on its way")
    return found


@pytest.mark.parametrize("requests", [True, False])
def test_a_hole_delays_requests_or_replies(place: Place, requests: bool) -> None:
    """With replies alone the server does what its client does not hear of."""
    blow = struck(place, hole, Fixed(requests, False))

    with asked(place) as connection:
        if not requests:
            wait_until(lambda: place.client.get("late") == b"1", description="it is done")
        assert place.client.get("late") == (None if requests else b"1")
        place.heal()
        assert connection.recv(100) == b"+OK\r\n"
    assert place.client.get("late") == b"1"
    assert blow.hits == 1


def test_a_hole_may_swallow_what_it_held(place: Place) -> None:
    """Its clients' connections end, and the server never hears of the command."""
    struck(place, hole, Fixed(True, True))

    with asked(place) as connection:
        place.heal()
        with pytest.raises(ConnectionResetError):
            connection.recv(100)
    assert caller(place).get("late") is None


def test_a_slow_server_answers_when_it_is_healed(place: Place) -> None:
    """Writes wait, reads do not."""
    blow = struck(place, slow)

    with asked(place) as connection:
        assert caller(place).get("late") is None
        place.heal()
        assert connection.recv(100) == b"+OK\r\n"
    assert blow.hits == 1


def test_a_promotion_loses_the_newest_writes_alone(store: Store) -> None:
    """Clients find the new primary where the old one was, and it has a replica again."""
    client = caller(store)
    client.set("old", 1)
    client.wait(1, 5000)

    store.replication.hold()
    client.set("new", 1)
    blow = Blow("store_promotion", 0.0)
    store.strike(blow, 0.0, partial(store.promote, blow))
    store.tick()

    assert blow.hits > 0
    assert caller(store).mget("old", "new") == [b"1", None]
    wait_until(store.is_in_step, description="the old primary follows the new one")
    caller(store).set("newer", 1)
    assert caller(store).wait(1, 5000) == 1
