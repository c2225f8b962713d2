"""Doorbells: messages without a payload that send some worker to claim a batch.

A doorbell is a message of the user's own task with a marker header. So everything that Celery looks
up by a task's name holds for it: queue, acks_late, time limits, rate limit, annotations, signals.
"""

from __future__ import annotations

import json
import re
import threading
from hashlib import blake2b
from time import monotonic
from typing import Any, TypeAlias
from uuid import uuid4

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger
from kombu import Exchange, Message, Queue
from kombu.serialization import dumps

from redis_batches.app.state import runtime_of
from redis_batches.core.triggers import Bells

logger = get_logger(__name__)

MARKER = "redis_batches"
#: What a worker's main process adds to the marker: whether the run may drain on.
DRAIN_ON = "drain_on"
#: And this: whether the worker's pool ends a run at its time limit.
ENFORCED = "enforced"
ERRBACK = "redis_batches.on_batch_lost"
#: Seconds after which no further doorbell of several is tried.
DEADLINE = 5.0
#: Which group a doorbell was rung for, when (0: not known), and how it is to be answered.
Marker: TypeAlias = dict[str, Any]
_GROUP = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_FLAGS = ("force", "counted", DRAIN_ON)
_MAX_MS = 2**53


def read_marker(headers: Any) -> Marker | None:
    """Returns the marker among a message's headers, or None if it is no doorbell's.

    Anybody may send a header of this name: one that no doorbell has is an ordinary header of an
    ordinary call.

    Args:
        headers: A mapping, or a request context.
    """
    found = headers.get(MARKER)
    if not isinstance(found, dict):
        return None
    group, rung_ms = found.get("group"), found.get("rung_ms")
    well = (
        isinstance(group, str)
        and _GROUP.fullmatch(group)
        and type(rung_ms) is int
        and 0 <= rung_ms < _MAX_MS
        and all(isinstance(found.get(name, False), bool) for name in _FLAGS)
    )
    return found if well else None


def new_token(hostname: str) -> str:
    """Returns a token for a run on a worker; `is_token_of` tells whose it is."""
    return f"{_node(hostname)}-{uuid4().hex}"


def is_token_of(token: str, hostname: str) -> bool:
    """Tells whether a run with this token is one of that worker's."""
    return token.partition("-")[0] == _node(hostname)


def _node(hostname: str) -> str:
    return blake2b(str(hostname).encode(), digest_size=6).hexdigest()


def ring(
    app: Any,
    task: str,
    bells: Bells,
    *,
    priority: int | None = None,
    producer: Any = None,
    force: bool = False,
) -> None:
    """Publishes doorbells, in bounded time; what cannot be published is left to the next sweep.

    The main thread of a worker, which is its event loop, does not even wait for that: there a
    thread publishes them.

    Args:
        app: The app whose broker is used.
        task: The name of the batch task.
        bells: For which group, where, and how many.
        priority: The message priority of the call that caused it.
        producer: A kombu producer to publish with, as it is, or None for one with bounds.
        force: Whether what waits is claimed though it is not due.
    """
    if not bells.count:
        return
    ringer = runtime_of(app).ringer
    if producer is None and ringer and threading.current_thread() is threading.main_thread():
        post(app, task, bells, priority=priority, force=force)
    else:
        ring_now(app, task, bells, priority=priority, producer=producer, force=force)


def post(
    app: Any, task: str, bells: Bells, *, priority: int | None = None, force: bool = False
) -> None:
    """Has doorbells published by the thread of a worker that does that; as `ring`."""
    ringer = runtime_of(app).ringer
    if bells.count and not (ringer and ringer.post(task, bells, priority, force)):
        _give_up(app, task, "too many doorbells wait for the broker")


def ring_now(
    app: Any,
    task: str,
    bells: Bells,
    *,
    priority: int | None = None,
    producer: Any = None,
    force: bool = False,
) -> None:
    """Publishes doorbells in this thread; as `ring`."""

    def send(channel: Any) -> None:
        _publish(app, channel, task, bells, priority, force)

    until = monotonic() + DEADLINE
    try:
        if producer is not None:
            producer.connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)
        for _ in range(bells.count):
            if monotonic() > until:
                raise TimeoutError(f"the broker took more than {DEADLINE:.0f} s")
            if producer is not None:
                send(producer)
            else:
                runtime_of(app).publisher.publish(send)
    except SoftTimeLimitExceeded:
        raise
    except Exception as exc:
        _give_up(app, task, exc)


def _give_up(app: Any, task: str, why: object) -> None:
    if runtime_of(app).quiet.may_say("ring"):
        logger.warning(
            "cannot ring for %s, the next sweep will; more of the next minute is not logged: %s",
            task,
            why,
        )


def local_message(app: Any, task: str, group: str) -> Message:
    """Returns a doorbell that does not travel, for the worker that makes it.

    No script counted it as rung, and nobody delivers it again: it is for what would run too late
    if its doorbells were waited for.
    """
    message = _create(app, task, group, 0, counted=False)
    content_type, encoding, body = dumps(message.body, serializer="json")
    return Message(
        body=body,
        content_type=content_type,
        content_encoding=encoding,
        headers=message.headers,
        properties=message.properties,
        accept={content_type},
    )


def _create(app: Any, task: str, group: str, rung_ms: int, **more: Any) -> Any:
    errback = app.signature(ERRBACK, immutable=False)
    # Never protocol 1, whose messages have no headers that a task sees.
    message = app.amqp.as_task_v2(
        str(uuid4()), task, (), {}, ignore_result=True, errbacks=[errback]
    )
    message.headers[MARKER] = {"group": group, "rung_ms": rung_ms, **more}
    return message


def _publish(
    app: Any, producer: Any, task: str, bells: Bells, priority: int | None, force: bool
) -> None:
    message = _create(app, task, bells.group, bells.rung_ms, force=force)
    route = json.loads(bells.route) if bells.route else {}
    producer.publish(
        message.body,
        exchange=route.get("exchange", ""),
        routing_key=route.get("routing_key", app.conf.task_default_queue),
        declare=_declare(app, route),
        headers=message.headers,
        serializer=app.conf.task_serializer,
        delivery_mode=route.get("delivery_mode") or app.conf.task_default_delivery_mode,
        priority=priority,
        retry=False,
        **message.properties,
    )


def _declare(app: Any, route: dict[str, Any]) -> list[Queue]:
    """Returns the queue to declare first, so that a doorbell of a producer alone is not lost."""
    name = route.get("queue")
    if not name:
        return []
    if name in app.amqp.queues:
        return [app.amqp.queues[name]]
    exchange = Exchange(route.get("exchange") or name, route.get("exchange_type", "direct"))
    return [Queue(name, exchange, route.get("routing_key", name))]
