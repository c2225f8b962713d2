"""What the server, or the way to it, may do to a call: nothing is lost, doubled or half-done."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from redis_batches import StoreError
from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.requests import Group, Outgoing, Pushed, Status
from redis_batches.core.settings import Settings
from redis_batches.core.triggers import Trigger
from redis_batches.driver.connection import connect
from redis_batches.testing.server import EmbeddedServer
from tests.support import raw
from tests.support.proxy import LossyProxy
from tests.support.state import State
from tests.support.waiting import wait_until

TRIGGER, GROUP = Trigger(3, 0), Group.of({"queue": "celery"})
SETTINGS = Settings(timeout=2, retries=3)


@pytest.fixture
def store(server: EmbeddedServer) -> Iterator[Store]:
    """A store with the connection that callers have."""
    client = connect(server.url, SETTINGS.timeout, SETTINGS.retries, deadline=3)
    yield Store(client, SETTINGS, "task")
    client.close()


def push(store: Store, *ids: str) -> Pushed:
    """Stores requests."""
    return store.push(GROUP, TRIGGER, [Outgoing(i, "", None, b"1\n[[],{}]") for i in ids])


def claim(store: Store) -> Lease:
    """Claims what is due."""
    lease = store.claim(GROUP.id, TRIGGER)
    assert isinstance(lease, Lease)
    return lease


def finish(lease: Lease) -> int:
    """Forgets all that a batch still has, as if each was told; returns how many that were."""
    return lease.ack([request.id for request in lease.requests], ends=True)


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[LossyProxy]:
    """A way to the server that loses replies."""
    made = LossyProxy(server.port)
    yield made
    made.close()


@pytest.fixture
def far(proxy: LossyProxy) -> Iterator[Store]:
    """A store behind the proxy."""
    client = connect(f"redis://127.0.0.1:{proxy.port}/0", SETTINGS.timeout, SETTINGS.retries)
    made = Store(client, SETTINGS, "task")
    # The server knows the scripts now: what the proxy eats is the reply to one that ran.
    push(made, "warm")
    finish(claim(made))
    yield made
    client.close()


@pytest.mark.parametrize("half", [False, True], ids=["lost", "half"])
def test_a_lost_reply_of_push_stores_one_request(
    store: Store, far: Store, proxy: LossyProxy, half: bool
) -> None:
    """The call is sent again; the second one finds the first."""
    proxy.half, proxy.eat = half, 1

    assert push(far, "a").statuses == (Status.AGAIN,)

    assert proxy.eaten == 1
    assert store.stats()["pushed"] == 2


def test_a_lost_reply_of_claim_gives_the_same_batch(
    store: Store, far: Store, proxy: LossyProxy
) -> None:
    """It is not claimed twice, and nobody waits for a lease."""
    push(far, "a", "b")
    proxy.eat = 1

    lease = claim(far)

    assert proxy.eaten == 1
    assert [request.id for request in lease.requests] == ["a", "b"]
    assert store.stats()["claimed"] == 2


def test_a_lost_reply_of_ack_is_no_error(store: Store, far: Store, proxy: LossyProxy) -> None:
    """The batch had ended already."""
    push(far, "a", "b")
    lease = claim(far)
    proxy.eat = 1

    assert finish(lease) == 0

    assert proxy.eaten == 1
    assert store.stats()["acked"] == 3
    assert store.stats()["running"] == 0


def test_an_unreachable_server_is_an_error_in_time(
    far: Store, proxy: LossyProxy, server: EmbeddedServer
) -> None:
    """As Celery's own, after a bounded number of tries."""
    push(far, "a")
    server.kill()
    before = time.monotonic()

    with pytest.raises(StoreError, match="could not be reached to push"):
        push(far, "b")
    assert time.monotonic() - before < 30


def test_flushed_scripts_are_loaded_again(store: Store, server: EmbeddedServer) -> None:
    """Nobody notices."""
    push(store, "a")
    raw.client(store).script_flush()

    assert push(store, "b").statuses == (Status.NEW,)


def test_a_killed_server_with_aof_has_everything(tmp_path: object) -> None:
    """`appendfsync always`: what was answered is there, and a claim goes on."""
    with EmbeddedServer(appendonly=True) as server:
        client = connect(server.url, SETTINGS.timeout, SETTINGS.retries)
        store = Store(client, SETTINGS, "task")
        push(store, "a", "b", "c", "d")
        lease = claim(store)

        server.kill()
        server.start()

        assert finish(lease) == 3
        assert store.stats()["waiting"] == 1
        assert claim(store).fence > lease.fence
        client.close()


def test_a_busy_server_is_waited_for(store: Store, server: EmbeddedServer) -> None:
    """Somebody's slow script is killed after a second; the call then succeeds."""
    push(store, "a")
    raw.client(store).config_set("lua-time-limit", "50")
    with redis.Redis.from_url(server.url) as other, redis.Redis.from_url(server.url) as admin:

        def block() -> None:
            with pytest.raises(redis.ResponseError):
                other.eval("while true do end", 0)

        blocker = threading.Thread(target=block)
        blocker.start()
        wait_until(lambda: _is_busy(admin), description="the server is busy")
        killer = threading.Timer(1, admin.script_kill)
        killer.start()

        assert push(store, "b").statuses == (Status.NEW,)
        killer.join()
        blocker.join()


def _is_busy(client: redis.Redis) -> bool:
    try:
        client.get("x")
    except redis.ResponseError as exc:
        return "BUSY" in str(exc)
    return False


