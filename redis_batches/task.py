"""`Batches`, the task class, and `batched_task`, the decorator."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, TypeVar

from celery import Celery, Task, current_app
from celery._state import _get_active_apps, connect_on_app_finalize
from celery.exceptions import Ignore, Reject, Retry, WorkerLostError
from celery.local import Proxy
from celery.utils.log import get_task_logger
from celery.utils.nodenames import gethostname
from celery.utils.time import get_exponential_backoff_interval
from kombu.serialization import prepare_accept_content
from kombu.utils.uuid import uuid

from redis_batches import completion, worker
from redis_batches.backends import watch, watch_app
from redis_batches.batch import Batch, running
from redis_batches.codec import Envelope, UnknownEnvelope, decode
from redis_batches.config import check_function, check_name, make_trigger
from redis_batches.doorbell import MARKER, new_token, ring
from redis_batches.errors import BatchesError
from redis_batches.model import Bells, Claimed, Idle, Trigger
from redis_batches.producer import Hop, SentEvents
from redis_batches.request import SimpleRequest
from redis_batches.runtime import Runtime, runtime_of
from redis_batches.store import Lease

logger = get_task_logger(__name__)
_F = TypeVar("_F", bound=Callable[..., Any])

#: A request that killed its worker so often, alone in its batch, is not run again.
MAX_CRASHES_ALONE = 3
#: How long a request of a newer version waits for a newer worker.
UNKNOWN_DELAY_MS = 5000


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
    flush_every: int = 10
    flush_interval: float = 30
    #: Whether the returned list or dict holds the requests' results.
    returns_results: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuses options that are not allowed as soon as a task's class exists."""
        super().__init_subclass__(**kwargs)
        make_trigger(cls.flush_every, cls.flush_interval)

    def __init__(self) -> None:
        check_function(self.run, bound=False)
        if self.name:
            check_name("the task's name", self.name)
        self._function = self.run
        self.run = self._enter

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Prepares the app at the first batch task: the sweeps, and the result backends."""
        super().on_bound(app)
        watch_app(app)
        worker.install(app, cls)

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
            StoreError: Redis could not be reached; it is a `kombu` `OperationalError`.
        """
        app = self._get_app()
        if not app.conf.task_always_eager:
            connection = options.pop("connection", None)
            if connection is not None:
                producer = app.amqp.Producer(connection, auto_declare=False)
            hop = Hop(
                self,
                own_id=task_id is None,
                keep_reprs="argsrepr" in options or "kwargsrepr" in options,
                producer=producer,
            )
            options["router"] = producer = hop
            if app.conf.task_send_sent_event:
                options["event_dispatcher"] = SentEvents(app)
        return super().apply_async(
            args, kwargs, task_id or uuid(), producer, link, link_error, shadow, **options
        )

    def flush(self) -> int:
        """Runs what waits now, full or not; returns how many batches were asked for."""
        store, asked = self._runtime.store(self.name), 0
        for group, route in store.groups().items():
            waiting = store.waiting(group)
            batches = -(-waiting // self.trigger.flush_every)
            ring(self.app, self.name, Bells(group, route, batches, 0), force=True)
            asked += batches
        return asked

    def stats(self) -> dict[str, int]:
        """Returns counts of requests; see `redis_batches.store.Store.stats` for the keys."""
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
        """
        batch: Batch | None = getattr(self.request, "batch", None)
        if batch is None:
            return super().retry(
                args, kwargs, exc, throw, eta, countdown, max_retries, **options
            )
        if args is not None or kwargs is not None or options:
            raise TypeError(
                "inside a batch retry() takes exc, throw, eta, countdown and max_retries: "
                "each request keeps its own arguments and options"
            )
        if eta is not None:
            countdown = max((eta - datetime.now(eta.tzinfo or timezone.utc)).total_seconds(), 0)
        kept = [
            batch.retry(request, countdown=countdown, exc=exc, max_retries=max_retries)
            for request in batch.undecided
        ]
        if throw and not any(kept) and exc is not None:
            raise exc
        reason = Retry(exc=exc, when=eta or countdown)
        if throw:
            raise reason
        return reason

    def autoretry_plan(self, exc: BaseException, retries: int) -> dict[str, Any] | None:
        """Returns `countdown` and `max_retries` if the task's options retry an exception.

        Args:
            exc: What a run raised.
            retries: How often the request was retried before.
        """
        covered = tuple(getattr(self, "autoretry_for", ()))
        excluded = tuple(getattr(self, "dont_autoretry_for", ()))
        if not isinstance(exc, covered) or isinstance(exc, (*excluded, Ignore, Retry)):
            return None
        plan: dict[str, Any] = dict(getattr(self, "retry_kwargs", {}))
        backoff = float(getattr(self, "retry_backoff", False))
        if backoff:
            plan["countdown"] = get_exponential_backoff_interval(
                factor=int(max(1.0, backoff)),
                retries=retries,
                maximum=int(getattr(self, "retry_backoff_max", 600)),
                full_jitter=getattr(self, "retry_jitter", True),
            )
        return plan

    def running_batch(self, task_id: str) -> Batch | None:
        """Returns the batch of this task that runs in this process and holds an id."""
        batch = running.get(task_id)
        return batch if batch is not None and batch.task.name == self.name else None

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
        """Stands in for the function: answers a doorbell, or runs a direct call alone."""
        bell = self.request.get(MARKER)
        if bell is not None:
            return self._answer(bell)
        only = args[0] if len(args) == 1 and not kwargs else None
        if isinstance(only, list) and only and all(isinstance(r, SimpleRequest) for r in only):
            return self._function(only)
        return self._run_alone(args, kwargs)

    def _answer(self, bell: dict[str, Any]) -> Any:
        """Claims a batch for a doorbell, runs it and settles it."""
        lease = self._runtime.store(self.name).claim(
            bell["group"],
            self.trigger,
            token=new_token(self.request.hostname),
            bell=self.request.id,
            rung_ms=bell["rung_ms"],
            limit=self.time_limit,
            once=not self.acks_late,
            force=bool(bell.get("force")),
        )
        if isinstance(lease, Idle):
            raise Ignore(f"nothing to run: {lease.reason}")
        ring(self.app, self.name, lease.bells)
        with self._runtime.heartbeat.keep(lease):
            return self._run_leased(lease)

    def fail_batch(self, group: str, token: str, exc: Exception) -> None:
        """Fails what a run that Celery ended has not decided, as Celery fails a single task."""
        lease = self._runtime.store(self.name).claim(group, self.trigger, token=token)
        assert isinstance(lease, Lease)
        batch, _ = self._open(lease)
        for request in batch.undecided:
            batch.fail(request, exc)
        self._settle(batch)

    def _run_leased(self, lease: Lease) -> Any:
        watch(self.backend)
        batch, broken = self._open(lease)
        for request, exc in broken:
            self._give_up(batch, request, exc)
        raised: BaseException | None = None
        returned: Any = None
        if batch.requests:
            try:
                returned = self._run_function(batch)
            except Exception as exc:
                raised = exc
            except BaseException:
                self._put_back(batch)
                raise
        self._settle(batch)
        if raised is not None:
            raise raised
        return returned

    def _run_function(self, batch: Batch) -> Any:
        """Calls the function and settles what it left undecided; raises what the trace shall see."""
        self.request.batch = batch
        running.update(dict.fromkeys((request.id for request in batch.requests), batch))
        try:
            returned = self._function(batch.requests)
            if self.returns_results:
                batch.take_returned(returned)
            else:
                batch.take_returned(None)
            return returned
        except (Retry, Ignore):
            raise
        except Reject as exc:
            for request in batch.undecided:
                batch.put_back(request) if exc.requeue else batch.bury(request, exc)
            raise Ignore(f"rejected: {exc}") from exc
        except Exception as exc:
            if batch.lost:
                raise
            if batch.take_raised(exc):
                raise Retry(exc=exc) from exc
            raise
        finally:
            for request in batch.requests:
                running.pop(request.id, None)
            batch.close()

    def _settle(self, batch: Batch) -> None:
        """Gives back what runs again, and ends the batch."""
        assert batch.lease is not None
        if batch.given_back:
            for bells in batch.lease.release(batch.given_back):
                ring(self.app, self.name, bells)
        batch.lease.ack()

    def _put_back(self, batch: Batch) -> None:
        """Lets another worker run what this one, which is shutting down, has not decided."""
        for request in batch.undecided:
            batch.put_back(request)
        try:
            self._settle(batch)
        except BatchesError as exc:
            logger.warning("cannot put batch %s back, its lease will end: %s", batch.token, exc)

    def _open(self, lease: Lease) -> tuple[Batch, list[tuple[SimpleRequest, Exception | None]]]:
        """Returns the batch to run, and the requests that cannot run with the reason."""
        route = json.loads(lease.bells.route or "{}")
        accept = prepare_accept_content(self.app.conf.accept_content)
        good: list[SimpleRequest] = []
        broken: list[tuple[SimpleRequest, Exception | None]] = []
        for claimed in lease.requests:
            envelope, exc = _decode(claimed, accept)
            request = SimpleRequest.of(
                self.name,
                claimed,
                envelope,
                hostname=self.request.hostname or gethostname(),
                route=route,
                ignore_result=self.ignore_result,
            )
            if exc is None:
                exc = _poison(claimed)
            if exc is not None:
                broken.append((request, exc))
            elif request.attempt > 1 and completion.is_settled(self, request):
                broken.append((request, None))
            else:
                completion.tell_started(self, request)
                good.append(request)
        return Batch(self, good, lease), broken

    def _give_up(self, batch: Batch, request: SimpleRequest, exc: Exception | None) -> None:
        """Settles a request that is not run: settled before, of a newer version, or hopeless."""
        if isinstance(exc, UnknownEnvelope):
            batch.admit(request)
            batch.put_back(request, UNKNOWN_DELAY_MS)
        elif exc is not None:
            logger.error("%s[%s] is given up: %s", self.name, request.id, exc)
            batch.admit(request)
            batch.bury(request, exc)

    def _run_alone(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a direct, an eager or a foreign call as a batch of one; its outcome is the call's."""
        context = self.request
        request = SimpleRequest(
            context.id or uuid(),
            self.name,
            args,
            kwargs,
            context.delivery_info or {},
            context.hostname or gethostname(),
            context.ignore_result,
            context.reply_to,
            context.correlation_id,
            {**context.__dict__, "args": args, "kwargs": kwargs},
        )
        batch = Batch(self, [request], None)
        running[request.id] = batch
        try:
            returned = self._function(batch.requests)
            if self.returns_results:
                batch.take_returned(returned)
                returned = None
        finally:
            running.pop(request.id, None)
            batch.close()
        outcome = batch.values.get(request.id, returned)
        if isinstance(outcome, Retry) and not context.called_directly:
            return super().retry(exc=outcome.exc, countdown=outcome.when)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def batched_task(
    flush_every: int | Callable[..., Any] = 10,
    flush_interval: float = 30,
    *,
    app: Celery | None = None,
    base: type[Task] | None = None,  # type: ignore[type-arg]
    **options: Any,
) -> Any:
    """Makes a batch task of a function that takes a list of `SimpleRequest`.

    The function may return a list with a result per request, in order, or a dict of request id to
    result; an exception in the place of a result fails that request. Returning None is the result
    None for every request that has no outcome yet.

    Args:
        flush_every: Requests that make a full batch, 1 to 10,000.
        flush_interval: Seconds that the oldest request waits for others, 0 to 7 days.
        app: The app of the task; by default each app that uses it, as `shared_task` does.
        base: A task class to build on instead of the app's own.
        options: Any option of `app.task`.

    Raises:
        OptionError: An option has a value that is not allowed.
    """
    if callable(flush_every):
        return batched_task()(flush_every)
    make_trigger(flush_every, flush_interval)
    chosen = {"flush_every": flush_every, "flush_interval": flush_interval, **options}

    def decorate(fun: Callable[..., Any]) -> Any:
        check_function(fun, bound=bool(options.get("bind")))

        def make(owner: Celery) -> Any:
            return owner._task_from_fun(fun, base=_base_for(owner, base), returns_results=True,
                                        **chosen)

        if app is not None:
            return app.task(fun, base=_base_for(app, base), returns_results=True, **chosen)
        connect_on_app_finalize(make)
        for active in _get_active_apps():
            if active.finalized:
                with active._finalize_mutex:
                    make(active)
        name = options.get("name")

        def find() -> Any:
            owner = current_app._get_current_object()
            return owner.tasks[name or owner.gen_task_name(fun.__name__, fun.__module__)]

        return Proxy(find)

    return decorate


def _base_for(app: Celery, base: type[Task] | None) -> type[Task]:  # type: ignore[type-arg]
    """Returns a batch task class that keeps what the app's own task class adds."""
    parent = base or app.Task
    if issubclass(parent, Batches):
        return parent
    return type("BatchTask", (Batches, parent), {"abstract": True})


def _decode(claimed: Claimed, accept: Any) -> tuple[Envelope, Exception | None]:
    try:
        return decode(claimed.envelope, accept), None
    except BatchesError as exc:
        return Envelope(), exc


def _poison(claimed: Claimed) -> Exception | None:
    """Says why a request that killed its worker must not run again, if it must not."""
    if claimed.attempts.lost:
        return WorkerLostError("the worker died, and acks_late=False forbids a second run")
    if claimed.attempts.alone >= MAX_CRASHES_ALONE:
        return WorkerLostError(
            f"the worker died {claimed.attempts.crashes} times while it ran this request, "
            f"{claimed.attempts.alone} times with no other in its batch"
        )
    return None
