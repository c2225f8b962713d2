"""What a call may be given, and what becomes of it: in the request, and in its doorbell."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from queue import Empty
from typing import Any

import pytest
from celery import Celery, signals, signature
from celery.app.routes import MapRoute, Router
from celery.exceptions import Ignore
from celery.worker.request import Request
from kombu import Connection, Exchange, Producer, Queue
from kombu.exceptions import OperationalError
from kombu.transport import memory

from redis_batches import BacklogFull, Batches, OptionError, SimpleRequest, batched_task
from redis_batches.app.doorbell import MARKER
from redis_batches.testing.worker import in_process
from redis_batches.worker.sweep_task import SWEEP
from tests.support import raw

AWARE = datetime(2200, 1, 1, 12, tzinfo=timezone(timedelta(hours=5)))
NAIVE = datetime(2200, 1, 1, 12)


def function(requests: list[SimpleRequest]) -> None:
    """A batch function."""


@contextmanager
def caught(signal: Any) -> Iterator[list[dict[str, Any]]]:
    """Collects what a signal is sent with."""
    found: list[dict[str, Any]] = []

    def receive(**sent: Any) -> None:
        found.append(sent)

    signal.connect(receive)
    try:
        yield found
    finally:
        signal.disconnect(receive)


def call_and_run(options: dict[str, Any], **conf: Any) -> tuple[dict[str, Any], SimpleRequest]:
    """Calls a task and runs its batch; returns the message that Celery made, and the request."""
    seen: list[SimpleRequest] = []

    def keep(requests: list[SimpleRequest]) -> None:
        seen.extend(requests)

    with in_process(keep, 1) as here, caught(signals.before_task_publish) as published:
        here.task.app.conf.update(accept_content=["json", "pickle"], **conf)
        here.task.apply_async((1, "a"), {"k": [2]}, **options)
        with suppress(Ignore):
            here.answer()
    return published[0], seen[0]


LINK = {"task": "t", "args": [1], "kwargs": {}, "options": {}, "subtask_type": None}
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "task_id": {"task_id": "mine"},
    "expires in seconds": {"expires": 60},
    "expires at an aware time": {"expires": AWARE},
    "expires at a naive time": {"expires": NAIVE},
    "expires at a text": {"expires": "2200-01-01T12:00:00Z"},
    "priority": {"priority": 3},
    "headers": {"headers": {"mine": {"x": [1]}, "content": "ab", "priority": "high"}},
    "shadow": {"shadow": "nick"},
    "link": {"link": signature("t", (1,)), "link_error": [signature("t"), signature("u")]},
    "ignore_result": {"ignore_result": True},
    "stamps": {"stamped_headers": ["trace", "user"], "trace": ["x"], "user": 7},
    "reply_to": {"reply_to": "my-queue"},
    "reprs": {"argsrepr": "(secret)", "kwargsrepr": "{secret}"},
    "group": {"group_id": "g", "group_index": 4},
    "chord and chain": {"chord": LINK, "chain": [LINK, LINK]},
    "ancestors": {"root_id": "r", "parent_id": "p"},
    "retries": {"retries": 2, "replaced_task_nesting": 1},
    "serializer pickle": {"serializer": "pickle"},
    "compression": {"compression": "zlib"},
    "properties": {"app_id": "shop", "correlation_id": "other"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_request_has_the_whole_message_of_protocol_2(name: str) -> None:
    """Every header and property that Celery made for the call, and its arguments."""
    message, request = call_and_run(OPTIONS[name])

    found = request.request_dict
    args, kwargs, embed = message["body"]
    missing = object()
    wrong = {
        header: (value, found.get(header, missing))
        for header, value in message["headers"].items()
        if found.get(header, missing) != value
    }
    assert wrong == {}
    properties = {k: v for k, v in message["properties"].items() if v is not None}
    properties.pop("expiration", None)  # The broker's way to honour `expires`.
    if "reply_to" not in OPTIONS[name]:
        properties["reply_to"] = ""  # Nobody listens: the result backend is not rpc.
    assert {k: v for k, v in found["properties"].items() if v is not None} == properties
    assert found["correlation_id"] == request.correlation_id == properties["correlation_id"]
    assert found["reply_to"] == request.reply_to == (properties["reply_to"] or None)
    assert (tuple(request.args), request.kwargs) == (args, kwargs)
    assert (request.embed or dict.fromkeys(embed)) == json.loads(json.dumps(embed))
    assert request.name == message["headers"]["shadow"] or request.name == "here"


#: What a message of protocol 1 has no place for, and a text that Celery 5.5 cannot put into one.
NOT_IN_PROTOCOL_1 = ("chord and chain", "ancestors", "reprs", "expires at a text")


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in NOT_IN_PROTOCOL_1])
def test_a_request_has_the_whole_message_of_protocol_1(name: str) -> None:
    """Which has no headers but the caller's own; the rest is as Celery derives it."""
    message, request = call_and_run(OPTIONS[name], task_protocol=1)

    body, found = message["body"], request.request_dict
    for header in ("task", "id", "retries", "eta", "expires", "group"):
        assert found[header] == body[header]
    for header, value in message["headers"].items():
        assert found[header] == value
    assert tuple(found["timelimit"]) == body["timelimit"]
    assert (tuple(request.args), request.kwargs) == (body["args"], body["kwargs"])
    for part in ("callbacks", "errbacks", "chord"):
        assert (request.embed or {}).get(part) == json.loads(json.dumps(body[part]))


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
@pytest.mark.parametrize(
    "eta", [AWARE, NAIVE, "2200-01-01T12:00:00Z", "2200-01-01T12:00:00"], ids=str
)
def test_eta_is_the_moment_at_which_a_worker_of_celery_would_run_it(
    app: Celery, eta: Any, zone: str
) -> None:
    """With and without a time zone, in the app's time zone."""
    app.conf.timezone = zone
    task = batched_task(10, 1, app=app)(function)
    result = task.apply_async(eta=eta)

    text = eta if isinstance(eta, str) else eta.isoformat()
    message = app.amqp.create_task_message(result.id, task.name, (), {}, eta=eta)
    celerys = _celerys_request(app, message)
    assert celerys.request_dict["eta"] == text
    store = task._runtime.store(task.name)
    ((_, ready_ms),) = raw.client(store).zrange(raw.key(store, "eta"), 0, -1, withscores=True)
    assert ready_ms == celerys.eta.timestamp() * 1000


