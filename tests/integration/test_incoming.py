"""Calls that programs without this package send to the queue, with Redis and RabbitMQ as broker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery, chain, chord, signature
from celery.exceptions import TaskRevokedError
from kombu import Connection, Exchange, Queue

from redis_batches import Batches, SimpleRequest
from redis_batches.buffer.store import Store
from redis_batches.core.settings import Settings
from redis_batches.testing.server import EmbeddedServer
from tests.support.ledger import ledger
from tests.support.processes import Cluster, wait_until_they_listen
from tests.support.waiting import wait_until

APP = "tests.integration.apps.incoming"
DOUBLE, FULL, TELL = f"{APP}.double", f"{APP}.full", f"{APP}.tell"
ADD, TOTAL, ECHO = f"{APP}.add", f"{APP}.total", f"{APP}.echo"


@pytest.fixture
def sender(cluster: Cluster, broker: str) -> Iterator[Celery]:
    """An app that knows the tasks by name only."""
    made = Celery(
        "sender", broker=broker, backend=cluster.env["TEST_BACKEND"], set_as_current=False
    )
    yield made
    forget(made)


def forget(app: Celery) -> None:
    """Closes an app's connections; else each of its results asks a dead server at its end."""
    consumer: Any = app.backend.result_consumer
    consumer.stop()
    consumer._pubsub = None
    app.backend.client.connection_pool.disconnect()
    app.close()


@pytest.fixture
def store_of(cluster: Cluster, broker: str) -> Iterator[Callable[[str], Store]]:
    """Returns the store of a task by its name."""
    url = cluster.env.get("TEST_STORE", broker)
    with redis.Redis.from_url(url) as client:
        yield lambda task: Store(client, Settings(), task)
        client.connection_pool.disconnect()


def is_empty(broker: str, queue: str = "celery") -> bool:
    """Whether no message waits in a queue, delivered or not."""
    with Connection(broker) as connection:
        channel = connection.default_channel
        if connection.transport.driver_type == "redis":
            unacked = channel.client.hlen("unacked")
            return not channel.client.llen(queue) and not unacked
        # A queue without a consumer has back what its last consumer did not acknowledge.
        return channel.queue_declare(queue, passive=True).message_count == 0


def publish(broker: str, *message: Any, **properties: Any) -> None:
    """Sends what a program in another language may send; see `publish_on`."""
    with Connection(broker) as connection:
        publish_on(connection, *message, **properties)


def publish_on(
    connection: Any, body: Any, headers: dict[str, Any], queue: str = "celery", **properties: Any
) -> None:
    """Sends a message over an open connection."""
    producer = connection.Producer(auto_declare=False)
    options = {"content_type": "application/json", "content_encoding": "utf-8", **properties}
    producer.publish(body, routing_key=queue, declare=[Queue(queue)], headers=headers, **options)


def call(task: str, *args: Any, **headers: Any) -> tuple[str, dict[str, Any]]:
    """Returns the body and the headers of a call with as few headers as the protocol has."""
    body = json.dumps([args, {}, None])
    return body, {"task": task, "id": str(uuid4()), "lang": "go", **headers}


def arguments() -> list[Any]:
    """Returns the first argument of each request that ran."""
    return [args[0] for run in ledger() for args in run["args"]]


def test_calls_by_name_share_batches_with_direct_calls(
    cluster: Cluster, broker: str, sender: Celery
) -> None:
    """Each caller gets its own result, and one batch holds both kinds of calls."""
    cluster.worker()
    settings = cluster.env.get("TEST_STORE", broker)
    direct = Celery("direct", broker=broker, backend=cluster.env["TEST_BACKEND"])
    direct.conf.redis_batches_url = settings

    @direct.task(base=Batches, flush_every=10, flush_interval=3600, name=FULL, shared=False)
    def full(requests: list[SimpleRequest]) -> None:
        """Is called only."""

    results = [full.delay(number) for number in range(5)]
    results += [sender.send_task(FULL, (number,)) for number in range(5, 10)]

    assert [result.get(timeout=20) for result in results] == [2 * n for n in range(10)]
    assert [len(run["ids"]) for run in ledger()] == [10]
    wait_until(lambda: is_empty(broker), description="all acknowledged")
    forget(direct)


