"""A message of the broker as a call that can be stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from kombu.serialization import registry  # type: ignore[attr-defined]

from redis_batches.app.route import destination
from redis_batches.app.state import runtime_of
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.requests import Group, Outgoing
from redis_batches.core.settings import check_task_id
from redis_batches.wire import protocol
from redis_batches.wire.envelope import Envelope, encode, held_size, wrap

#: Fields of a message of protocol 1 that are no headers in protocol 2.
_BODY = {"args", "kwargs", "callbacks", "errbacks", "chord", "taskset", "utc", "headers"}
#: Properties of a message that its sender chose, and that no doorbell or request has by itself.
_PROPERTIES = ("app_id", "message_id", "type", "user_id")
#: Headers that say how a message travelled; some differ between deliveries of one message.
_TRAVEL = ("redelivered", "x-delivery-count", "x-death", "x-first-death-", "x-last-death-")


@dataclass(frozen=True)
class IncomingCall:
    """A call that came by the broker.

    Attributes:
        request: Celery's request, which acknowledges or rejects the message.
        group: Where the call will wait.
        outgoing: The call as it will be stored.
        first: Whether the broker says that it delivers the message for the first time.
        priority: Of the doorbell that it causes.
    """

    request: Any
    group: Group
    outgoing: Outgoing
    first: bool
    priority: int | None


def prepare(
    task: BatchTask,
    consumer: Any,
    request: Any,
    headers: Mapping[str, Any],
    call: tuple[Any, Any, Any] | None,
) -> IncomingCall:
    """Returns a message as a call that can be stored.

    Args:
        task: The batch task.
        consumer: Celery's consumer, which got the message.
        request: Celery's request of it.
        headers: Its headers, of protocol 2.
        call: Its call, if it is of protocol 1; else its body stays as it is.

    Raises:
        RequestError: It is too large, or its id cannot be stored.
        EncodeError: A call of protocol 1 cannot be serialized again.
    """
    message, task_id = request.message, check_task_id(request.id)
    priority = message.properties.get("priority")
    envelope = _pack(task, request, headers, call or ((), {}, None))
    compression = (message.headers or {}).get("compression")
    data = _encode(envelope, message, compression, decoded=call is not None, app=consumer.app)
    size = held_size(data) if compression else None
    eta_ms = round(request.eta.timestamp() * 1000) if request.eta else None
    info = message.delivery_info or {}
    return IncomingCall(
        request,
        _group_of(consumer.app, info),
        Outgoing(task_id, _nonce(consumer, message, task_id, data), eta_ms, data, size),
        info.get("redelivered") is False,
        priority if isinstance(priority, int) and priority > 0 else None,
    )


def _pack(
    task: BatchTask, request: Any, headers: Mapping[str, Any], call: tuple[Any, Any, Any]
) -> Envelope:
    properties = request.message.properties
    return protocol.pack(
        task.name,
        _clean(headers, request),
        call,
        ignore_result=bool(task.ignore_result),
        keep_reprs=True,
        reply_to=request.reply_to,
        priority=properties.get("priority"),
        properties={
            **{name: properties.get(name) for name in _PROPERTIES},
            protocol.CORRELATION_ID: request.correlation_id,
        },
    )


def _encode(
    envelope: Envelope, message: Any, compression: str | None, *, decoded: bool, app: Any
) -> bytes:
    """Returns the bytes of a call, with the body of its message where that was not decoded."""
    limit = runtime_of(app).settings.max_payload
    if decoded:
        return encode(envelope, registry.type_to_name[message.content_type], compression, limit)
    content = (message.content_type, message.content_encoding or "utf-8")
    head, properties = envelope.headers, envelope.properties
    return wrap(head, message.body, content, compression, properties, limit)


def _nonce(consumer: Any, message: Any, task_id: str, data: bytes) -> str:
    """Returns what is the same at each delivery of a message, and no other call's."""
    digest = blake2b(f"{task_id}\n".encode() + data, digest_size=8)
    if consumer.connection.transport.driver_type == "redis":
        # There the sender gives each message a tag, which stays the same.
        digest.update(str(message.delivery_tag).encode())
    return digest.hexdigest()


def _group_of(app: Any, info: Mapping[str, Any]) -> Group:
    """Returns the group of direct calls that go to the queue which a message came from."""
    exchange, key = info.get("exchange") or "", info.get("routing_key") or ""
    consumed = app.amqp.queues.consume_from
    if not exchange and key in consumed:
        return Group.of(destination(app, {"queue": key}))
    bound = [
        queue for queue in consumed.values() if getattr(queue.exchange, "name", "") == exchange
    ]
    bound.sort(key=lambda queue: queue.routing_key != key)
    if not exchange or not bound:
        return Group.of({"exchange": exchange, "routing_key": key})
    routed = {"queue": bound[0]}
    if getattr(bound[0].exchange, "type", "direct") != "direct":
        routed.update(exchange=exchange, routing_key=key)
    return Group.of(destination(app, routed))


def _clean(headers: Mapping[str, Any], request: Any) -> dict[str, Any]:
    """Returns the headers that the call itself has, as JSON can hold them."""
    kept = {
        name: value
        for name, value in headers.items()
        if value is not None
        and name != "compression"
        and not name.startswith(_TRAVEL)
        and not (name in _BODY and request._decoded)
    }
    if request.expires:
        # Other programs write times in forms that only Celery's parser reads.
        kept["expires"] = request.expires.isoformat()
    safe: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return safe