def _celerys_request(app: Celery, message: Any) -> Request:
    class Message:
        headers, properties = message.headers, message.properties
        body, delivery_info, payload = message.body, {}, message.body
        content_type = content_encoding = delivery_tag = None

    task = app.tasks[message.headers["task"]]
    return Request(Message(), app=app, decoded=True, headers=message.headers, task=task)


# -- What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": "tomorrow"}, "eta is 'tomorrow', but must be a datetime, or its text in ISO 8601"),
        ({"eta": 5}, "eta is 5, but must be a datetime"),
        ({"countdown": "5"}, "countdown is '5', but must be a number of seconds"),
        ({"countdown": float("nan")}, "countdown is nan"),
        ({"countdown": float("inf")}, "countdown is inf"),
        ({"countdown": 1e12}, "countdown is 1000000000000.0"),
        ({"countdown": timedelta(seconds=5)}, "countdown is datetime.timedelta"),
        ({"expires": "later"}, "expires is 'later', but must be a number of seconds, a datetime"),
        ({"expires": float("nan")}, "expires is nan"),
        ({"expires": AWARE.date()}, "expires is datetime.date"),
        ({"time_limit": 5}, "time_limit is 5, but must be set on the task"),
        ({"soft_time_limit": 5}, "soft_time_limit is 5, but must be set on the task"),
        ({"expiration": 5}, "expiration is 5, but must be left out: `expires`"),
        ({"timeout": 5}, "timeout is 5, but must be left out: `redis_batches_deadline`"),
        ({"confirm_timeout": 5}, "confirm_timeout is 5, but must be left out"),
        ({"declare": ["q"]}, "declare is .* the queue that a call is routed to is declared"),
        ({"mandatory": True}, "mandatory is True, but must be left out: a call waits in Redis"),
        ({"immediate": True}, "immediate is True, but must be left out"),
        ({"content_type": "text/plain"}, "content_type is .* `serializer`"),
        ({"retry_policy": {"retries": 5}}, "retry_policy is .* must be without 'retries'"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_honoured_is_refused(
    app: Celery, options: dict[str, Any], message: str
) -> None:
    """With an error that names it, and says what is allowed; nothing is stored."""
    task = batched_task(10, 1, app=app)(function)

    with pytest.raises(OptionError, match=message):
        task.apply_async((1,), **options)
    assert task.stats()["pushed"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"headers": {"expires": "garbage"}}, "expires is 'garbage', but must be a time"),
        ({"headers": {"retries": "x"}}, "retries is 'x', but must be an int from 0"),
        ({"headers": {"eta": "garbage"}}, "eta is 'garbage', but must be a time"),
        ({"headers": {"stamps": 5}}, "stamps is 5, but must be a mapping"),
        ({"headers": {"timelimit": 5}}, "timelimit is 5"),
        ({"group_index": "x"}, "group_index is 'x'"),
        ({"chord": "x"}, "chord is 'x', but must be a signature"),
        ({"chain": "x"}, "chain is 'x', but must be a list of signatures"),
        ({"link": 5}, r"link is \[5\], but must be a list of signatures"),
        ({"link_error": [{"task": 5}]}, r"link_error is \[{'task': 5}\]"),
        ({"priority": "x"}, "priority is 'x', but must be an int from 0 to 255"),
        ({"reply_to": 5}, "reply_to is 5, but must be a text"),
        ({"eta": datetime.min.replace(tzinfo=None)}, "eta is '0001-01-01T00:00:00'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("many", [False, True])
def test_what_no_worker_could_read_is_refused(
    app: Celery, options: dict[str, Any], message: str, many: bool
) -> None:
    """By the call, which says what is allowed; nothing is stored."""
    app.conf.timezone = "America/New_York"
    app.conf.enable_utc = False
    task = batched_task(10, 1, app=app)(function)

    if many and options.keys() & {"group_index", "chord", "chain"}:
        options, message = {"headers": {"retries": -1}}, "retries is -1"
    call = partial(task.apply_async_many, [((1,), None)]) if many else task.apply_async
    with pytest.raises(OptionError, match=message):
        call(**options)
    assert task.stats()["pushed"] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"shadow": 5},
        {"headers": {"retries": None, "stamps": None, "timelimit": None, "shadow": []}},
        {"headers": {"get": 5, "update": "x", "redis_batches": "garbage"}},
        {"eta": datetime.min.replace(tzinfo=timezone.utc)},
    ],
    ids=str,
)
def test_what_harms_nobody_is_taken(options: dict[str, Any]) -> None:
    """As in Celery."""
    with in_process(first_argument, 1) as here:
        result = here.task.apply_async((1,), **options)
        here.answer(force=True)

        assert result.result == 1


