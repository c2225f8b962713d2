"""The fast path and bulk calls store, ring and return what Celery's own path does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import fakeredis
import pytest
from celery import Celery, Task, signals
from kombu import Exchange, Queue

from redis_batches import BacklogFull, Batches, UnusableCall, batched_task
from redis_batches.app.state import runtime_of
from tests.support import raw

NOW = datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=timezone.utc)
ARGS, KWARGS = ("é", 1, None, [1.5], {"a": b"bytes"}), {"when": NOW, "n": 2**60}


def function(requests: list[Any]) -> None:
    """A batch function."""


@pytest.fixture
def task(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A task whose every call rings, in an app whose clock stands still."""
    app.conf.task_queues = [
        Queue("celery"),
        Queue("other"),
        Queue("topics", Exchange("topics", "topic"), "clicks.#"),
    ]
    app.conf.task_routes = {"shop.*": {"queue": "other"}}
    monkeypatch.setattr(app, "now", lambda: NOW)
    # One server, whichever client a call takes.
    server = fakeredis.FakeServer()
    connect = "redis_batches.buffer.stores.connect"
    monkeypatch.setattr(connect, lambda *_: fakeredis.FakeRedis(server=server))

    batched_task(1, 60, app=app, name="click")(function)
    app.finalize()
    return app.tasks["click"]


@contextmanager
def listening() -> Iterator[None]:
    """A receiver, so that calls go Celery's own path."""

    def receive(**_: Any) -> None:
        pass

    signals.before_task_publish.connect(receive)
    try:
        yield
    finally:
        signals.before_task_publish.disconnect(receive)


def traces(task: Any, call: Callable[[], Any]) -> dict[str, Any]:
    """Makes one call; returns what it stored, rang and returned, without ids of its own."""
    client = raw.client(runtime_of(task.app).store("click"))
    client.flushall()
    for name in ("celery", "other", "topics"):
        list(_drain(task.app, name))
    result = call()
    keys = raw.keys(runtime_of(task.app).store(task.name))

    def plain(data: Any) -> Any:
        return data.replace(result.id.encode(), b"ID")

    return {
        "items": [plain(value) for value in client.hvals(keys.resolve("items"))],
        "eta": [
            (plain(member), score)
            for member, score in client.zrange(keys.resolve("eta"), 0, -1, withscores=True)
        ],
        "routes": client.hgetall(keys.resolve("routes")),
        "bells": {
            name: [_bell(message) for message in _drain(task.app, name)]
            for name in ("celery", "other", "topics")
        },
        "result": (type(result), result.ignored, result.app, result.parent, len(result.id)),
        "stats": client.hgetall(keys.resolve("stats")),
    }


def _drain(app: Celery, queue: str) -> Iterator[Any]:
    with app.connection_for_read() as connection:
        simple = connection.SimpleQueue(app.amqp.queues[queue])
        while simple.qsize():
            yield simple.get_nowait()
        simple.close()


def _bell(message: Any) -> Any:
    headers = {k: v for k, v in message.headers.items() if k not in ("id", "root_id")}
    headers["redis_batches"]["rung_ms"] = 0
    return headers, message.body, message.delivery_info, message.properties.get("priority")


OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "queue": {"queue": "other"},
    "exchange": {"exchange": "topics", "routing_key": "clicks.one", "queue": "topics"},
    "routing_key": {"routing_key": "celery"},
    "countdown": {"countdown": 10},
    "eta": {"eta": datetime(2031, 1, 1, tzinfo=timezone.utc)},
    "expires": {"expires": 30},
    "expires_at": {"expires": datetime(2031, 1, 1, tzinfo=timezone.utc)},
    "priority": {"priority": 7},
    "headers": {"headers": {"tenant": "one"}},
    "pickle": {"serializer": "pickle"},
    "json": {"serializer": "json"},
    "compression": {"compression": "gzip"},
    "ignore_result": {"ignore_result": True},
    "link": {"link": "signature"},
    "link_error": {"link_error": "signature"},
    "shadow": {"shadow": "another name"},
    "root": {"root_id": "root", "parent_id": "parent"},
    "reply_to": {"reply_to": "somewhere"},
    "retries": {"retries": 2},
    "stamps": {"stamped_headers": ["tenant"], "tenant": "one"},
    "retry": {"retry": False, "retry_policy": {"max_retries": 1}},
    "limits": {"time_limit": None, "soft_time_limit": None},
    "nested": {"replaced_task_nesting": 3},
    "parent": {"add_to_parent": False},
    "properties": {"correlation_id": "another", "message_property": 1},
    "delivery_mode": {"delivery_mode": 1},
}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_bulk_calls_with_any_option_are_what_single_ones_are(task: Any, name: str) -> None:
    """Byte for byte in Redis, and in the doorbell."""
    options = {
        key: task.app.signature("linked") if value == "signature" else value
        for key, value in OPTIONS[name].items()
    }
    many = traces(task, lambda: task.apply_async_many([(ARGS, KWARGS)], **options)[0])
    with listening():
        assert task.apply_async_many([], **options) == []
        one = traces(task, lambda: task.apply_async(ARGS, KWARGS, **options))

    assert many == one
    assert len(many["items"]) == 1


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), (ARGS, KWARGS), (None, None), ((1,), None), (("x" * 10_000,), {})],
)
def test_the_fast_path_is_celerys_own(task: Any, args: Any, kwargs: Any) -> None:
    """Byte for byte in Redis, and in the doorbell."""
    fast = traces(task, lambda: task.apply_async(args, kwargs))
    assert task._fast_path.find((), {}) is not None
    with listening():
        assert task._fast_path.find((), {}) is None
        slow = traces(task, lambda: task.apply_async(args, kwargs))

    assert fast == slow


