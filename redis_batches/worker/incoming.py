"""Calls that arrive by the broker: messages of a batch task that are no doorbells.

Programs without this package send them by the task's name, and so did celery-batches. A worker
stores each in Redis, where it joins the batches of direct calls, and acknowledges it then. What
Celery does with a message before it runs it is done as in `celery.worker.strategy.default`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import uuid4

from celery import signals
from celery.app import trace
from celery.exceptions import InvalidTaskError
from celery.utils.imports import symbol_by_name
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.request import create_request_cls  # type: ignore[attr-defined]
from celery.worker.strategy import (  # type: ignore[attr-defined]
    default,
    hybrid_to_proto2,
    proto1_to_proto2,
)
from kombu.exceptions import ContentDisallowed, DecodeError

from redis_batches.app.doorbell import local_message, read_marker, ring
from redis_batches.app.state import runtime_of
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.errors import BacklogFull
from redis_batches.core.printable import printable
from redis_batches.core.requests import Status
from redis_batches.worker.incoming_call import IncomingCall, prepare
from redis_batches.worker.unstored import Unstored

logger = get_logger(__name__)
received = get_logger("celery.worker.strategy")


class Strategy:
    """What a worker does with the messages of a batch task, for one connection to the broker.

    Args:
        task: The batch task.
        app: Its app.
        consumer: Celery's consumer.
    """

    def __init__(self, task: BatchTask, app: Any, consumer: Any) -> None:
        self._task, self._app, self._consumer = task, app, consumer
        self._run = default(task, app, consumer)
        self._request_class = create_request_cls(
            symbol_by_name(task.Request),
            task,
            consumer.pool,
            consumer.hostname,
            consumer.event_dispatcher,
            app=app,
        )
        self._unstored: Unstored[IncomingCall] = Unstored(
            consumer, task.name, self._store, self._drain, runtime_of(app).quiet
        )
        #: Calls of each group that were stored since it was last rung for.
        self._silent: Counter[str] = Counter()
        self._local = 0

    def __call__(self, message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        """Runs a doorbell; stores any other call.

        Raises:
            InvalidTaskError: The message is no call; Celery logs and rejects it, as it does with
                what it must not (`ContentDisallowed`) or cannot decode (`DecodeError`).
        """
        if read_marker(message.headers or {}) is not None:
            self._run(message, body, ack, reject, callbacks)
            return
        try:
            request, headers, call = self._read(message, body, ack, reject)
        except (InvalidTaskError, ContentDisallowed, DecodeError):
            raise
        except Exception as exc:
            # Not what was wrong: it may quote the message.
            what = type(exc).__name__
            raise InvalidTaskError(f"not a call of {self._task.name}: {what}") from None
        try:
            if self._is_revoked(request):
                return
            self._announce(request)
            incoming = prepare(self._task, self._consumer, request, headers, call)
        except self._consumer.connection_errors:
            raise
        except Exception as exc:
            self._refuse(request, exc)
        else:
            self._unstored.accept(incoming)

    # -- reading

    def _read(
        self, message: Any, body: Any, ack: Any, reject: Any
    ) -> tuple[Any, dict[str, Any], tuple[Any, Any, Any] | None]:
        """Returns Celery's request of a message, its headers, and its call if of protocol 1."""
        if body is None and "args" not in message.payload:
            body, headers, decoded, utc = message.body, message.headers, False, True
            args, kwargs, embed = message.payload
        else:
            convert = hybrid_to_proto2 if "args" in message.payload else proto1_to_proto2
            body, headers, decoded, utc = convert(message, message.payload)
            args, kwargs, embed = body
        parts = ((args, (list, tuple)), (kwargs, dict), (embed or {}, dict))
        if not all(isinstance(part, kind) for part, kind in parts):
            raise InvalidTaskError("the body is not (args, kwargs, embed)")
        if not isinstance(headers["id"], str):
            raise InvalidTaskError("its id is no text")
        request = self._request_class(
            message,
            on_ack=ack,
            on_reject=reject,
            app=self._app,
            hostname=self._consumer.hostname,
            eventer=self._consumer.event_dispatcher,
            task=self._task,
            connection_errors=self._consumer.connection_errors,
            body=body,
            headers=headers,
            decoded=decoded,
            utc=utc,
        )
        return request, headers, body if decoded else None

    def _is_revoked(self, request: Any) -> bool:
        """Logs a call as Celery does; returns whether it is over, because revoked or expired."""
        shown = {
            "id": printable(request.id),
            "name": printable(request.name),
            "args": printable(request.argsrepr),
            "kwargs": printable(request.kwargsrepr),
            "eta": request.eta,
        }
        received.info(trace.LOG_RECEIVED, shown, extra={"data": shown})
        try:
            return bool(request.revoked())
        except Exception as exc:
            # Odd stamps, or a result backend that is down: whoever claims it looks again.
            logger.debug("cannot tell yet whether %s was revoked: %r", shown["id"], exc)
            return False

    def _announce(self, request: Any) -> None:
        """Tells signals and monitors of a call as Celery does."""
        signals.task_received.send(sender=self._consumer, request=request)
        request.send_event(
            "task-received",
            name=request.name,
            args=request.argsrepr,
            kwargs=request.kwargsrepr,
            root_id=request.root_id,
            parent_id=request.parent_id,
            retries=request.request_dict.get("retries", 0),
            eta=request.eta and request.eta.isoformat(),
            expires=request.expires and request.expires.isoformat(),
        )

    def _refuse(self, request: Any, exc: Exception) -> None:
        """Fails a call that cannot wait in Redis, so that nobody waits for its result."""
        name, task_id = printable(request.name), printable(request.id)
        logger.error("cannot accept %s[%s]: %s", name, task_id, exc)
        try:
            self._fail(request, exc)
        except Exception:
            logger.exception("cannot store the failure of %s[%s]", name, task_id)
        request.reject(requeue=False)

    def _fail(self, request: Any, exc: Exception) -> None:
        mark, store = self._task.backend.mark_as_failure, request.store_errors
        try:
            context = request._context
        except Exception:
            context = None
        try:
            mark(request.id, exc, request=context, store_result=store)
        except Exception:
            if context is None:
                raise
            # What hangs on it may be as odd as the call.
            mark(request.id, exc, store_result=store)

    # -- storing

    def _store(self, incoming: IncomingCall) -> None:
        """Stores a call, acknowledges its message, and rings if that makes a batch due.

        Raises:
            StoreError: Redis could not be reached, or refused.
            BacklogFull: Too many requests wait.
        """
        task, runtime = self._task, runtime_of(self._app)
        store, call = runtime.sweeping_store(task.name), incoming.outgoing
        pushed = store.push(incoming.group, task.trigger, [call])
        if pushed.statuses[0] is Status.DONE and incoming.first:
            # Not a redelivery: a new call with the id and the arguments of one that ran just now.
            call = call._replace(nonce=uuid4().hex[:16])
            pushed = store.push(incoming.group, task.trigger, [call])
        status = pushed.statuses[0]
        if status is Status.FULL:
            raise BacklogFull(task.name, runtime.settings.max_pending, [call.id])
        if status is Status.DUPLICATE:
            logger.warning(
                "%s[%s] arrived while another call with this id waits or runs; that one was kept",
                task.name,
                call.id,
            )
        incoming.request.acknowledge()
        ring(self._app, task.name, pushed.bells, priority=incoming.priority)
        self._answer_here(incoming.group.id, bool(pushed.bells.count))

    def _answer_here(self, group: str, rung: bool) -> None:
        """Runs a batch whose doorbell waits in the broker, behind all that has yet to arrive."""
        self._silent[group] = 0 if rung else self._silent[group] + 1
        if self._silent[group] >= self._task.flush_every:
            self._silent[group] = 0
            self._drain(group)

    def _drain(self, group: str) -> None:
        """Claims a batch without a doorbell of the broker, if a process of the pool is idle."""
        processes = self._consumer.pool.num_processes
        if max(self._local, len(state.reserved_requests)) >= processes:
            return
        self._local += 1

        def ended(*_: Any, **__: Any) -> None:
            self._local -= 1

        self._run(local_message(self._app, self._task.name, group), None, ended, ended, ())
