"""Many calls at once: streamed into Redis, up to 500 requests and 8 MB in one script call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from celery.backends.rpc import RPCBackend
from kombu.exceptions import EncodeError

from redis_batches.app.backends import needs_no_word
from redis_batches.app.doorbell import ring
from redis_batches.app.state import runtime_of
from redis_batches.buffer.chunks import PUSH_BYTES, PUSH_CHUNK
from redis_batches.calls.push import push
from redis_batches.calls.send import producer_of
from redis_batches.calls.template import Template, takes_templates
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.errors import (
    BacklogFull,
    BatchesError,
    NotReplicated,
    OptionError,
    RequestError,
    ResendTooLate,
    UnusableCall,
)
from redis_batches.core.requests import Outgoing, Status

Pair: TypeAlias = tuple[Any, Any]

#: What belongs to one call, and so cannot hold for all.
_OWN = ("task_id", "argsrepr", "kwargsrepr", "group_id", "group_index", "chord", "chain")
#: What says how doorbells are sent.
_OF_BELLS = {"producer", "publisher", "connection"}
_UNUSABLE = (EncodeError, RequestError, TypeError)


def pairs_of(calls: Iterable[Any]) -> Iterator[Pair]:
    """Yields (args, kwargs) of calls, each a tuple of positional or a mapping of keyword arguments.

    One that is neither becomes a pair that `Bulk` refuses.
    """
    for call in calls:
        # What is asked of an abstract class takes longer, and most are tuples.
        if not isinstance(call, tuple) and isinstance(call, Mapping):
            yield (), call
        else:
            yield call, None


class Bulk:
    """Calls of a task that share all options.

    Args:
        task: The batch task.
        options: Of `apply_async`, but those that belong to one call.

    Attributes:
        results: Of the calls stored so far, in order.

    Raises:
        OptionError: An option cannot hold for all.
    """

    def __init__(self, task: BatchTask, options: dict[str, Any]) -> None:
        for name in _OWN:
            if options.get(name) is not None:
                raise OptionError(name, options[name], "left out: it belongs to one call, not many")
        self._task = task
        self._options = options
        #: Rings; it stays out of the sample that a template is made of.
        self._producer = producer_of(task.app, options)
        self._shared = {name: options[name] for name in options.keys() - _OF_BELLS}
        self._template: Template | None = None
        self._chunk: list[Outgoing] = []
        self._size = 0
        self.results: list[Any] = []

    def send(self, pairs: Iterable[Pair]) -> list[Any]:
        """Stores calls in their order; returns their results.

        Raises:
            UnusableCall: One cannot become a request; nothing of its script call was stored.
            BacklogFull: Too many requests wait.
            StoreError: Redis could not be reached, or refused.
            NotReplicated: They are stored, but not on as many replicas as a setting asks for.
        """
        try:
            for index, pair in enumerate(pairs):
                try:
                    self._add(*_checked(*pair))
                except _UNUSABLE as exc:
                    raise UnusableCall(index, len(self.results), exc) from exc
            self._store_chunk()
        except BatchesError as exc:
            exc.accepted = tuple(self.results)
            raise
        return self.results

    def _add(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._chunk:
            # Anew for each chunk: settings may change meanwhile, and a countdown begins now.
            self._template = self._make_template(args, kwargs)
        if self._template is None:
            self.results.append(self._task.apply_async(args, kwargs, **self._options))
            return
        request = self._template.request(args, kwargs)
        size = len(request.envelope)
        if self._chunk and self._size + size > PUSH_BYTES:
            self._store_chunk()
        self._chunk.append(request)
        self._size += size
        if len(self._chunk) == PUSH_CHUNK:
            self._store_chunk()

    def _make_template(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Template | None:
        """Returns what the next calls have in common, or None if each goes its own way."""
        task = self._task
        if not takes_templates(task) or self._options.get("router") is not None:
            return None
        backend = task.backend
        if not needs_no_word(backend) and not isinstance(backend, RPCBackend):
            return None
        return Template(task, args, kwargs, self._shared)

    def _store_chunk(self) -> None:
        """Stores the chunk in one script call, and rings."""
        chunk, template, task = self._chunk, self._template, self._task
        if not chunk or template is None:
            return
        self._chunk, self._size = [], 0
        runtime = runtime_of(task.app)
        pushed = push(task, template.group, chunk, template.retry)
        parent = task.app.current_worker_task if self._options.get("add_to_parent", True) else None
        bells, priority = pushed.bells, template.priority
        ring(task.app, task.name, bells, priority=priority, producer=self._producer)
        stored: list[str] = []
        refused: list[str] = []
        unknown: list[str] = []
        into = {Status.FULL: refused, Status.FORGOTTEN: unknown}
        for request, status in zip(chunk, pushed.statuses, strict=True):
            into.get(status, stored).append(request.id)
        results = list(template.results(stored))
        self.results += results
        if parent is not None:
            for result in results:
                parent.add_trail(result)
        if unknown:
            raise ResendTooLate(task.name, unknown)
        if refused:
            raise BacklogFull(task.name, runtime.settings.max_pending, refused)
        if pushed.missing:
            raise NotReplicated(task.name, pushed.missing)


def _checked(args: Any, kwargs: Any = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args is not None and not isinstance(args, (tuple, list)):
        raise TypeError(
            f"{_named(args)} holds no arguments: pass a tuple of positional arguments, (x,) for "
            "one, or a dict of keyword arguments"
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(
            f"{_named(kwargs)} holds no keyword arguments: pass a dict, or None if there are none"
        )
    return tuple(args or ()), dict(kwargs or {})


def _named(value: Any) -> str:
    """Returns a value's type as a text has it, without the value, which may be secret."""
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
