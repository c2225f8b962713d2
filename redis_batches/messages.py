"""Celery's messages as envelopes and back.

A whole message of protocol 2 is about 1 KB, most of it the same in every call. An envelope keeps
what differs from what `defaults` derives from the task's name, the id and the arguments.

See https://docs.celeryq.dev/en/stable/internals/protocol.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.app.amqp import AMQP
from celery.app.task import Context
from celery.utils.saferepr import saferepr

from redis_batches.codec import Envelope

#: Message properties that have a meaning for a request.
REPLY_TO = "reply_to"
CORRELATION_ID = "correlation_id"
PRIORITY = "priority"
_NO_EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
_REPRS = ("argsrepr", "kwargsrepr")


def defaults(task: str, task_id: str, ignore_result: bool) -> dict[str, Any]:
    """Returns the headers of a plain call, but for the two reprs.

    Args:
        task: Name of the task.
        task_id: The id.
        ignore_result: The task's own option.
    """
    return {
        "lang": "py",
        "task": task,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "origin": "",
        "ignore_result": ignore_result,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }


def pack(
    task: str,
    headers: Mapping[str, Any],
    body: tuple[Any, Any, Any],
    *,
    ignore_result: bool,
    keep_reprs: bool,
    reply_to: str | None,
    priority: int | None,
    properties: Mapping[str, Any] | None = None,
) -> Envelope:
    """Returns the envelope of a message.

    Args:
        task: Name of the task.
        headers: As of protocol 2.
        body: (args, kwargs, embed).
        ignore_result: The task's own option.
        keep_reprs: Whether the caller chose `argsrepr` or `kwargsrepr`.
        reply_to: The message's property, if somebody listens there.
        priority: The message's property.
        properties: Other properties of the message.
    """
    derived = defaults(task, headers["id"], ignore_result)
    keep_reprs = keep_reprs or not isinstance(body[0], tuple)
    kept = {
        name: value
        for name, value in headers.items()
        if (name not in derived or derived[name] != value) and (keep_reprs or name not in _REPRS)
    }
    told = {**(properties or {}), REPLY_TO: reply_to or None, PRIORITY: priority}
    if told.get(CORRELATION_ID) == headers["id"]:
        del told[CORRELATION_ID]
    return Envelope(kept, body, {name: told[name] for name in told if told[name] is not None})


def unpack(
    task: str,
    task_id: str,
    envelope: Envelope,
    *,
    ignore_result: bool,
    hostname: str,
    route: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns what Celery calls a request dict: headers, properties and arguments of a call."""
    args, kwargs, _ = envelope.body
    headers = {**defaults(task, task_id, ignore_result), **envelope.headers}
    derived = {CORRELATION_ID: task_id, REPLY_TO: "", PRIORITY: None}
    properties = {**derived, **envelope.properties}
    if "argsrepr" not in headers:
        headers["argsrepr"] = saferepr(tuple(args), AMQP.argsrepr_maxsize)
        headers["kwargsrepr"] = saferepr(kwargs, AMQP.kwargsrepr_maxsize)
    return {
        **headers,
        "properties": properties,
        "reply_to": properties[REPLY_TO] or None,
        "correlation_id": properties[CORRELATION_ID],
        "hostname": hostname,
        "delivery_info": delivery_info(envelope, route),
        "args": args,
        "kwargs": kwargs,
    }


def delivery_info(envelope: Envelope, route: Mapping[str, Any]) -> dict[str, Any]:
    """Returns where a call was routed, in the form that Celery's requests have it."""
    return {
        "exchange": route.get("exchange", ""),
        "routing_key": route.get("routing_key"),
        "priority": envelope.properties.get(PRIORITY),
        "redelivered": False,
    }


def context(request_dict: Mapping[str, Any], embed: Mapping[str, Any] | None) -> Context:
    """Returns the request context with which Celery settles one call."""
    fields = {**request_dict, **(embed or _NO_EMBED), "is_eager": False}
    args, kwargs = fields.pop("args"), fields.pop("kwargs")
    return Context(fields, args=args, kwargs=kwargs, called_directly=False)


def brief_context(envelope: Envelope) -> Context:
    """Returns a request context with only the headers that an envelope keeps."""
    # Its constructor takes as long as all else that it takes to store a result.
    brief = Context.__new__(Context)
    brief.__dict__.update(envelope.headers)
    return brief


def from_protocol_1(
    body: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], tuple[Any, Any, Any]]:
    """Returns the headers and the body of protocol 2 for a message of protocol 1.

    Args:
        body: The message's body.
        given: The message's headers, which are the caller's own.
    """
    moved = {"args", "kwargs", "callbacks", "errbacks", "chord", "taskset", "utc"}
    headers = {**(given or {}), **{name: body[name] for name in body if name not in moved}}
    headers["group"] = body.get("taskset")
    embed = {**_NO_EMBED, **{name: body.get(name) for name in ("callbacks", "errbacks", "chord")}}
    return headers, (body.get("args") or (), body.get("kwargs") or {}, embed)
