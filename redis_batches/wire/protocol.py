"""Celery's messages as envelopes and back.

A whole message of protocol 2 is about 1 KB, most of it the same in every call. An envelope keeps
what differs from what `defaults` derives from the task's name, the id and the arguments.

See https://docs.celeryq.dev/en/stable/internals/protocol.html.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from celery.app.amqp import AMQP
from celery.app.task import Context
from celery.utils.saferepr import saferepr
from celery.utils.time import maybe_iso8601

from redis_batches.wire.envelope import Envelope

#: Message properties that have a meaning for a request.
REPLY_TO = "reply_to"
CORRELATION_ID = "correlation_id"
PRIORITY = "priority"
_NO_EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
_REPRS = ("argsrepr", "kwargsrepr")
#: Names that a header cannot have in a request context: there they are what its class does.
_OF_CONTEXT = {name for name in dir(Context) if name[0] == "_" or callable(getattr(Context, name))}

#: Retries after which doubling a pause would take longer than any pause.
MAX_RETRIES = 1_000_000
_MAX_INDEX = 2**53


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_int(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and least <= value <= most


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and (not value or maybe_iso8601(value) is not None)
    except (ValueError, OverflowError):
        return False


def _is_signature(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    args, kwargs, options = (value.get(name) for name in ("args", "kwargs", "options"))
    return (
        isinstance(value.get("task"), str)
        and isinstance(args or (), (list, tuple))
        and isinstance(kwargs or {}, Mapping)
        and isinstance(options or {}, Mapping)
    )


def _are_signatures(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_signature, value))


def _are_links(value: Any) -> bool:
    # Celery takes the name of a task for a signature of it.
    return isinstance(value, (list, tuple)) and all(_is_text(v) or _is_signature(v) for v in value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2


def _are_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple, set)) and all(map(_is_text, value))


_Rules: TypeAlias = dict[str, tuple[Callable[[Any], bool], str]]
#: What must be in the fields that a run reads, if it is not None; all others may hold anything.
_HEADERS: _Rules = {
    "expires": (_is_time, "a time in ISO 8601"),
    "retries": (lambda n: _is_int(n, 0, MAX_RETRIES), f"an int from 0 to {MAX_RETRIES:,}"),
    "timelimit": (_is_pair, "a list of two"),
    "group": (_is_text, "a text"),
    "group_index": (lambda n: _is_int(n, -_MAX_INDEX, _MAX_INDEX), "an int below 2**53"),
    "replaced_task_nesting": (lambda n: _is_int(n, 0, MAX_RETRIES), "an int that is not negative"),
    "stamped_headers": (_are_texts, "a list of texts"),
    "stamps": (lambda value: isinstance(value, Mapping), "a mapping"),
    "headers": (lambda value: isinstance(value, Mapping), "a mapping"),
}
_PROPERTIES: _Rules = {
    REPLY_TO: (_is_text, "a text"),
    CORRELATION_ID: (_is_text, "a text"),
    PRIORITY: (lambda n: _is_int(n, 0, 255), "an int from 0 to 255"),
}
_EMBED: _Rules = {
    "callbacks": (_are_links, "a list of signatures"),
    "errbacks": (_are_links, "a list of signatures"),
    "chain": (_are_signatures, "a list of signatures"),
    "chord": (_is_signature, "a signature"),
}


class Odd(NamedTuple):
    """A field in which there is what no call has.

    Attributes:
        name: Of the header, the property, or the part of the body.
        value: What was in it.
        allowed: What may be in it.
    """

    name: str
    value: Any
    allowed: str


def drop_odd(envelope: Envelope) -> list[Odd]:
    """Takes the fields in which there is what no call has out of an envelope; returns them.

    Senders are free in what they write. What is left can be told like any call's outcome, to all
    that hangs on it.
    """
    odd = _drop(envelope.headers, _HEADERS)
    if envelope.properties:
        odd += _drop(envelope.properties, _PROPERTIES)
    if envelope.body[2]:
        odd += _drop(envelope.body[2], _EMBED)
    return odd


def _drop(fields: dict[str, Any], rules: _Rules) -> list[Odd]:
    odd = [
        Odd(name, value, rules[name][1])
        for name, value in fields.items()
        if name in rules and value is not None and not rules[name][0](value)
    ]
    for name, _, _ in odd:
        del fields[name]
    return odd


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
    known = {**(properties or {}), REPLY_TO: reply_to or None, PRIORITY: priority}
    if known.get(CORRELATION_ID) == headers["id"]:
        del known[CORRELATION_ID]
    return Envelope(kept, body, {name: known[name] for name in known if known[name] is not None})


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
        headers["argsrepr"] = _repr(tuple(args), AMQP.argsrepr_maxsize)
        headers["kwargsrepr"] = _repr(kwargs, AMQP.kwargsrepr_maxsize)
    return {
        **headers,
        "id": task_id,
        "retries": headers["retries"] or 0,
        "properties": properties,
        "reply_to": properties[REPLY_TO] or None,
        "correlation_id": properties[CORRELATION_ID],
        "hostname": hostname,
        "delivery_info": delivery_info(envelope, route),
        "args": args,
        "kwargs": kwargs,
    }


def _repr(value: Any, size: int) -> str:
    try:
        return saferepr(value, size)
    except Exception as exc:
        # An object that pickle brought along.
        return f"<no repr: {type(exc).__name__}>"


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
    fields = {**request_dict, **_NO_EMBED, **(embed or {}), "is_eager": False}
    args, kwargs = fields.pop("args"), fields.pop("kwargs")
    for name in _OF_CONTEXT & fields.keys():
        del fields[name]
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
