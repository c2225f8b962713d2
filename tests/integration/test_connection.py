"""Scripts over connections that are not looked after: whatever happens, each gets its own reply."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import redis

from redis_batches.buffer.store import Store
from redis_batches.core.settings import Settings
from redis_batches.core.triggers import Trigger
from redis_batches.driver.client import Client, Packed, pack_script
from redis_batches.driver.connection import connect
from redis_batches.driver.pool import Pool
from redis_batches.operate.inspector import Inspector
from tests.support.waiting import wait_until

NAME = "under-test"


@pytest.fixture
def client(shared_url: str) -> Iterator[Client]:
    """A client that tries twice."""
    made = connect(f"{shared_url}?client_name={NAME}", 5, 1)
    assert isinstance(made, Client)
    yield made
    made.close()


@pytest.fixture
def ask(client: Client) -> Callable[[str], bytes]:
    """Lets a script return what was sent."""
    fixed = Packed((client.script_load("return ARGV[1]"), 0))

    def ask(text: str) -> bytes:
        reply: bytes = client.patiently(lambda: client.run_packed(fixed, [text]))
        return reply

    return ask


@pytest.fixture
def numbers(shared_url: str) -> Iterator[Callable[[], set[str]]]:
    """Returns the numbers of the client's connections."""
    with redis.Redis.from_url(shared_url) as other:

        def numbers() -> set[str]:
            return {each["id"] for each in other.client_list() if each["name"] == NAME}

        yield numbers


def test_a_script_packed_before_is_what_redis_py_would_send() -> None:
    """Byte for byte, whatever the types."""
    fixed, rest = ("f" * 40, 2, "key é", b"key", 0, ""), ("id", "", 12, b"\x00" * 7000)

    theirs = redis.Connection().pack_command("EVALSHA", *fixed, *rest)

    assert pack_script(Packed(fixed), rest) == b"".join(theirs)


def test_a_connection_that_was_just_closed_is_made_anew(
    ask: Callable[[str], bytes], numbers: Callable[[], set[str]], shared_url: str
) -> None:
    """It is not asked whether it is alive, but a retry finds another."""
    ask("a")
    before = numbers()
    with redis.Redis.from_url(shared_url) as other:
        for number in before:
            other.client_kill_filter(_id=number)

    assert ask("b") == b"b"
    assert numbers().isdisjoint(before)


def test_a_script_after_the_pool_was_closed(ask: Callable[[str], bytes], client: Client) -> None:
    """As after a failover."""
    ask("a")
    client.connection_pool.disconnect()
    assert ask("b") == b"b"


@pytest.mark.parametrize("method", ["send_packed_command", "read_response"])
@pytest.mark.parametrize("exc", [KeyboardInterrupt, ValueError])
def test_an_interrupted_script_leaves_no_reply_for_the_next(
    ask: Callable[[str], bytes],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    exc: type[BaseException],
) -> None:
    """A signal's exception comes at any moment, as a soft time limit's does in a worker."""
    ask("a")
    plain = getattr(redis.Connection, method)

    def interrupted(connection: redis.Connection, *args: Any, **options: Any) -> None:
        if method == "send_packed_command":
            plain(connection, *args, **options)
        raise exc

    with monkeypatch.context() as patch:
        patch.setattr(redis.Connection, method, interrupted)
        with pytest.raises(exc):
            ask("b")
    assert ask("c") == b"c"


def test_an_interrupted_command_leaves_no_reply_for_the_next_script(
    ask: Callable[[str], bytes], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-py looks itself whether something is unread."""
    ask("a")

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(redis.Connection, "read_response", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.ping()
    assert ask("b") == b"b"
    assert client.ping()


def test_a_connection_is_kept_after_an_error_of_the_script(
    ask: Callable[[str], bytes], client: Client, numbers: Callable[[], set[str]]
) -> None:
    """Its reply was read."""
    fixed = Packed((client.script_load("return {err = 'odd'}"), 0))
    ask("a")
    before = numbers()

    with pytest.raises(redis.ResponseError, match="odd"):
        client.run_packed(fixed, [])
    assert ask("b") == b"b"
    assert numbers() == before


@pytest.mark.skipif(
    not hasattr(redis.Connection, "mark_for_reconnect"), reason="redis-py 5 never moves"
)
def test_a_connection_that_shall_move_is_made_anew(
    ask: Callable[[str], bytes], client: Client, numbers: Callable[[], set[str]]
) -> None:
    """Managed servers announce that they will go."""
    ask("a")
    before, pool = numbers(), cast(Pool, client.connection_pool)
    connection = pool.take()
    connection.mark_for_reconnect()
    pool.keep(connection, answered=True)

    assert ask("b") == b"b"
    assert numbers() != before


def test_a_child_has_connections_of_its_own(
    client: Client, numbers: Callable[[], set[str]], namespace: str
) -> None:
    """An inspector that was made before a fork: two processes on one socket mix up replies."""
    store = Store(client, Settings(namespace=namespace), "task")
    inspector = Inspector(store, Trigger(2, 0), "{}", lambda bells: None)
    assert inspector.drop("a") == 0
    before = numbers()
    (done, told), (gate, opened) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(told, b"%d" % inspector.drop("b"))
            os.read(gate, 1)
        finally:
            os._exit(0)

    try:
        os.close(told)
        assert os.read(done, 1) == b"0"
        assert inspector.drop("c") == 0
        assert len(numbers()) == len(before) + 1
    finally:
        os.write(opened, b"x")
        wait_until(lambda: os.waitpid(child, os.WNOHANG)[0] == child, description="the child ended")
        for end in (done, gate, opened):
            os.close(end)


def test_a_connection_of_another_thread_outlives_a_loss(
    ask: Callable[[str], bytes], client: Client
) -> None:
    """Only what nobody uses is closed when one connection is lost."""
    ask("a")
    pool = cast(Pool, client.connection_pool)
    used = pool.take()
    pool.forget_idle()

    assert used._sock
    pool.keep(used, answered=True)
    assert ask("b") == b"b"
    assert client.connection_pool is pool


def test_a_server_that_became_a_replica_is_not_asked_by_the_same_connection(
    ask: Callable[[str], bytes], client: Client, numbers: Callable[[], set[str]]
) -> None:
    """After a failover its name stands for another server, which only a new connection finds."""
    ask("a")
    before, asked = numbers(), list[str]()

    def refused_once() -> bytes:
        asked.append("")
        if len(asked) == 1:
            raise redis.exceptions.ReadOnlyError("You can't write against a read only replica.")
        return ask("b")

    assert client.patiently(refused_once) == b"b"
    wait_until(lambda: not before & numbers(), description="the old connection is closed")
