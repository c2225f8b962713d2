"""The documented rights are enough for everything, and none of them is too many."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import redis

from redis_batches.buffer.lease import Lease
from redis_batches.buffer.registry import Registry
from redis_batches.buffer.store import Store
from redis_batches.core.outcomes import Outcome, Verb
from redis_batches.core.requests import Group, Outgoing
from redis_batches.core.settings import Settings
from redis_batches.core.triggers import Trigger
from redis_batches.driver.connection import connect
from redis_batches.driver.sources import load_sources
from redis_batches.operate.inspector import Inspector
from tests.support.acl import rights
from tests.support.steps import ack_all

#: What redis-py sends by itself, and what is called outside scripts.
CLIENT = {"evalsha", "eval", "ping", "hello", "auth", "select", "client|setinfo", "client|setname"}
OUTSIDE = {"hget", "hset", "hgetall", "hlen", "zcard", "llen", "hmget", "zrange", "lrange"}


#: What redis-py sends to a cluster, and `redis_batches_wait_replicas`.
ELSEWHERE = {"cluster|slots", "command", "asking", "wait"}


@pytest.fixture
def limited(shared_url: str, namespace: str) -> Iterator[redis.Redis]:
    """A connection of a user with the documented rights."""
    with redis.Redis.from_url(shared_url) as admin:
        words = rights(namespace, slice(2))
        if float(".".join(admin.info("server")["redis_version"].split(".")[:2])) < 7.2:
            words.remove("+client|setinfo")
        admin.execute_command("ACL", "SETUSER", "rb-app", *words)
        client = connect(shared_url.replace("redis://", "redis://rb-app:secret@"), 5, 0)
        yield client
        client.close()
        admin.execute_command("ACL", "DELUSER", "rb-app")


def test_the_rights_are_those_that_are_used() -> None:
    """Each command of a script or of a client is allowed, and no other."""
    called = set()
    for source in load_sources().values():
        called |= set(re.findall(r"(?:redis\.call|call_many)\(\s*'([A-Z]+)'", source))

    allowed = {word[1:] for word in rights() if word.startswith("+")}
    assert allowed == {command.lower() for command in called} | CLIENT | OUTSIDE | ELSEWHERE


def test_everything_works_with_the_documented_rights(limited: redis.Redis, namespace: str) -> None:
    """Through every script."""
    store = Store(limited, Settings(namespace=namespace), "task")
    trigger, group = Trigger(2, 0), Group.of({"queue": "q"})
    inspector = Inspector(store, trigger, lambda _: [group.route], lambda bells: None)
    ids = ["a", "b", "c", "d"]
    store.push(group, trigger, [Outgoing(task_id, "", None, b"1\n[[],{}]") for task_id in ids])
    store.push(group, trigger, [Outgoing("later", "", 1, b"1\n[[],{}]")])

    lease = store.claim(group.id, trigger, bell="bell")
    assert isinstance(lease, Lease)
    assert lease.extend()
    lease.release([Outcome("a", Verb.DEAD, error="e"), Outcome("b", Verb.RETRY, 1)])
    ack_all(lease, well=True)
    lost = store.claim(group.id, trigger)
    assert isinstance(lost, Lease)
    store.reclaim(lost.token, group.id, trigger, seen_dead=True)
    swept = store.sweep(Trigger(3, 1000), sweeper="me", ring_again=True)
    assert swept is not None
    for name, members in swept.ready:
        store.promote(name, members, trigger)

    store.push(group, trigger, [Outgoing("revoked", "n", None, b"1\n[[],{}]")])
    cancelled, _ = store.cancel(group.id, ["revoked"], trigger)
    assert cancelled is not None
    ack_all(cancelled)

    assert [letter.id for letter in inspector.list()] == ["a"]
    assert inspector.requeue(["a"]) == 1
    assert inspector.drop(["a"]) == 0
    assert store.stats()["pushed"] == 6
    assert store.groups()
    assert store.waiting(group.id)
    inspector.check_ledger()
    registry = Registry(limited, namespace)
    registry.write({"task": Trigger(10, 1000)})
    assert registry.read() == {"task": Trigger(10, 1000)}
    assert registry.may_send()
    registry.answered()


def test_a_command_that_is_not_allowed_is_an_error_of_ours(
    limited: redis.Redis, namespace: str
) -> None:
    """Which names the missing right."""
    from redis_batches import StoreError

    store = Store(limited, Settings(namespace=namespace), "task")
    inspector = Inspector(store, Trigger(2, 0), lambda _: [], lambda bells: None)

    with pytest.raises(StoreError, match="hscan"):
        inspector.repair()


@pytest.mark.parametrize("other", ["{0}2", "other", "other/{0}", "{0}}}:x"])
def test_another_namespace_is_out_of_reach(
    limited: redis.Redis, namespace: str, other: str
) -> None:
    """Also one whose name begins with the same letters."""
    from redis_batches import StoreError

    name = other.format(namespace)
    with pytest.raises(StoreError, match="the ACL of this user lacks a right"):
        Store(limited, Settings(namespace=name), "task").groups()
    with pytest.raises(StoreError, match="the ACL of this user lacks a right"):
        Registry(limited, name).read()