def test_calls_of_protocol_1_join_batches(cluster: Cluster, sender: Celery) -> None:
    """With their callbacks."""
    sender.conf.task_protocol = 1
    cluster.worker()

    results = [
        sender.send_task(DOUBLE, (n,), link=signature(ADD, (1,), app=sender)) for n in range(10)
    ]

    assert [result.get(timeout=20) for result in results] == [2 * n for n in range(10)]
    assert [len(run["ids"]) for run in ledger()] == [10]
    added = [wait_until(lambda r=r: r.children, description="a child")[0] for r in results]
    assert [child.get(timeout=20) for child in added] == [2 * n + 1 for n in range(10)]


def test_a_call_keeps_what_its_message_says(cluster: Cluster, broker: str, sender: Celery) -> None:
    """Headers, priority, compression; and what another program chose: a reply queue and its id."""
    cluster.worker()

    sent = sender.send_task(
        TELL, (1,), {"a": 2}, headers={"shop": "x"}, priority=3, compression="gzip"
    )
    seen = sent.get(timeout=20)

    assert (seen["args"], seen["kwargs"], seen["priority"]) == ([1], {"a": 2}, 3)
    assert seen["headers"]["shop"] == "x"
    assert seen["headers"]["compression"] is None
    assert seen["correlation_id"] == sent.id

    body, headers = call(TELL, 1, retries=None, expires="2100-01-01T00:00:00Z")
    chosen = {"correlation_id": "mine", "reply_to": "there", "app_id": "their"}
    publish(broker, body, headers, **chosen, content_encoding=None)
    seen = sender.AsyncResult(headers["id"]).get(timeout=20)
    assert {name: seen[name] for name in chosen} == chosen
    assert seen["headers"]["retries"] == 0


def test_time_limits_of_a_message_do_not_hold(
    cluster: Cluster, broker: str, sender: Celery
) -> None:
    """Other calls are in its batch."""
    cluster.worker()
    body, headers = call(TELL, "slowly", timelimit=[1, 0.5])
    publish(broker, body, headers)

    assert sender.AsyncResult(headers["id"]).get(timeout=20)["args"] == ["slowly"]
    assert arguments() == ["slowly"]


def test_chains_links_and_chords_of_names_go_on(cluster: Cluster, sender: Celery) -> None:
    """A batch task may be any step."""
    cluster.worker()

    def step(name: str, *args: Any) -> Any:
        return signature(name, args, app=sender)

    steps = chain(step(DOUBLE, 2), step(ADD, 1), step(DOUBLE), app=sender).apply_async()
    header = [step(DOUBLE, number) for number in range(4)]
    both = chord(header, app=sender)(step(TOTAL))

    assert steps.get(timeout=30) == 10
    assert both.get(timeout=30) == 12


def test_a_countdown_waits_in_redis(
    cluster: Cluster, broker: str, sender: Celery, store_of: Callable[[str], Store]
) -> None:
    """The message is acknowledged at once; the call does not run before its time."""
    worker = cluster.worker()

    sent = time.time()
    result = sender.send_task(TELL, (1,), countdown=1.5)
    assert result.get(timeout=20)["now"] >= sent + 1.5

    sender.send_task(TELL, (2,), countdown=3600)
    store = store_of(TELL)
    wait_until(lambda: store.stats()["delayed"] == 1, description="it waits in Redis")
    worker.stop()
    assert is_empty(broker)


