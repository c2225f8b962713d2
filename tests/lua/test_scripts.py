"""How scripts reach the server, and what becomes of its refusals."""

from __future__ import annotations

import re

import pytest
import redis

from redis_batches.buffer.store import Store
from redis_batches.core.errors import ScriptReplyError, StoreError
from redis_batches.core.settings import Settings
from redis_batches.driver.scripts import Script, load_scripts
from redis_batches.driver.sources import libraries_of, load_sources
from redis_batches.testing.server import EmbeddedServer
from tests.support import raw, steps
from tests.support.stage import Stage

#: What an ACL must allow for the scripts.
COMMANDS = {
    *("DEL", "TIME"),
    *("HDEL", "HEXISTS", "HGET", "HINCRBY", "HLEN", "HMGET", "HSET", "HSETNX", "HSTRLEN"),
    *("LINDEX", "LLEN", "LPUSH", "LRANGE", "LSET", "LTRIM", "RPUSH"),
    *(
        "ZADD",
        "ZCARD",
        "ZRANGE",
        "ZRANGEBYSCORE",
        "ZREM",
        "ZREMRANGEBYRANK",
        "ZREVRANGEBYSCORE",
        "ZSCORE",
    ),
}


def test_a_server_that_lost_its_scripts_gets_them_again(store: Store) -> None:
    """SCRIPT FLUSH, a restart or a failover: nobody notices."""
    steps.push(store, *"abc")
    raw.client(store).script_flush()
    lease = steps.claim(store)
    raw.client(store).script_flush()

    assert steps.ack_all(lease) == 3


def test_a_value_that_no_script_takes_is_an_error(store: Store) -> None:
    """Before anything is sent."""
    with pytest.raises(TypeError, match=r"extend\.lua takes no flush_every"):
        raw.run(store, "extend", token="token", fence=1, lease_ms=steps.LEASE_MS, flush_every=3)


def test_a_value_that_is_missing_is_an_error(store: Store) -> None:
    """It cannot shift the others by a slot."""
    with pytest.raises(KeyError, match="lease_ms"):
        raw.run(store, "extend", token="token", fence=1)


@pytest.mark.parametrize("reply", ["1", "{}", "{1}", "'text'"])
def test_a_reply_that_no_script_gives_is_an_error(store: Store, reply: str) -> None:
    """It may be another command's."""
    odd = Script("odd", f"return {reply}")

    with pytest.raises(ScriptReplyError, match="which no script does"):
        odd(raw.client(store), raw.keys(store))


@pytest.mark.parametrize(
    "reply", ["'pushed 0 1'", "'pushed 0 1 new new'", "'pushed', 0, '1', 'new'"]
)
def test_a_push_says_what_became_of_each_request(
    store: Store, monkeypatch: pytest.MonkeyPatch, reply: str
) -> None:
    """A reply that says it of fewer or more is not believed."""
    head = load_sources()["push"].partition("\n\n")[0]
    odd = Script("push", f"{head}\nreturn {{{reply}}}")
    monkeypatch.setattr("redis_batches.driver.executor.load_scripts", lambda: {"push": odd})

    with pytest.raises(ScriptReplyError, match="push answered"):
        steps.push(Store(raw.client(store), store.settings, store.task), "a")


def now_ms(client: redis.Redis) -> int:
    """Returns the server's time."""
    seconds, microseconds = client.time()
    return int(seconds * 1000 + microseconds // 1000)


def test_a_script_uses_the_servers_time(client: redis.Redis, namespace: str) -> None:
    """To the millisecond, unless a test brings its own."""
    store = Store(client, Settings(namespace=namespace), "shop.click")
    before_ms = now_ms(client)
    steps.push(store, "a")
    after_ms = now_ms(client)

    (request,) = steps.claim(store, force=True).requests
    assert before_ms <= request.since_ms <= after_ms


def test_a_server_that_is_gone_is_an_error(namespace: str) -> None:
    """That says what could not be done."""
    with EmbeddedServer() as server:
        client = redis.Redis.from_url(server.url)
    store = Store(client, Settings(namespace=namespace), "shop.click")

    with pytest.raises(StoreError, match="push"):
        steps.push(store, "a")
    client.close()


def test_too_much_at_once_changes_nothing(store: Store) -> None:
    """The script fails before its first write."""
    with pytest.raises(StoreError, match="unpack"):
        steps.push(store, *map(str, range(3000)))
    assert store.stats()["pushed"] == 0


def test_tasks_and_namespaces_are_apart(store: Store) -> None:
    """The same id in each of them is another request."""
    steps.push(store, *"abc")
    other = Store(raw.client(store), store.settings, "shop.view")
    steps.push(other, *"abc")
    steps.ack_all(steps.claim(other))

    assert steps.place(store, "a") == "pending"
    assert steps.ids_of(steps.claim(store)) == ["a", "b", "c"]


def test_the_scripts_use_these_commands_and_no_others() -> None:
    """KEYS and SCAN are not among them."""
    used = set()
    for source in load_sources().values():
        used |= set(re.findall(r"(?:redis\.call|call_many)\('(\w+)'", source))
    assert used == COMMANDS


@pytest.mark.parametrize("script", sorted(load_scripts()))
def test_a_user_who_may_do_no_more_can_run_them(
    stage: Stage, shared_url: str, namespace: str, script: str
) -> None:
    """On the keys of this project."""
    commands = ["+eval", "+evalsha", "+hello", *(f"+{command.lower()}" for command in COMMANDS)]
    raw.client(stage.store).acl_setuser(
        namespace, enabled=True, passwords=["+secret"], keys=["rb:{*}:*"], commands=commands
    )
    before = stage.dump()
    with redis.Redis.from_url(shared_url, username=namespace, password="secret") as client:
        stage.run(script, client)
    raw.client(stage.store).acl_deluser(namespace)

    assert stage.dump() != before


def test_every_library_is_used() -> None:
    """By a script; nothing else lies in the folder."""
    sources = load_sources()
    used = {
        f"lib/{library}"
        for name in load_scripts()
        for library in libraries_of(sources[name], sources)
    }
    assert sources.keys() - load_scripts().keys() == used