def first_argument(requests: list[SimpleRequest]) -> list[Any]:
    """Returns what each request was called with, when it has looked at all of it."""
    for request in requests:
        assert request.retries == 0
        assert request.context.get("id") == request.id
    return [request.args[0] for request in requests]


def test_a_route_cannot_bring_in_what_a_call_may_not_have(app: Celery) -> None:
    """As in Celery, a route may hold any option."""
    task = batched_task(10, 1, app=app, name="t")(function)
    app.conf.task_routes = {"t": {"queue": "q", "mandatory": True}}

    with pytest.raises(OptionError, match="mandatory is True"):
        task.delay()


@pytest.mark.parametrize("moment", [AWARE.date(), "2200-01-01", 0, -5, True, None])
def test_what_celery_takes_is_taken(app: Celery, moment: Any) -> None:
    """Dates, texts, numbers that lie in the past."""
    task = batched_task(10, 1, app=app)(function)

    number = moment is None or isinstance(moment, int)
    task.apply_async(**({"countdown": moment, "expires": moment} if number else {"eta": moment}))

    assert task.stats()["pushed"] == 1


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("flush_evry", "did you mean flush_every"),
        ("flush_intervall", "did you mean flush_interval"),
        ("flash_every", "did you mean flush_every"),
        ("flush_bytes", "is not known here"),
        ("redis_batches_lease", "is not known here"),
    ],
)
def test_a_mistyped_option_of_a_task_is_refused(app: Celery, option: str, hint: str) -> None:
    """By the decorator and by the class; methods and other attributes may have any name."""
    with pytest.raises(OptionError, match=f"{option} .*{hint}"):
        batched_task(10, 1, app=app, **{option: 10})
    with pytest.raises(OptionError, match=f"{option} .*{hint}"):
        type("Bad", (Batches,), {option: 10})

    type("Good", (Batches,), {"flush_cache": lambda self: None, "region": "eu"})


def test_pydantic_is_refused(app: Celery) -> None:
    """It describes the arguments of a function that is called with them."""
    with pytest.raises(OptionError, match="pydantic is True, but must be False"):
        batched_task(10, 1, app=app, pydantic=True)


# -- Argument checking


def test_typing_checks_the_arguments_of_calls(app: Celery) -> None:
    """A function says which; Celery checks them as for any task."""

    def call(url: str, *, user: str | None = None) -> None:
        """What a click takes."""

    task = batched_task(10, 1, app=app, typing=call, name="new")(function)
    old = app.task(base=Batches, typing=call, name="old")(function)

    for each in (task, old):
        each.delay("http://example.com", user="me")
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'url'"):
            each.delay()
        with pytest.raises(TypeError, match="unexpected keyword argument 'usr'"):
            each.s("http://example.com").apply_async(kwargs={"usr": "me"})
        assert (each.typing, each.stats()["pushed"]) == (True, 1)


