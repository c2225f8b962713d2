"""The last hop of `apply_async`: into Redis instead of the broker.

Celery builds the message, routes it and sends its signals as for any task. It gets a router that
remembers where the message would go, and a producer whose `publish` pushes into Redis.
"""

from __future__ import annotations

from datetime import timezone
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery.backends.rpc import RPCBackend
from celery.utils.log import get_task_logger
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu import Queue

from redis_batches import messages
from redis_batches.codec import encode
from redis_batches.config import check_task_id
from redis_batches.doorbell import ring
from redis_batches.errors import BacklogFull, DuplicateTaskId, PayloadTooLarge
from redis_batches.model import Group, Outgoing, Status
from redis_batches.runtime import runtime_of

if TYPE_CHECKING:
    from redis_batches.task import Batches

logger = get_task_logger(__name__)


class Hop:
    """One call on its way: a stand-in for both the router and the kombu producer.

    Args:
        task: The batch task that is called.
        own_id: Whether Celery made the id for this very call.
        keep_reprs: Whether the caller chose `argsrepr` or `kwargsrepr`.
        producer: The broker's producer for a doorbell, or None for one of the pool.
    """

    def __init__(self, task: Batches, *, own_id: bool, keep_reprs: bool, producer: Any) -> None:
        self._task = task
        self._app: Any = task.app
        self._nonce = "" if own_id else uuid4().hex[:16]
        self._keep_reprs = keep_reprs
        self._producer = producer
        self._destination: dict[str, Any] = {}

    def route(self, options: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Routes as the app's router does, and remembers the answer for the doorbell."""
        routed: dict[str, Any] = self._app.amqp.router.route(options, *args, **kwargs)
        self._destination = destination(self._app, routed)
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
        **_: Any,
    ) -> None:
        """Pushes one call into Redis, and rings if that makes a batch due.

        Raises:
            EncodeError: The arguments cannot be serialized.
            PayloadTooLarge: The encoded call is too large.
            DuplicateTaskId: Another call with this id waits or runs.
            BacklogFull: Too many requests wait.
            StoreError: Redis could not be reached, or refused.
        """
        if isinstance(body, dict):
            headers, body = messages.from_protocol_1(body)
        headers = headers or {}
        task_id = check_task_id(headers["id"])
        envelope = messages.pack(
            self._task.name,
            headers,
            body,
            ignore_result=bool(self._task.ignore_result),
            keep_reprs=self._keep_reprs,
            reply_to=reply_to if self._listens(reply_to) else None,
            priority=priority,
        )
        data = encode(envelope, serializer, compression)
        limit = runtime_of(self._app).settings.max_payload
        if len(data) > limit:
            raise PayloadTooLarge(len(data), limit)
        self._push(Outgoing(task_id, self._nonce, _eta_ms(self._app, headers), data), priority)

    def _push(self, request: Outgoing, priority: int | None) -> None:
        task, runtime = self._task, runtime_of(self._app)
        group = Group.of(self._destination)
        batch = task.running_batch(request.id)
        pushed = runtime.store(task.name).push(
            group, task.trigger, [request], batch.token if batch else ""
        )
        status = pushed.statuses[0]
        if status is Status.FULL:
            raise BacklogFull(task.name, runtime.settings.max_pending, [request.id])
        if status is Status.DUPLICATE:
            raise DuplicateTaskId(request.id)
        if batch:
            batch.requeued(request.id)
        ring(self._app, task.name, pushed.bells, priority=priority, producer=self._producer)

    def _listens(self, reply_to: str | None) -> bool:
        """Whether somebody reads replies there: only the rpc backend, or where the caller said."""
        return reply_to != self._app.thread_oid or isinstance(self._task.backend, RPCBackend)


class SentEvents:
    """Sends the task-sent event of a pushed call to the broker, where monitors listen."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def publish(self, kind: str, fields: dict[str, Any], _: Any, **options: Any) -> None:
        """Publishes as Celery's dispatcher does; the call is stored, so no error leaves."""
        try:
            with self._app.producer_or_acquire() as producer:
                self._app.amqp._event_dispatcher.publish(kind, fields, producer, **options)
        except Exception as exc:
            logger.warning("cannot send the event %s: %r", kind, exc)


def destination(app: Any, routed: dict[str, Any]) -> dict[str, Any]:
    """Returns where a doorbell for routed options goes, as `send_task_message` decides it."""
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
    parsed: Any = maybe_iso8601(eta)
    aware = maybe_make_aware(parsed, app.timezone)
    return round(aware.astimezone(timezone.utc).timestamp() * 1000)
