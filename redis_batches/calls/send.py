"""The last hop of `apply_async`: into Redis instead of the broker.

Celery builds the message, routes it and sends its signals as for any task. It gets a router that
remembers where the message would go, and a producer whose `publish` pushes into Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from itertools import count
from time import monotonic, sleep
from typing import Any, NamedTuple
from uuid import uuid4

from celery.backends.rpc import RPCBackend
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu import Queue

from redis_batches.app import chords
from redis_batches.app.doorbell import ring
from redis_batches.app.state import runtime_of
from redis_batches.buffer.group_commit import Committed, Lot
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.errors import (
    BacklogFull,
    DuplicateTaskId,
    NotReplicated,
    OptionError,
    ResendTooLate,
    StoreError,
)
from redis_batches.core.model import Group, Outgoing, Pushed, Status
from redis_batches.core.settings import check_task_id
from redis_batches.driver.scripts import Age
from redis_batches.driver.server_errors import passes_by_itself
from redis_batches.wire import protocol
from redis_batches.wire.envelope import Envelope, encode, held_size
from redis_batches.wire.options import PublishRetry, check_routed

logger = get_logger(__name__)

#: Seconds between two tries to store the body of a chord.
BODY_PAUSE = 0.5
#: What `send_task` passes to a producer and no request keeps: it belongs to the broker's message.
_OF_THE_MESSAGE = {
    *("declare", "delivery_mode", "retry", "retry_policy", "timeout", "confirm_timeout"),
    *("expiration", "mandatory", "immediate"),
}

#: Options of a call whose part of its message has another name.
_OPTIONS = {"callbacks": "link", "errbacks": "link_error"}


class Made(NamedTuple):
    """What Celery made of a call.

    Attributes:
        task_id: The id.
        envelope: Headers and body.
        serializer: Of the body.
        compression: Of the body.
        group: Where it waits.
        eta_ms: Unix time in ms before which it must not run, or None.
        priority: Of the doorbell that it causes.
    """

    task_id: str
    envelope: Envelope
    serializer: str | None
    compression: str | None
    group: Group
    eta_ms: int | None
    priority: int | None


class Hop:
    """One call on its way: a stand-in for both the router and the kombu producer.

    Args:
        task: The batch task that is called.
        nonce: Tells this call from another with its id; see `nonce_of`.
        keep_reprs: Whether the caller chose `argsrepr` or `kwargsrepr`.
        producer: The broker's producer for a doorbell, or None for one of the pool.
        router: Routes the call instead of the app's router.
    """

    #: Tells it from a real producer.
    stands_in = True

    def __init__(
        self, task: BatchTask, *, nonce: str, keep_reprs: bool, producer: Any, router: Any = None
    ) -> None:
        self._task = task
        self._app: Any = task.app
        self._nonce = nonce
        self._keep_reprs = keep_reprs
        self._producer = producer
        self._router: Any = router
        self._destination: dict[str, Any] = {}
        self.retry: PublishRetry | None = None

    def route(self, options: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Routes as the app's router does, and remembers the answer for the doorbell."""
        router = self._router or self._app.amqp.router
        routed: dict[str, Any] = router.route(options, *args, **kwargs)
        check_routed(routed)
        self._destination = destination(self._app, routed)
        self.retry = PublishRetry.of(self._app.conf, routed)
        return routed

    @property
    def serializer(self) -> str:
        """The app's default, where kombu's producer has its own."""
        return str(self._app.conf.task_serializer)

    @property
    def connection(self) -> Any:
        """The broker's connection, which nothing is sent to before a doorbell is due."""
        return self._app.pool.connection

    @property
    def channel(self) -> Any:
        """A real channel, on which a result backend may declare its reply queue."""
        return self._app.pool.connection.default_channel

    def revive(self, channel: Any) -> None:
        """Does nothing: Redis has its own connection, which revives itself."""

    def publish(
        self,
        body: Any,
        routing_key: str | None = None,
        exchange: Any = None,
        serializer: str | None = None,
        compression: str | None = None,
        headers: dict[str, Any] | None = None,
        priority: int | None = None,
        reply_to: str | None = None,
        **properties: Any,
    ) -> None:
        """Pushes one call into Redis, and rings if that makes a batch due.

        Raises:
            EncodeError: The arguments cannot be serialized.
            PayloadTooLarge: The encoded call is too large.
            DuplicateTaskId: Another call with this id waits or runs.
            BacklogFull: Too many requests wait.
            OptionError: A header or an option holds what no call has.
            ResendTooLate: It may or may not have been stored.
            StoreError: Redis could not be reached, or refused.
            NotReplicated: It is stored, but not on as many replicas as a setting asks for.
        """
        if isinstance(body, dict):
            headers, body = protocol.from_protocol_1(body, headers)
        headers = headers or {}
        task_id = check_task_id(headers["id"])
        envelope = protocol.pack(
            self._task.name,
            headers,
            body,
            ignore_result=bool(self._task.ignore_result),
            keep_reprs=self._keep_reprs,
            reply_to=reply_to if self._listens(reply_to) else None,
            priority=priority,
            properties={k: v for k, v in properties.items() if k not in _OF_THE_MESSAGE},
        )
        for name, value, allowed in protocol.drop_odd(envelope):
            raise OptionError(_OPTIONS.get(name, name), value, allowed)
        group, eta_ms = Group.of(self._destination), _eta_ms(self._app, headers)
        self._take(Made(task_id, envelope, serializer, compression, group, eta_ms, priority))

    def _take(self, made: Made) -> None:
        """Stores what Celery made of the call."""
        task = self._task
        limit = runtime_of(self._app).settings.max_payload
        data = encode(made.envelope, made.serializer, made.compression, limit)
        size = held_size(data) if made.compression else None
        request = Outgoing(made.task_id, self._nonce, made.eta_ms, data, size)
        batch = task.running_batch(request.id)
        caller = ""
        if batch:
            # Its retry, and no call before it, whoever its parent was.
            caller, request = batch.token, request._replace(nonce=uuid4().hex[:16])
        body = chords.group_of_body()
        if caller or body or self._producer or self.retry is not None:
            send = partial(push, task, made.group, [request], self.retry, caller)
            slack = runtime_of(self._app).settings.timeout
            pushed = _push_body(send, slack) if body else send()
            done = Committed(pushed.statuses[0], pushed.bells, pushed.missing)
        else:
            done = committing(task, made.group, made.priority)(request)
        if batch and done.status not in (Status.FULL, Status.DUPLICATE, Status.FORGOTTEN):
            batch.requeued(request.id)
        finish(task, request.id, done, made.priority, self._producer)

    def _listens(self, reply_to: str | None) -> bool:
        """Whether somebody reads replies there: only the rpc backend, or where the caller said."""
        return reply_to != self._app.thread_oid or isinstance(self._task.backend, RPCBackend)