def test_typing_is_off_unless_it_is_asked_for(app: Celery) -> None:
    """The function's own signature says nothing about calls."""
    batched_task(10, 1, app=app)(function).delay(1, 2, x=3)

    for bad in (True, "yes", lambda url: None):
        with pytest.raises(OptionError, match="False, or a function"):
            batched_task(10, 1, app=app, typing=bad)


# -- Routes, and the doorbell


@pytest.fixture(autouse=True)
def empty_broker() -> None:
    """No message of another test; kombu's pools outlive an app, so the queues are kept."""
    for waiting in memory.Channel.queues.values():
        waiting.queue.clear()


def doorbell(app: Celery, queue: str, connection: Any = None) -> Any:
    """Returns the doorbell that waits in a queue of the broker in memory, or None."""
    with connection or app.connection_for_read() as opened, opened.SimpleQueue(queue) as waiting:
        try:
            message = waiting.get(block=False)
        except Empty:
            return None
        message.ack()
        assert MARKER in message.headers
        return message


@pytest.fixture
def eager_to_ring(app: Celery) -> Any:
    """A task that rings at each call."""
    return batched_task(1, 1, app=app, name="t")(function)


def test_a_doorbell_goes_where_its_call_goes(app: Celery, eager_to_ring: Any) -> None:
    """By `queue`, or `exchange` and `routing_key`; with `priority` and `delivery_mode`."""
    eager_to_ring.apply_async(queue="by-name", priority=7, delivery_mode=1)
    eager_to_ring.apply_async(queue=Queue("by-object", Exchange("by-object"), "by-object"))
    bound = Queue("bound", Exchange("ex", type="topic"), "a.*", channel=app.pool.connection)
    bound.declare()
    eager_to_ring.apply_async(exchange=Exchange("ex", type="topic"), routing_key="a.b")

    by_name = doorbell(app, "by-name")
    assert by_name.properties["priority"] == 7
    assert by_name.properties["delivery_mode"] == 1
    assert doorbell(app, "by-object").properties["delivery_mode"] == 2
    assert doorbell(app, "bound") is not None
    assert doorbell(app, "celery") is None


def test_task_routes_route_the_doorbell(app: Celery, eager_to_ring: Any) -> None:
    """A dict, and a function that is asked once, with the real arguments."""
    asked: list[Any] = []

    def by_first(
        name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any
    ) -> Any:
        if name != "t":
            return None
        asked.append((name, args, kwargs, options["app_id"], task.name))
        return {"queue": f"q{args[0] % 2}"}

    app.conf.task_routes = (by_first, {"u": "by-dict"})
    other = batched_task(1, 1, app=app, name="u")(function)
    for number in (4, 5):
        eager_to_ring.apply_async((number,), {"k": number}, app_id="x")
    other.delay()

    assert asked == [("t", (n,), {"k": n}, "x", "t") for n in (4, 5)]
    assert all(doorbell(app, queue) for queue in ("q0", "q1", "by-dict"))


def test_a_router_that_looks_into_arguments_does_not_stop_the_sweep(app: Celery) -> None:
    """Beat's sweep and the inspector ask where calls go in general."""

    def by_first(name: str, args: Any, *_: Any, **__: Any) -> Any:
        return {"queue": args[0]} if name == "t" else None

    app.conf.task_routes = (by_first,)
    task = batched_task(1, 1, app=app, name="t", queue="usual")(function)
    app.finalize()

    app.tasks[SWEEP].apply_async()

    with app.connection_for_read() as connection, connection.SimpleQueue("usual") as waiting:
        assert waiting.get(block=False).headers["task"] == SWEEP
    assert task.inspector.list() == []


def test_a_router_of_the_call_is_asked(app: Celery, eager_to_ring: Any) -> None:
    """As `app.send_task(router=…)`."""
    mine = Router((MapRoute({"t": "mine"}),), app.amqp.queues, True, app)

    eager_to_ring.apply_async(router=mine)

    assert doorbell(app, "mine")


@pytest.mark.parametrize("option", ["connection", "producer", "publisher"])
def test_a_connection_of_the_caller_takes_the_doorbell(
    app: Celery, eager_to_ring: Any, option: str
) -> None:
    """Nothing goes through one of the app's own."""
    with Connection("memory://") as other:
        given = other if option == "connection" else Producer(other, auto_declare=False)
        assert not other.connected

        eager_to_ring.apply_async(**{option: given})

        assert other.connected
        assert doorbell(app, "celery")