def test_a_message_that_is_delivered_again_runs_once(
    cluster: Cluster, broker: str, sender: Celery, store_of: Callable[[str], Store]
) -> None:
    """The worker stored it and died before its acknowledgement, while another one ran it."""
    first = cluster.worker(TEST_STOP_BEFORE_ACK="1")
    result = sender.send_task(DOUBLE, (1,))
    wait_until((cluster.folder / "stopped").exists, description="it is stored")

    second = cluster.worker()
    assert result.get(timeout=20) == 2
    first.kill()
    deliver_again(broker)

    second.wait_for(f"{DOUBLE}[{result.id}] received")
    store = store_of(DOUBLE)
    after = sender.send_task(DOUBLE, (2,))
    assert after.get(timeout=20) == 4
    assert arguments() == [1, 2]
    assert store.stats()["pushed"] == 2
    assert "another call with this id" not in second.output()
    second.stop()
    assert is_empty(broker)


def deliver_again(broker: str) -> None:
    """Does what the Redis broker does when its visibility timeout is over."""
    with Connection(broker, transport_options={"visibility_timeout": 0}) as connection:
        if connection.transport.driver_type == "redis":
            connection.default_channel.qos.restore_visible(num=None)


def test_an_id_that_waits_is_kept(cluster: Cluster, broker: str, sender: Celery) -> None:
    """A second call with it is acknowledged, and the log says so."""
    worker = cluster.worker()
    sender.send_task(FULL, (1,), task_id="same")
    sender.send_task(FULL, (2,), task_id="same")
    worker.wait_for("another call with this id waits or runs")

    results = [sender.send_task(FULL, (n,)) for n in range(9)]
    assert [result.get(timeout=20) for result in results] == [2 * n for n in range(9)]
    assert arguments() == [1, *range(9)]
    worker.stop()
    assert is_empty(broker)


def test_an_id_that_ran_may_be_called_again(
    cluster: Cluster, sender: Celery, store_of: Callable[[str], Store]
) -> None:
    """Also with the same arguments at once: it is no message that was delivered twice."""
    cluster.worker()
    store = store_of(DOUBLE)
    for count in (1, 2, 3):
        publish_again = call(DOUBLE, 5)
        publish(str(sender.conf.broker_url), publish_again[0], {**publish_again[1], "id": "same"})
        wait_until(lambda c=count: store.stats()["acked"] == c, description="it ran")

    assert arguments() == [5, 5, 5]


def test_revoked_and_expired_calls_do_not_run(
    cluster: Cluster, broker: str, sender: Celery
) -> None:
    """They show it, and their messages are acknowledged."""
    worker = cluster.worker()
    wait_until_they_listen(sender, 1)
    sender.control.revoke("unwanted")
    worker.wait_for("unwanted")
    past = (datetime.now(timezone.utc) - timedelta(minutes=1)).isoformat()
    for headers in {"id": "unwanted"}, {"id": "late", "expires": past}:
        publish(broker, *call(DOUBLE, 1, **headers))

    for task_id in ("unwanted", "late"):
        with pytest.raises(TaskRevokedError):
            sender.AsyncResult(task_id).get(timeout=20)
    assert sender.send_task(DOUBLE, (2,)).get(timeout=20) == 4
    assert arguments() == [2]
    worker.stop()
    assert is_empty(broker)


def test_a_message_that_is_no_call_is_rejected(
    cluster: Cluster, broker: str, sender: Celery
) -> None:
    """It is logged and gone, and the worker goes on."""
    worker = cluster.worker()
    good, headers = call(DOUBLE, 1)
    for body in ("not JSON", "[]", "null", "5", '"args"', "[1, 2, 3]", "[[], []]", "[[], {}, 7]"):
        publish(broker, body, headers)
    for wrong in {"id": None}, {"id": 7}, {"eta": "soon"}, {"expires": 5}:
        publish(broker, good, {**headers, **wrong})
    publish(broker, good, {"task": DOUBLE})
    publish(broker, b"\x80\x04N.", headers, content_type="application/x-python-serialize")

    assert sender.send_task(DOUBLE, (2,)).get(timeout=20) == 4

    assert arguments() == [2]
    assert worker.output().count("Received and deleted") == 0
    worker.stop()
    assert is_empty(broker)