def nonce_of(task_id: str | None, options: Mapping[str, Any]) -> str:
    """Returns what tells a call from another with the same id; "" if the id is its own.

    Args:
        task_id: The id that its caller chose, if any.
        options: Of the call. Whoever sends the next step of a chain, or a link, names the step
            before: if that runs twice, after a crash, the call is the same one. So is the body of a
            chord, whoever sends it.
    """
    if task_id is None:
        return ""
    before = chords.group_of_body() or options.get("parent_id")
    if before is None:
        return uuid4().hex[:16]
    return blake2b(f"{before}:{task_id}".encode(), digest_size=8).hexdigest()


def push(
    task: BatchTask,
    group: Group,
    requests: Sequence[Outgoing],
    retry: PublishRetry | None,
    caller: str = "",
    age: Age | None = None,
) -> Pushed:
    """Pushes requests, and again if that fails, as `retry` and `retry_policy` of a call say.

    Args:
        task: The batch task.
        group: Where they wait.
        requests: At most 500.
        retry: How often and when; None: as the connection does by itself.
        caller: Token of the batch that they are called from, if any.
        age: Knows when they were first sent; default: they are sent first by this.
    """
    runtime = runtime_of(task.app)
    if retry is None:
        return runtime.store(task.name).push(group, task.trigger, requests, caller, age)
    store, age = runtime.single_try_store(task.name), age or Age(runtime.settings.timeout)
    for retries in count():
        try:
            return store.push(group, task.trigger, requests, caller, age)
        except StoreError as exc:
            pause = retry.pause(retries) if passes_by_itself(exc) else None
            if pause is None:
                raise
            if retry.errback is not None:
                retry.errback(exc, pause)
        sleep(pause)
    raise AssertionError("unreachable")


def _push_body(store: Callable[[Age], Pushed], slack: float) -> Pushed:
    """Stores a call; the body of a chord again and again, since nobody would send it later."""
    until, age = chords.deadline(), Age(slack)
    while True:
        try:
            pushed = store(age)
            # If it was refused it is sure that it was not stored.
            age = Age(slack)
            if pushed.statuses[0] is not Status.FULL or monotonic() >= until:
                return pushed
            logger.warning("the body of a chord is sent again: the backlog is full")
        except StoreError as exc:
            if monotonic() >= until:
                raise
            logger.warning("the body of a chord is sent again: %s", exc)
        sleep(BODY_PAUSE)