@pytest.mark.parametrize(
    "change",
    [
        {"task_default_queue": "other"},
        {"task_routes": {"click": {"queue": "other"}}},
        {"task_routes": [lambda *_, **__: {"queue": "other"}]},
    ],
    ids=["queue", "routes", "router"],
)
def test_a_change_of_settings_is_seen_by_the_next_call(task: Any, change: dict[str, Any]) -> None:
    """The route is asked again."""
    task.delay(1)
    task.app.conf.update(**change)
    fast = traces(task, lambda: task.delay(1))
    with listening():
        slow = traces(task, lambda: task.delay(1))

    assert fast == slow
    assert fast["bells"]["other"]


def test_a_change_of_the_task_is_seen_by_the_next_call(task: Any) -> None:
    """As Celery reads it at each call."""
    assert not task.delay().ignored
    task.ignore_result = True
    assert task.delay().ignored
    task.time_limit, task.soft_time_limit = 1, 2
    with pytest.raises(ValueError, match="soft_time_limit"):
        task.delay()


def test_a_router_that_looks_at_arguments_is_asked_for_each_call(task: Any) -> None:
    """Also in bulk."""

    def route(name: str, args: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return {"queue": args[0]}

    task.app.conf.update(task_routes=[route])
    task.delay("other")
    task.delay_many([("celery",), ("other",)])

    routes = runtime_of(task.app).store("click").groups().values()
    assert {"other" in text for text in routes} == {True, False}
    assert len(routes) == 2


def test_eager_events_and_tracers_go_celerys_own_path(
    task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever wants to see each call sees it."""
    task.delay()
    seen = []
    apply_async = Task.apply_async

    def traced(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.name)
        return apply_async(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Task, "apply_async", traced)
        task.delay()
        task.delay_many([(), ()])
    assert seen == ["click"] * 3
    assert task._fast_path.find((), {}) is not None
    task.app.conf.task_send_sent_event = True
    assert task._fast_path.find((), {}) is None
    task.app.conf.task_send_sent_event = False
    task.app.conf.task_always_eager = True
    assert task._fast_path.find((), {}) is None


def test_a_signature_is_checked_for_each_call(app: Celery) -> None:
    """Whichever way it goes."""

    def signature(number: int) -> None:
        """Of a call."""

    typed = batched_task(10, 60, app=app, name="typed", typing=signature)(function)
    typed.delay(1)
    for bad in ((), (1, 2)):
        with pytest.raises(TypeError):
            typed.delay(*bad)
        with pytest.raises(UnusableCall, match="call 1 "):
            typed.delay_many([(1,), bad])
    assert typed._fast_path.find((1,), {}) is not None
    assert typed.stats()["pushed"] == 1


def test_a_retry_policy_of_the_app_holds_on_every_path(task: Any) -> None:
    """A call that is not to be sent again goes Celery's own path."""
    task.delay()
    task.app.conf.task_publish_retry = False
    assert task._fast_path.find((), {}) is None
    assert len(task.delay_many([(), ()])) == 2
    assert task.stats()["pushed"] == 3


def test_a_base_with_its_own_apply_async_is_asked(app: Celery) -> None:
    """It may add headers to each call."""

    class Tenant(Task):  # type: ignore[type-arg]
        abstract = True

        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            return super().apply_async(*args, **{**kwargs, "headers": {"tenant": "one"}})

    class TenantBatches(Batches, Tenant):
        abstract = True

    mixed = app.task(base=TenantBatches, name="mixed")(function)
    mixed.delay()
    mixed.delay_many([()])

    store = runtime_of(app).store("mixed")
    values = raw.client(store).hvals(raw.key(store, "items"))
    assert [b'"tenant":"one"' in value for value in values] == [True, True]


def test_a_base_with_its_own_result_gets_an_id_only(app: Celery) -> None:
    """As from Celery: else a call would be stored, and its caller told that it failed."""

    class Own(Batches):
        def AsyncResult(self, task_id: str) -> Any:  # type: ignore[override]  # noqa: N802
            return super().AsyncResult(task_id, parent="mine")

    made: Any = app.task(base=Own, name="own_result")(function)

    assert [made.delay(1).parent, *(each.parent for each in made.delay_many([(2,), (3,)]))] == [
        "mine"
    ] * 3


def test_calls_from_inside_a_task_are_its_children(task: Any) -> None:
    """One by one and in bulk."""
    called: list[Any] = []

    @task.app.task(bind=True, name="outer")
    def outer(self: Any, many: bool) -> None:
        called[:] = task.delay_many([(1,)]) if many else [task.delay(1)]
        assert self.request.children == called

    def call(many: bool) -> Any:
        outer.apply((many,), task_id="parent").get()
        return called[0]

    one = traces(task, lambda: call(False))
    many = traces(task, lambda: call(True))

    assert one == many
    assert b'"parent_id":"parent"' in one["items"][0]


# -- bulk


def test_a_generator_of_any_length_is_streamed_in_order(task: Any) -> None:
    """500 requests per script call, each result in its place."""
    drawn = []

    def calls() -> Iterator[Any]:
        for number in range(1201):
            drawn.append(task.stats()["pushed"])
            yield {"number": number} if number % 2 else (number,)

    results = task.delay_many(calls())

    assert (drawn[499], drawn[500], drawn[1000], drawn[-1]) == (0, 500, 1000, 1000)
    assert len({result.id for result in results}) == 1201
    assert task.stats()["pushed"] == 1201
    store = runtime_of(task.app).store("click")
    value = raw.client(store).hget(raw.key(store, "items"), results[1200].id)
    assert value.endswith(b"[[1200], {}]")


def test_a_script_call_takes_at_most_8_mb(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest goes with the next."""
    monkeypatch.setattr("redis_batches.calls.bulk.PUSH_BYTES", 1000)
    sizes = []
    store = runtime_of(task.app).store("click")
    push = store.push
    monkeypatch.setattr(store, "push", lambda *a: sizes.append(len(a[2])) or push(*a))

    task.delay_many([("x" * 300,)] * 4 + [("x" * 5000,)] + [(1,)])

    assert sizes == [2, 2, 1, 1]


@pytest.mark.parametrize("bad", [(object(),), "text", 7, ("x" * 2_000_000,), [1, object()]])
@pytest.mark.parametrize("listens", [False, True])
def test_an_unusable_call_is_named(task: Any, bad: Any, listens: bool) -> None:
    """With its index; nothing of its script call is stored."""
    calls = [(number,) for number in range(620)]
    calls[610] = bad

    with (
        listening() if listens else pytest.MonkeyPatch.context(),
        pytest.raises(UnusableCall, match="call 610 cannot become a request") as caught,
    ):
        task.delay_many(calls)

    stored = 610 if listens else 500
    assert (caught.value.index, caught.value.stored) == (610, stored)
    assert len(caught.value.accepted) == task.stats()["pushed"] == stored


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (5, "an int holds no arguments: pass a tuple of positional arguments, \\(x,\\) for one"),
        ("secret", "a str holds no arguments"),
        ({1}, "a set holds no arguments"),
    ],
)
def test_what_holds_no_arguments_is_refused_with_what_to_pass(
    task: Any, call: Any, said: str
) -> None:
    """Without the value, which may be secret."""
    with pytest.raises(UnusableCall, match=said):
        task.delay_many([call])
    with pytest.raises(UnusableCall, match="a list holds no keyword arguments: pass a dict"):
        task.apply_async_many([((), ["secret"])])


def test_a_full_backlog_says_what_was_accepted(task: Any) -> None:
    """In order, so the others are those behind."""
    task.app.conf.redis_batches_max_pending = 550

    with pytest.raises(BacklogFull) as caught:
        task.delay_many((number,) for number in range(2000))

    assert len(caught.value.accepted) == 550
    assert len(caught.value.refused) == 450
    store = runtime_of(task.app).store("click")
    value = raw.client(store).hget(raw.key(store, "items"), caught.value.accepted[-1].id)
    assert value.endswith(b"[[549], {}]")


@pytest.mark.parametrize("name", ["task_id", "argsrepr", "group_id", "chord", "time_limit"])
def test_an_option_of_one_call_is_refused(task: Any, name: str) -> None:
    """It cannot hold for all."""
    with pytest.raises(ValueError, match=name):
        task.apply_async_many([((1,), {})], **{name: "x"})


def test_a_failed_doorbell_or_iterable_loses_no_stored_call(task: Any) -> None:
    """What the iterable raises comes out as it is."""

    def calls() -> Iterator[Any]:
        yield from [(number,) for number in range(501)]
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        task.delay_many(calls())
    assert task.stats()["pushed"] == 500


def test_eager_calls_run_each(task: Any) -> None:
    """As single ones do."""
    task.app.conf.task_always_eager = True

    assert [result.get() for result in task.delay_many([(1,), {"a": 2}])] == [None, None]
    assert task.stats()["pushed"] == 0