#: One of every JSON type, and the odder ones of some.
ODD: list[Any] = [
    *(5, -1, 1.5, True, 2**62, "", "x", "a\nb", "x" * 1000, [], [1], [[]], {}, {"a": 1}),
    *([{"task": 5}], {"task": "x"}, [{"task": "x", "args": 5}]),
]
#: What is no marker of a doorbell.
MARKERS: list[Any] = [
    *(*ODD, "garbage", {"group": 5}, {"group": "x"}, {"group": "x" * 5000, "rung_ms": 1}),
    *({"group": "x", "rung_ms": value} for value in ("1", 1.5, True, -1, None, [])),
    *({"group": value, "rung_ms": 1} for value in (None, 5, [], {}, "", "a|b", "a\nb")),
    *({"group": "x", "rung_ms": 1, name: 5} for name in ("force", "counted", "drain_on")),
]
NAMES = [
    *("shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id"),
    *("parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result"),
    *("replaced_task_nesting", "stamped_headers", "stamps", "headers", "compression"),
]


def odd_messages() -> Iterator[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Yields bodies, headers and properties of messages that senders may send."""
    for value in MARKERS:
        yield *call(ECHO, 1, redis_batches=value), {}
    for name in NAMES:
        for value in ODD:
            yield *call(ECHO, 1, **{name: value}), {}
    for name in ("callbacks", "errbacks", "chain", "chord"):
        for value in ODD:
            yield json.dumps([[1], {}, {name: value}]), call(ECHO)[1], {}
            old = {"task": ECHO, "id": str(uuid4()), "args": [1], name: value}
            yield json.dumps(old), {}, {}
    for value in ODD:
        yield json.dumps({"task": ECHO, "id": str(uuid4()), "args": value}), {}, {}
        yield json.dumps({"task": ECHO, "id": value, "args": [1]}), {}, {}
        yield call(ECHO, 1)[0], {"task": ECHO, "id": value}, {}
    for content in ("text/plain", "application/x-python-serialize", "application/data", "no such"):
        yield b"\xff\x00", call(ECHO)[1], {"content_type": content}
    yield call(ECHO, 1)[0].encode(), call(ECHO)[1], {"content_encoding": "no such"}
    yield *call(ECHO, 1, stamped_headers=["a"], stamps={"a": {}}), {"reply_to": "a\nb"}


def settled(store: Store) -> bool:
    """Whether no request waits or runs any more."""
    stats = store.stats()
    return not (stats["waiting"] or stats["running"] or stats["delayed"])


def test_no_message_ends_a_worker(
    cluster: Cluster, broker: str, sender: Celery, store_of: Callable[[str], Store]
) -> None:
    """Nor stays in the queue, nor keeps other calls from running."""
    worker = cluster.worker()
    wait_until_they_listen(sender, 1)
    # With any of them, Celery looks at the stamps of each call.
    revoked = {"headers": {"a": "x", "x": "x"}, "reply": True, "timeout": 20, "limit": 1}
    sender.control.revoke_by_stamped_headers(**revoked)
    ran = [sender.send_task(ECHO, (0,))]
    with Connection(broker) as connection:
        for body, headers, properties in odd_messages():
            publish_on(connection, body, headers, **properties)
    ran.append(sender.send_task(ECHO, (0,)))

    assert sender.send_task(ADD, (1, 2)).get(timeout=60) == 3
    assert [result.get(timeout=60) for result in ran] == [[0], [0]]
    wait_until(lambda: settled(store_of(ECHO)), description="none of them is left")
    assert "Unrecoverable error" not in worker.output()
    assert worker.output().count("ready.") == 1
    # Of the name "a\nb", and of a line that no task logs.
    assert r"Task a\nb[" in worker.output()
    assert "\nb[" not in worker.output()
    assert "???" not in worker.output()
    wait_until(lambda: is_empty(broker), description="all acknowledged")


def test_a_call_that_cannot_wait_in_redis_fails(
    cluster: Cluster, broker: str, sender: Celery
) -> None:
    """Its caller is told why; the worker goes on."""
    worker = cluster.worker()

    large = sender.send_task(DOUBLE, ("x" * 3000,))
    odd = sender.send_task(DOUBLE, (1,), task_id="no spaces")

    with pytest.raises(Exception, match="redis_batches_max_payload allows 2,000"):
        large.get(timeout=20)
    with pytest.raises(Exception, match="'no spaces' is not usable"):
        odd.get(timeout=20)
    assert sender.send_task(DOUBLE, (2,)).get(timeout=20) == 4
    worker.stop()
    assert is_empty(broker)


@pytest.fixture
def store_server(cluster: Cluster, broker: str) -> Iterator[EmbeddedServer]:
    """A server of its own in which requests wait."""
    with EmbeddedServer() as started:
        cluster.env["TEST_STORE"] = started.url
        yield started


def test_what_arrives_while_redis_is_down_is_held(
    cluster: Cluster, store_server: EmbeddedServer, broker: str, sender: Celery
) -> None:
    """No message is delivered twice, other tasks run, and each call runs once Redis is back."""
    worker = cluster.worker(concurrency=1)
    store_server.kill()

    results = [sender.send_task(DOUBLE, (number,)) for number in range(25)]
    assert sender.send_task(ADD, (1, 2)).get(timeout=30) == 3
    worker.wait_for("is held, and tried again")
    assert not ledger()
    store_server.start()

    assert [result.get(timeout=40) for result in results] == [2 * n for n in range(25)]
    assert sorted(arguments()) == list(range(25))
    assert all(worker.output().count(f"[{r.id}] received") == 1 for r in results)
    assert worker.output().count("is held, and tried again") == 1
    worker.stop()
    assert is_empty(broker)


def test_what_is_held_is_the_brokers_after_a_lost_connection(
    cluster: Cluster, store_server: EmbeddedServer, broker: str, sender: Celery
) -> None:
    """A worker that ends while it holds messages loses none."""
    worker = cluster.worker(concurrency=1)
    store_server.kill()
    results = [sender.send_task(DOUBLE, (number,)) for number in range(10)]
    worker.wait_for("is held, and tried again")
    worker.stop()

    store_server.start()
    cluster.worker(concurrency=1)

    assert [result.get(timeout=40) for result in results] == [2 * n for n in range(10)]
    assert sorted(arguments()) == list(range(10))


def test_a_full_backlog_is_drained_though_its_doorbells_wait_behind_what_is_held(
    cluster: Cluster, broker: str, sender: Celery
) -> None:
    """The broker delivers nothing more to a worker that holds; so it rings for itself."""
    results = [sender.send_task(FULL, (number,)) for number in range(200)]

    worker = cluster.worker(concurrency=1, TEST_MAX_PENDING="20", TEST_EXTRA="2")

    assert [result.get(timeout=40) for result in results] == [2 * n for n in range(200)]
    assert sorted(arguments()) == list(range(200))
    assert {len(run["ids"]) for run in ledger()} == {10}
    worker.wait_for("as many as redis_batches_max_pending")


def test_a_long_queue_runs_while_it_arrives(
    cluster: Cluster, broker: str, sender: Celery, store_of: Callable[[str], Store]
) -> None:
    """Doorbells wait at its end; yet the pool has work before all of it has arrived."""
    for number in range(800):
        sender.send_task(FULL, (number,), ignore_result=True)
    cluster.worker(concurrency=1, TEST_MAX_PENDING="100000")
    store = store_of(FULL)

    wait_until(lambda: store.stats()["acked"] == 800, 60, description="all ran")
    runs = ledger()
    assert {len(run["ids"]) for run in runs} == {10}
    assert runs[0]["at"] < max(since for run in runs for since in run["since"])
    assert sorted(arguments()) == list(range(800))


def test_a_call_by_a_topic_runs(cluster: Cluster, broker: str, sender: Celery) -> None:
    """Its doorbell goes where the message came from."""
    cluster.worker("-Q", "clicks")
    events = Exchange("events", type="topic")
    sender.conf.task_queues = [Queue("clicks", events, routing_key="click.*")]

    results = [
        sender.send_task(FULL, (n,), queue="clicks", routing_key="click.us") for n in range(10)
    ]

    assert [result.get(timeout=20) for result in results] == [2 * n for n in range(10)]