def test_a_replica_is_waited_for_until_it_is_promoted(store: Store, server: EmbeddedServer) -> None:
    """READONLY passes in a failover; where it does not, the error says what to do."""
    push(store, "a")
    raw.client(store).replicaof("127.0.0.1", "1")
    promoted = threading.Timer(0.5, raw.client(store).replicaof, ("NO", "ONE"))
    promoted.start()

    assert push(store, "b").statuses == (Status.NEW,)
    promoted.join()

    raw.client(store).replicaof("127.0.0.1", "1")
    with pytest.raises(StoreError, match="point redis_batches_url to the primary"):
        push(store, "c")
    raw.client(store).replicaof("NO", "ONE")


def test_a_server_that_cannot_save_refuses_with_advice(
    store: Store, server: EmbeddedServer
) -> None:
    """MISCONF does not pass by itself, so it is not waited for."""
    client = raw.client(store)
    folder = Path(client.config_get("dir")["dir"])
    (folder / "dump.rdb").mkdir()
    client.config_set("save", "3600 1000000")
    client.bgsave()
    wait_until(
        lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err",
        description="the save fails",
    )

    with pytest.raises(StoreError, match="cannot save its data to disk"):
        push(store, "a")
    client.config_set("save", "")
    assert push(store, "a").statuses == (Status.NEW,)


def test_a_server_that_still_reads_its_data_is_waited_for() -> None:
    """LOADING passes by itself: the call is answered when the server is ready."""
    # It answers once after every 1,024 commands that it has read; a new client asks several times.
    slowly = {"key-load-delay": "100", "appendfsync": "no"}
    with EmbeddedServer(appendonly=True, config=slowly) as server:
        client = connect(server.url, SETTINGS.timeout, SETTINGS.retries, deadline=30)
        store = Store(client, SETTINGS, "task")
        push(store, "a")
        with client.pipeline(transaction=False) as pipe:
            for number in range(20_000):
                pipe.set(f"filler-{number}", "x")
            pipe.execute()
        server.kill()
        starter = threading.Thread(target=server.start)
        starter.start()
        wait_until(lambda: _is_loading(server.port), description="the server reads its data")

        assert push(store, "b").statuses == (Status.NEW,)

        starter.join()
        assert store.stats()["waiting"] == 2
        client.close()


def _is_loading(port: int) -> bool:
    # Not by a client, which may try again until it is over.
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(100).startswith(b"-LOADING")
    return False


def test_a_replica_that_lost_its_primary_is_named(server: EmbeddedServer) -> None:
    """MASTERDOWN is waited for, and then said."""
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("replica-serve-stale-data", "no")
        admin.replicaof("127.0.0.1", "1")
        client = connect(server.url, 1, 0, deadline=0.3)
        with pytest.raises(StoreError, match="a replica that lost its primary"):
            push(Store(client, SETTINGS, "task"), "a")
        client.close()


def test_too_few_replicas_refuse_a_push_whole(store: Store, server: EmbeddedServer) -> None:
    """NOREPLICAS does not pass by itself."""
    if raw.client(store).info("server")["redis_version"] < "7":
        pytest.skip("Redis 6.2 does not look at min-replicas-to-write when a script writes")
    raw.client(store).config_set("min-replicas-to-write", "1")

    with pytest.raises(StoreError, match="min-replicas-to-write"):
        push(store, "a")

    raw.client(store).config_set("min-replicas-to-write", "0")
    assert raw.client(store).dbsize() == 0


def test_a_cluster_without_all_slots_is_waited_for_and_named() -> None:
    """CLUSTERDOWN: asked through a plain connection, as behind a proxy."""
    with EmbeddedServer(config={"cluster-enabled": "yes"}) as server:
        client = connect(server.url, 1, 0, deadline=0.3)
        with pytest.raises(StoreError, match="a part of the cluster is missing"):
            push(Store(client, SETTINGS, "task"), "a")
        client.close()


@pytest.mark.parametrize("lost", [1, 7, 300])
def test_a_truncated_append_only_file_is_a_prefix_of_what_happened(lost: int) -> None:
    """Its end is lost, nothing before it; every request that is there still runs once."""
    with EmbeddedServer(appendonly=True, config={"aof-load-truncated": "yes"}) as server:
        client = connect(server.url, SETTINGS.timeout, SETTINGS.retries)
        store = Store(client, SETTINGS, "task")
        for number in range(20):
            push(store, f"id-{number:02}")
        finish(claim(store))
        lease = claim(store)
        folder = Path(client.config_get("dir")["dir"])
        server.kill()
        # Before Redis 7 there is one file, in no folder of its own.
        (log,) = [*folder.glob("**/*.incr.aof")] or [*folder.glob("*.aof")]
        with log.open("rb+") as file:
            file.truncate(log.stat().st_size - lost)
        server.start()

        state = State.read(client, raw.keys(store), [GROUP.id])
        state.check()
        ids = sorted(state.items)
        assert ids == [f"id-{number:02}" for number in range(20)][-len(ids) :]
        held = {request.id for request in lease.requests} & set(state.own)
        for token in state.leases:
            store.reclaim(token, GROUP.id, TRIGGER, seen_dead=True)
        ran: list[str] = []
        while isinstance(batch := store.claim(GROUP.id, TRIGGER), Lease):
            ran += [request.id for request in batch.requests]
            finish(batch)
        assert sorted(ran) == ids
        assert held <= set(ran)
        client.close()


def test_a_wrong_password_is_named(server: EmbeddedServer) -> None:
    """And not the password itself."""
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("requirepass", "right")
        url = server.url.replace("redis://", "redis://:wrong@")
        client = connect(url, 1, 0)

        with pytest.raises(StoreError, match="user name or password") as caught:
            push(Store(client, SETTINGS, "task"), "a")
        assert "wrong@" not in str(caught.value)
        client.close()
