"""The last hop of `apply_async`: into Redis instead of the broker.

Celery builds the message, routes it and sends its signals as for any task. It gets a router that
remembers where the message would go, and a producer whose `publish` pushes into Redis.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple
from uuid import uuid4

from celery.backends.rpc import RPCBackend
from celery.utils.time import maybe_iso8601, maybe_make_aware

from redis_batches.app import chords
from redis_batches.app.route import destination
from redis_batches.app.state import runtime_of
from redis_batches.buffer.group_commit import Committed
from redis_batches.calls.message_options import OF_THE_MESSAGE, check_routed
from redis_batches.calls.publish_retry import PublishRetry
from redis_batches.calls.push import committing, finish, push, push_body
from redis_batches.calls.sent_events import SentEvents
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.errors import OptionError
from redis_batches.core.requests import Group, Outgoing, Status
from redis_batches.core.settings import check_task_id
from redis_batches.wire import protocol
from redis_batches.wire.envelope import Envelope, encode, held_size

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
        envelope = self._pack(headers, body, reply_to, priority, properties)
        group, eta_ms = Group.of(self._destination), _eta_ms(self._app, headers)
        self._store(Made(task_id, envelope, serializer, compression, group, eta_ms, priority))

    def _pack(
        self,
        headers: dict[str, Any],
        body: Any,
        reply_to: str | None,
        priority: int | None,
        properties: dict[str, Any],
    ) -> Envelope:
        envelope = protocol.pack(
            self._task.name,
            headers,
            body,
            ignore_result=bool(self._task.ignore_result),
            keep_reprs=self._keep_reprs,
            reply_to=reply_to if self._listens(reply_to) else None,
            priority=priority,
            properties={k: v for k, v in properties.items() if k not in OF_THE_MESSAGE},
        )
        for name, value, allowed in protocol.drop_odd(envelope):
            raise OptionError(_OPTIONS.get(name, name), value, allowed)
        return envelope

    def _store(self, made: Made) -> None:
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
            pushed = push_body(send, slack) if body else send()
            done = Committed(pushed.statuses[0], pushed.bells, pushed.missing)
        else:
            done = committing(task, made.group, made.priority)(request)
        if batch and done.status not in (Status.FULL, Status.DUPLICATE, Status.FORGOTTEN):
            batch.requeued(request.id)
        finish(task, request.id, done, made.priority, self._producer)

    def _listens(self, reply_to: str | None) -> bool:
        """Whether somebody reads replies there: only the rpc backend, or where the caller said."""
        return reply_to != self._app.thread_oid or isinstance(self._task.backend, RPCBackend)


def stand_in(task: BatchTask, task_id: str | None, producer: Any, options: dict[str, Any]) -> Hop:
    """Returns a call's stand-in, and puts it into the call's options in the place of a router.

    Args:
        task: The batch task that is called.
        task_id: The id that its caller chose, if any.
        producer: The broker's producer that the caller chose, if any.
        options: Of the call; those that say how doorbells are sent are taken out.
    """
    app: Any = task.app
    chosen = {name: options.pop(name, None) for name in ("connection", "publisher")}
    hop = Hop(
        task,
        nonce=nonce_of(task_id, options),
        keep_reprs="argsrepr" in options or "kwargsrepr" in options,
        producer=producer_of(app, {**chosen, "producer": producer}),
        router=options.get("router"),
    )
    options["router"] = hop
    if app.conf.task_send_sent_event:
        options["event_dispatcher"] = SentEvents(app)
    return hop


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


def producer_of(app: Any, options: Mapping[str, Any]) -> Any:
    """Returns the kombu producer that a caller chose for its doorbells, or None."""
    if options.get("connection") is not None:
        return app.amqp.Producer(options["connection"], auto_declare=False)
    return options.get("producer") or options.get("publisher")


def _eta_ms(app: Any, headers: dict[str, Any]) -> int | None:
    eta = headers.get("eta")
    if not eta:
        return None
    try:
        parsed: Any = maybe_iso8601(eta)
        return round(maybe_make_aware(parsed, app.timezone).timestamp() * 1000)
    except (TypeError, ValueError, OverflowError) as exc:
        raise OptionError("eta", eta, "a time that has a date in UTC, too") from exc
