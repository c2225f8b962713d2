"""Where a call goes: the queue that it is routed to, and so where its doorbells are rung."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger
from kombu import Queue

from redis_batches.core.requests import Group

logger = get_logger(__name__)


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