# -- When it cannot be stored


class Deaf:
    """A server on loopback that hangs up on whoever connects."""

    def __init__(self) -> None:
        self.calls = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._hang_up)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._socket.getsockname()[1]}/0"

    def _hang_up(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.calls += 1
                connection.close()

    def __enter__(self) -> Deaf:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


NO_PAUSE = {"interval_start": 0, "interval_step": 0}


@pytest.mark.parametrize(
    ("options", "conf", "expected"),
    [
        ({"retry": False}, {}, 1),
        ({"retry": False, "retry_policy": {"max_retries": 5}}, {}, 1),
        ({"retry_policy": {"max_retries": 0}}, {}, 1),
        ({"retry_policy": {"max_retries": 2, **NO_PAUSE}}, {}, 3),
        ({}, {"task_publish_retry": False}, 1),
        ({"retry": True, "retry_policy": NO_PAUSE}, {"task_publish_retry": False}, 4),
        ({}, {"task_publish_retry_policy": {"max_retries": 1, **NO_PAUSE}}, 2),
    ],
    ids=str,
)
def test_a_call_is_sent_again_as_often_as_its_retry_policy_says(
    options: dict[str, Any], conf: dict[str, Any], expected: int
) -> None:
    """It may be stored, and only its reply lost: then it is still stored once."""
    with Deaf() as server:
        app = Celery("deaf", broker=server.url, set_as_current=False)
        app.conf.update(conf)
        task = batched_task(10, 1, app=app)(function)

        with pytest.raises(OperationalError):
            task.apply_async(ignore_result=True, **options)
        assert server.calls == expected


def test_a_retry_policy_tells_of_each_pause() -> None:
    """With kombu's `errback`; pauses grow as it says."""
    pauses: list[float] = []
    policy = {"max_retries": 3, "interval_start": 0, "interval_step": 0.01, "interval_max": 0.015}
    with Deaf() as server:
        app = Celery("deaf", broker=server.url, set_as_current=False)
        task = batched_task(10, 1, app=app)(function)

        with pytest.raises(OperationalError):
            task.apply_async(
                retry_policy={**policy, "errback": lambda _, pause: pauses.append(pause)}
            )
    assert pauses == [0, 0.01, 0.015]


def test_what_does_not_pass_by_itself_is_not_sent_again(app: Celery) -> None:
    """Another try would be refused as well."""
    app.conf.redis_batches_max_pending = 0
    task = batched_task(10, 1, app=app)(function)
    refused: list[Any] = []

    with pytest.raises(BacklogFull):
        task.apply_async(retry_policy={"errback": lambda *told: refused.append(told)})
    assert refused == []


# -- Who hears of a call


def test_signals_of_a_call_are_celerys(app: Celery, eager_to_ring: Any) -> None:
    """Once per call, none for its doorbell; headers that a receiver adds are stored."""

    def trace(headers: dict[str, Any], **_: Any) -> None:
        headers["trace"] = "abc"

    signals.before_task_publish.connect(trace)
    with caught(signals.before_task_publish) as before, caught(signals.after_task_publish) as after:
        result = eager_to_ring.apply_async((1,), queue="special")
    signals.before_task_publish.disconnect(trace)

    assert [sent["sender"] for sent in (*before, *after)] == ["t", "t"]
    assert before[0]["headers"]["id"] == after[0]["headers"]["id"] == result.id
    assert (before[0]["exchange"], before[0]["routing_key"]) == ("", "special")
    store = eager_to_ring._runtime.store("t")
    assert b'"trace":"abc"' in raw.client(store).hget(raw.key(store, "items"), result.id)


def test_a_task_sent_event_is_sent_per_call(app: Celery, eager_to_ring: Any) -> None:
    """If the app asks for it; it goes to the broker, and none is sent for the doorbell."""
    app.conf.task_send_sent_event = True
    events: list[dict[str, Any]] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": events.append})
        with receiver.consumer_context(wakeup=False) as (listening, _, _):
            result = eager_to_ring.apply_async((1,), queue="special")
            listening.drain_events(timeout=5)
            with pytest.raises(TimeoutError):
                listening.drain_events(timeout=0.1)

    (event,) = events
    assert (event["type"], event["uuid"]) == ("task-sent", result.id)
    assert (event["name"], event["queue"], event["args"]) == ("t", "special", "(1,)")