def producer_of(app: Any, options: Mapping[str, Any]) -> Any:
    """Returns the kombu producer that a caller chose for its doorbells, or None."""
    if options.get("connection") is not None:
        return app.amqp.Producer(options["connection"], auto_declare=False)
    return options.get("producer") or options.get("publisher")


def committing(
    task: BatchTask, group: Group, priority: int | None
) -> Callable[[Outgoing], Committed]:
    """Returns what stores a request, together with what other threads call meanwhile.

    It holds as long as this process does, and the task's trigger.
    """
    lot = Lot(group, task.trigger, priority)
    return partial(runtime_of(task.app).committer(task.name).commit, lot)


def finish(
    task: BatchTask, task_id: str, done: Committed, priority: int | None, producer: Any = None
) -> None:
    """Rings if that is this caller's part, and raises what became of its request."""
    if done.bells is not None and done.bells.count:
        ring(task.app, task.name, done.bells, priority=priority, producer=producer)
    if done.status is Status.FULL:
        limit = runtime_of(task.app).settings.max_pending
        raise BacklogFull(task.name, limit, [task_id])
    if done.status is Status.DUPLICATE:
        raise DuplicateTaskId(task_id)
    if done.status is Status.FORGOTTEN:
        raise ResendTooLate(task.name, [task_id])
    if done.missing:
        raise NotReplicated(task.name, done.missing)


class SentEvents:
    """Sends the task-sent event of a pushed call to the broker, where monitors listen."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def publish(self, kind: str, fields: dict[str, Any], _: Any, **options: Any) -> None:
        """Publishes as Celery's dispatcher does; the call is stored, so no error leaves."""
        try:
            with self._app.producer_or_acquire() as producer:
                self._app.amqp._event_dispatcher.publish(kind, fields, producer, **options)
        except SoftTimeLimitExceeded:
            raise
        except Exception as exc:
            logger.warning("cannot send the event %s: %r", kind, exc)


def destination(app: Any, routed: dict[str, Any]) -> dict[str, Any]:
    """Returns where a doorbell for routed options goes, as `send_task_message` decides it."""
    found = _address(app, routed)
    mode = routed.get("delivery_mode")
    if mode is not None and mode != app.conf.task_default_delivery_mode:
        found["delivery_mode"] = mode
    return found


def usual_destination(task: Any) -> dict[str, Any]:
    """Returns where calls of a task go, as far as that does not depend on their arguments."""
    app, options = task.app, dict(task._get_exec_options())
    try:
        return destination(app, app.amqp.router.route(dict(options), task.name, (), {}, task))
    except SoftTimeLimitExceeded:
        raise
    except Exception as exc:
        # A user's router function may look into arguments, and there are none here.
        logger.debug("cannot route %s without a call: %r", task.name, exc)
        return destination(app, options)


def known_routes(task: Any, queues: Iterable[str]) -> list[str]:
    """Returns where calls of a task may go: its usual queue, the app's, and some by name."""
    app = task.app
    names = [*app.amqp.queues, app.conf.task_default_queue, *queues]
    usual = Group.of(usual_destination(task))
    found = [Group.of(destination(app, {"queue": name})) for name in dict.fromkeys(names)]
    return [group.route for group in (usual, *found)]


def _address(app: Any, routed: dict[str, Any]) -> dict[str, Any]:
    queue = routed.get("queue")
    exchange, routing_key = routed.get("exchange"), routed.get("routing_key")
    if queue is None and exchange is None:
        queue = app.amqp.default_queue
    if queue is None:
        kind = routed.get("exchange_type") or getattr(exchange, "type", "direct")
        name = getattr(exchange, "name", exchange)
        return {"exchange": name, "exchange_type": kind, "routing_key": routing_key or ""}
    queue = queue if isinstance(queue, Queue) else app.amqp.queues[queue]
    kind = getattr(queue.exchange, "type", None) or "direct"
    if (not exchange or not routing_key) and kind == "direct":
        return {"queue": queue.name, "exchange": "", "routing_key": queue.name}
    return {
        "queue": queue.name,
        "exchange": getattr(exchange, "name", exchange) or queue.exchange.name,
        "exchange_type": kind,
        "routing_key": routing_key or queue.routing_key,
    }


def _eta_ms(app: Any, headers: dict[str, Any]) -> int | None:
    eta = headers.get("eta")
    if not eta:
        return None
    try:
        parsed: Any = maybe_iso8601(eta)
        return round(maybe_make_aware(parsed, app.timezone).timestamp() * 1000)
    except (TypeError, ValueError, OverflowError) as exc:
        raise OptionError("eta", eta, "a time that has a date in UTC, too") from exc
