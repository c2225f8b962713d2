"""Requests that can be decoded, in whose fields senders wrote what no call has."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import fakeredis
import pytest
from celery import states
from celery.exceptions import Ignore, Retry

from redis_batches import SimpleRequest
from redis_batches.testing.worker import InProcess, in_process
from redis_batches.wire.envelope import Envelope, decode, encode
from tests.support import raw

HEADERS = [
    *("lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries"),
    *("timelimit", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result"),
    *("replaced_task_nesting", "stamped_headers", "stamps", "headers", "redis_batches"),
    *("compression", "get", "update", "children", "_children", "called_directly", "is_eager"),
    *("hostname", "utc", "args", "kwargs", "properties", "delivery_info", "callbacks"),
    *("errbacks", "chain", "chord", "taskset", "loglevel"),
]
EMBED = ["callbacks", "errbacks", "chain", "chord", "of its own"]
PROPERTIES = ["reply_to", "correlation_id", "priority", "of its own"]
FIELDS = [
    *(("headers", name) for name in HEADERS),
    *(("embed", name) for name in EMBED),
    *(("properties", name) for name in PROPERTIES),
]
#: One of every JSON type, and the odder ones of some.
VALUES: list[Any] = [
    *(None, True, False, 0, 5, -1, 1.5, 2**31, 10**400, "", "x", "a\nb", "x" * 5000, "\ud800"),
    *([], [1], ["x"], [[]], [None, None], [{}], {}, {"a": 1}, {"task": 5}, {"task": "x"}),
    *([{"task": "x", "args": 5}], [{"task": "x"}], {"task": "x", "options": {}, "chord_size": "y"}),
    [{"task": "x", "args": [], "kwargs": {}, "options": {"queue": 5}}],
    {"subtask_type": "chord", "task": "celery.chord"},
    [{"subtask_type": "group", "task": "celery.group", "kwargs": {"tasks": 5}}],
]


class Wrong(Exception):
    """What the functions raise."""


def look(requests: list[SimpleRequest]) -> None:
    """Reads all that a function can read."""
    for request in requests:
        json.dumps([request.request_dict, request.delivery_info], default=str)
        assert request.context.id == request.id
        assert not request.is_expired()
        assert request.retries >= 0
        assert "\n" not in repr(request)


def returns(requests: list[SimpleRequest]) -> list[Any]:
    """Returns what each request was called with."""
    look(requests)
    return [request.args[0] for request in requests]


def raises(requests: list[SimpleRequest]) -> None:
    """Fails each."""
    look(requests)
    raise Wrong


def settles(requests: list[SimpleRequest]) -> None:
    """Tells each by itself: one that may not, and one that may run again."""
    look(requests)
    for request in requests:
        if request.args[0] % 2:
            request.fail(Wrong())
        else:
            request.succeed(request.args[0])


def replace(task: Any, task_id: str, part: str, name: str, value: Any) -> None:
    """Writes a field of a stored request."""
    store = task.inspector._store
    items = raw.key(store, "items")
    stored = raw.client(store).hget(items, task_id)
    *fields, data = stored.split(b":", 3)
    found = decode(data, None)
    args, kwargs, embed = found.body
    parts = {"headers": found.headers, "embed": embed or {}, "properties": found.properties}
    parts[part][name] = value
    envelope = Envelope(parts["headers"], (args, kwargs, parts["embed"]), parts["properties"])
    raw.client(store).hset(items, task_id, b":".join((*fields, encode(envelope, "json"))))


def answer(here: InProcess) -> None:
    """Answers a doorbell, whatever Celery is told."""
    with suppress(Wrong, Retry, Ignore):
        here.answer(force=True)


@pytest.fixture(params=["memory", "redis"])
def results(request: pytest.FixtureRequest) -> fakeredis.FakeServer | None:
    """Where results go: states are told one by one, or together."""
    return fakeredis.FakeServer() if request.param == "redis" else None


@pytest.mark.parametrize("function", [returns, raises, settles])
def test_an_odd_request_costs_only_itself(
    function: Callable[..., Any], results: fakeredis.FakeServer | None
) -> None:
    """It fails, or runs where that is harmless; the others get theirs, and nothing is left."""
    ended = {
        returns: [states.SUCCESS] * 2,
        raises: [states.FAILURE] * 2,
        settles: [states.SUCCESS, states.FAILURE],
    }[function]
    size = len(VALUES) + 2
    with in_process(function, size, results=results) as here:
        for number, (part, name) in enumerate(FIELDS):
            first, *odd, last = (here.task.delay(n % 2) for n in (0, *range(len(VALUES)), 1))
            for call, value in zip(odd, VALUES, strict=True):
                replace(here.task, call.id, part, name, value)
            answer(here)

            assert [first.state, last.state] == ended, (part, name)
            stats = here.task.stats()
            left = {count: stats[count] for count in ("waiting", "delayed", "running")}
            assert left == {"waiting": 0, "delayed": 0, "running": 0}, (part, name)
            assert stats["acked"] + stats["dead"] == size * (number + 1), (part, name)
            for call, value in zip(odd, VALUES, strict=True):
                untold = name == "ignore_result" and value
                assert untold or call.state in states.READY_STATES, (part, name, value)


def test_a_request_that_is_no_call_says_why() -> None:
    """Its caller reads which fields were odd and what they may hold, and not what they held."""
    with in_process(returns, 1) as here:
        result = here.task.delay(1)
        replace(here.task, result.id, "headers", "retries", "secret")
        replace(here.task, result.id, "embed", "chord", "secret")
        answer(here)

        assert str(result.result) == (
            "the stored request is no call: retries is not an int from 0 to 1,000,000, "
            "chord is not a signature"
        )
        (letter,) = here.task.inspector.list()
        assert "retries is not" in letter.error
        assert "secret" not in letter.error


def test_an_errback_that_raises_costs_only_its_own_call(
    results: fakeredis.FakeServer | None,
) -> None:
    """Its caller is told the outcome of the call, and the others theirs."""
    with in_process(settles, 3, results=results) as here:

        @here.task.app.task(name="bad", shared=False)
        def bad(request: Any, exc: Any, traceback: Any) -> None:
            raise OverflowError

        first = here.task.delay(0)
        odd = here.task.apply_async((1,), link_error=bad.s())
        last = here.task.delay(1)
        answer(here)

        assert [call.state for call in (first, odd, last)] == ["SUCCESS", "FAILURE", "FAILURE"]
        assert isinstance(odd.result, Wrong)
        stats = here.task.stats()
        assert (stats["waiting"], stats["delayed"], stats["acked"]) == (0, 0, 3)
