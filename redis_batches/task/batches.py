"""`Batches`, the task class: how a batch task is called, and how it retries."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import partial
from typing import Any

from celery import Task
from celery.exceptions import Retry
from celery.utils.functional import head_from_fun
from kombu.serialization import prepare_accept_content
from kombu.utils.uuid import uuid

from redis_batches.app.doorbell import read_marker, ring
from redis_batches.app.route import known_routes
from redis_batches.app.state import Runtime, runtime_of
from redis_batches.calls.bulk import Bulk, pairs_of
from redis_batches.calls.fast_path import FastPath
from redis_batches.calls.send import stand_in
from redis_batches.core.outcomes import Verb
from redis_batches.core.settings import check_name, check_task_id, make_trigger
from redis_batches.core.triggers import Trigger
from redis_batches.operate.flush import flush
from redis_batches.operate.inspector import Inspector
from redis_batches.operate.revoke import BatchResult
from redis_batches.runs.alone import run_alone
from redis_batches.runs.mark_as import watch_app
from redis_batches.runs.request import Settler, SimpleRequest
from redis_batches.runs.runner import RUNNING, Runner
from redis_batches.runs.running import running
from redis_batches.task.autoretry import autoretry_plan
from redis_batches.task.checks import (
    check_function,
    check_option_names,
    check_pydantic,
    check_typing,
)
from redis_batches.wire.options import check_call
from redis_batches.worker import control, steps

_PLAIN_ARGS, _PLAIN_KWARGS = (tuple, type(None)), (dict, type(None))


class Batches(Task):  # type: ignore[type-arg]
    """A task whose calls wait in Redis and run in batches.

    Its function takes one argument, a list of `SimpleRequest`. What it returns only feeds signals:
    settle requests with `request.succeed(value)` or `app.backend.mark_as_done(...)`, or use
    `batched_task`, for which the returned value counts.

    Attributes:
        flush_every: Requests that make a full batch, and the most that one batch holds.
        flush_interval: Seconds that the oldest request waits for others; 0: until a worker is free.
    """

    abstract = True
    typing = False
    acks_late = True
    Request = "redis_batches.worker.doorbell_request:DoorbellRequest"
    Strategy = "redis_batches.worker.incoming:Strategy"
    flush_every: int = 10
    flush_interval: float = 30
    #: The signature that Celery checks calls against, if `typing` gives one.
    __header__: Any
    #: Whether the returned list or dict holds the requests' results.
    returns_results: bool = False
    #: Tells batch tasks of this package from others that have `flush_every`.
    waits_in_redis = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuses options that are not allowed as soon as a task's class exists."""
        super().__init_subclass__(**kwargs)
        make_trigger(cls.flush_every, cls.flush_interval)
        check_option_names(cls.__dict__, {name for base in cls.__mro__[1:] for name in vars(base)})
        check_pydantic(cls.__dict__.get("_dump_pydantic_arguments") is not None)
        if check_typing(cls.__dict__.get("typing")):
            cls.__header__ = staticmethod(head_from_fun(cls.__dict__["typing"]))
            cls.typing = True

    def __init__(self) -> None:
        check_function(self.run, bound=False)
        if self.name:
            check_name("the task's name", self.name)
        self.function = self.run
        self.run = self._enter  # type: ignore[method-assign]
        self._fast_path = FastPath(self)

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Prepares the app at the first batch task: the sweeps, and the result backends."""
        super().on_bound(app)
        watch_app(app)
        steps.install(app, cls)
        control.install(app)

    # -- calling

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> Any:
        """Calls the task as `celery.Task.apply_async` does; the call waits in Redis.

        Raises:
            EncodeError: The arguments cannot be serialized.
            PayloadTooLarge: The encoded call is too large.
            InvalidTaskId: `task_id` has characters that it may not have.
            DuplicateTaskId: A call with this `task_id` waits or runs.
            BacklogFull: Too many requests wait.
            OptionError: An option has no meaning for a call that waits in Redis, such as a time
                limit, which holds for a batch, or its value has none.
            TypeError: The arguments do not fit the signature that the task has as `typing`.
            StoreError: Redis could not be reached; it is a `kombu` `OperationalError`.
        """
        if task_id is None and not (options or producer or link or link_error or shadow):
            plain = type(args) in _PLAIN_ARGS and type(kwargs) in _PLAIN_KWARGS
            call = (args or (), kwargs or {})
            if plain and (way := self._fast_path.find(*call)) is not None:
                return self._fast_path.call(way, *call)
        app: Any = self.app
        check_call(self, options)
        if task_id is not None:
            check_task_id(task_id)
        if not app.conf.task_always_eager:
            producer = stand_in(self, task_id, producer, options)
        return super().apply_async(
            args, kwargs, task_id or uuid(), producer, link, link_error, shadow, **options
        )

    def delay_many(self, calls: Iterable[Any]) -> list[Any]:
        """Calls the task many times, 500 calls per script call; see `apply_async_many`.

        Args:
            calls: Each a tuple of positional or a mapping of keyword arguments; any number.
        """
        return self.apply_async_many(pairs_of(calls))

    def apply_async_many(self, pairs: Iterable[Any], **options: Any) -> list[Any]:
        """Calls the task many times with the same options, 500 calls per script call.

        The calls are read as they are stored. If `pairs` itself raises, those that were read since
        the last script call are not stored.

        Args:
            pairs: (args, kwargs) of each call; any number.
            options: Of `apply_async`, but those that belong to one call, such as `task_id`.

        Returns:
            The result of each call, in order.

        Raises:
            OptionError: An option cannot hold for all calls.
            UnusableCall: One call cannot be serialized, or is too large; it says which, and
                nothing of its script call was stored.
            BacklogFull: Too many requests wait.
            StoreError: Redis could not be reached, or refused; as all these errors it says in
                `accepted` what was stored.
        """
        check_call(self, options)
        return Bulk(self, options).send(pairs)

    def AsyncResult(self, task_id: str, **kwargs: Any) -> BatchResult:  # noqa: N802
        """Returns the result of a call, with a `revoke` that needs no worker."""
        kwargs.setdefault("task_name", self.name)
        kwargs.setdefault("app", self._get_app())  # type: ignore[attr-defined]
        if "backend" not in kwargs:
            kwargs["backend"] = self.backend
        return BatchResult(task_id, **kwargs)

    def flush(self) -> int:
        """Runs what waits now, full or not; returns how many batches were asked for."""
        return flush(self, self._runtime.store(self.name))

    @property
    def inspector(self) -> Inspector:
        """Lists, requeues and drops dead letters, and repairs indexes."""
        return Inspector(
            self._runtime.store(self.name),
            self.trigger,
            partial(known_routes, self),
            lambda bells: ring(self.app, self.name, bells),
            prepare_accept_content(self.app.conf.accept_content),
        )

    def stats(self) -> dict[str, int]:
        """Returns counts of requests; see `redis_batches.buffer.store.Store.stats` for the keys."""
        return self._runtime.store(self.name).stats()

    # -- running

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: Any = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """Retries every request of the running batch that has no outcome yet.

        As `celery.Task.retry`, but nothing is published: the requests wait in Redis, each with a
        count of its own. With `throw` it raises `Retry`, or `exc` if no request has tries left.
        Other options of `apply_async`, such as `priority`, hold for each request from then on.

        Raises:
            OptionError: `countdown` or `eta` is no time; nothing was retried.
            TypeError: Inside a batch: `args` or `kwargs` were given.
        """
        run: Settler | None = getattr(self.request, RUNNING, None)
        if run is None:
            if exc is not None and read_marker(self.request) is not None:
                # Celery's autoretry, of a doorbell that claimed nothing: it is nobody's call.
                raise exc
            return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)
        if args is not None or kwargs is not None:
            raise TypeError(
                "inside a batch retry() takes no args and kwargs: each request keeps its own; to "
                "change them, call the task again with task_id=request.id"
            )
        again = partial(run.retry, countdown=countdown, eta=eta, exc=exc, max_retries=max_retries)
        verb = Verb.RETRY_BATCH
        kept = [again(request, verb=verb, options=options) for request in run.batch.undecided]
        if throw and not any(kept) and exc is not None:
            raise exc
        when: Any = eta or countdown
        reason = Retry(exc=exc, when=when)
        if throw:
            raise reason
        return reason

    def replace(self, sig: Any) -> Any:
        """Replaces a call that runs alone, as `celery.Task.replace`; not inside a batch.

        Raises:
            TypeError: A batch runs: Celery can replace one call, but not one of many.
        """
        if getattr(self.request, RUNNING, None) is not None:
            raise TypeError(
                "replace() cannot replace a batch: use request.replace(sig) for its requests"
            )
        return super().replace(sig)

    def add_to_chord(self, sig: Any, lazy: bool = False) -> Any:
        """Adds a call to the chord of a call that runs alone; not inside a batch.

        Raises:
            TypeError: A batch runs: each of its requests may be a part of another chord.
        """
        if getattr(self.request, RUNNING, None) is not None:
            raise TypeError(
                "add_to_chord() does not know which request of the batch is meant: "
                "use request.add_to_chord(sig)"
            )
        return super().add_to_chord(sig, lazy)  # type: ignore[call-overload]

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **options: Any
    ) -> None:
        """Stores a state of a call's own, such as its progress.

        Raises:
            TypeError: A batch runs, and `task_id` does not say which of its requests is meant.
        """
        run: Settler | None = getattr(self.request, RUNNING, None)
        if run is None:
            super().update_state(task_id, state, meta, **options)
            return
        if task_id is None:
            raise TypeError("inside a batch update_state() needs the task_id of a request")
        request = run.batch.find(task_id)
        context = None if request is None else request.context
        backend: Any = self.backend
        backend.store_result(task_id, meta, state, request=context, **options)

    def autoretry_plan(self, exc: BaseException, retries: int) -> dict[str, Any] | None:
        """Returns how an exception is retried, as options of `retry`, if the task's options do so.

        Args:
            exc: What a run raised.
            retries: How often the request was retried before.
        """
        return autoretry_plan(self, exc, retries)

    def running_batch(self, task_id: str) -> Settler | None:
        """Returns who settles the batch of this task that runs in this process and holds an id."""
        found = running.get(task_id)
        return found if found is not None and found.task.name == self.name else None

    @property
    def trigger(self) -> Trigger:
        """When a batch is due, as the options say now: annotations may change them."""
        return make_trigger(self.flush_every, self.flush_interval)

    @property
    def lease(self) -> float:
        """Seconds after which a silent worker's batch is taken back."""
        return self._runtime.settings.lease

    @property
    def _runtime(self) -> Runtime:
        return runtime_of(self.app)

    def _enter(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the function: answers a doorbell, or runs a call alone."""
        marker = read_marker(self.request)
        if marker is not None:
            return Runner(self).answer(marker)
        only = args[0] if len(args) == 1 and not kwargs else None
        if isinstance(only, list) and only and all(isinstance(r, SimpleRequest) for r in only):
            return self.function(only)
        return run_alone(self, args, kwargs)
