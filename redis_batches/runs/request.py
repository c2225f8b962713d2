"""`SimpleRequest`: one call, as a batch function sees it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, Protocol

from celery.app.task import Context
from celery.utils.time import maybe_iso8601, maybe_make_aware

from redis_batches.buffer.lease import Lease
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.printable import printable
from redis_batches.core.requests import Attempts, Claimed
from redis_batches.runs.batch import Batch
from redis_batches.wire import protocol
from redis_batches.wire.envelope import Envelope


class RunningBatch:
    """The batch that a request runs in.

    Attributes:
        token: Names this run of the batch; fresh at each run, "" outside Redis.
        fence: A number larger than that of every earlier run of the task, for writes that must
            not be undone by a late run; see Kleppmann, "How to do distributed locking" (2016).
            0 outside Redis.
        attempt: The highest attempt of its requests; 1 is the first.
    """

    def __init__(self, lease: Lease | None, attempt: int) -> None:
        self._lease = lease
        self.token = lease.token if lease else ""
        self.fence = lease.fence if lease else 0
        self.attempt = attempt

    @property
    def lost(self) -> bool:
        """Whether another worker took the batch over: whatever this run does is in vain."""
        return self._lease is not None and self._lease.lost


class Settler(Protocol):
    """Settles the requests of a batch that runs; see `redis_batches.runs.reporter.Reporter`."""

    task: BatchTask
    lease: Lease | None
    batch: Batch[SimpleRequest]

    @property
    def token(self) -> str:
        """Names the run; "" outside Redis."""

    def succeed(self, request: SimpleRequest, value: Any, *, store: bool = True) -> None:
        """Settles a request with a result."""

    def fail(self, request: SimpleRequest, exc: object) -> None:
        """Settles a request with an exception."""

    def decide(self, request: SimpleRequest, exc: Any) -> bool:
        """Does for a request what Celery does for a task that raises an exception."""

    def retry(
        self,
        request: SimpleRequest,
        *,
        exc: BaseException | None = None,
        options: Mapping[str, Any] | None = None,
        **when: Any,
    ) -> bool:
        """Lets a request run again later."""

    def replace(self, request: SimpleRequest, sig: Any) -> None:
        """Calls something else in the place of a request."""

    def add_to_chord(self, request: SimpleRequest, sig: Any, lazy: bool) -> Any:
        """Adds a call to the chord that a request is a part of."""

    def requeued(self, task_id: str) -> None:
        """Notes that the function called the task again with the id of one of its requests."""


class SimpleRequest:
    """One call of a batch task.

    It can be pickled; a copy has the call's data, but can no longer settle it.

    Attributes:
        id: The task id.
        name: The task's name, or the `shadow` name of the call.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        hostname: Node name of the worker.
        ignore_result: Whether the call's result is stored nowhere.
        reply_to: Where the rpc result backend answers.
        correlation_id: Used with `reply_to`; the task id, unless another program chose it.
        chord: The chord that the call is a part of, or None.
        attempt: The number of this run of the request; 1 is the first.
        batch: The batch that it runs in, or None in a copy.
    """

    chord: Any = None
    attempt: int = 1
    attempts = Attempts()
    batch: RunningBatch | None = None
    settler: Settler | None = None
    embed: Mapping[str, Any] | None = None
    _since_ms: int | None = None
    _derive: tuple[str, Envelope, Mapping[str, Any], bool] | None = None

    def __init__(
        self,
        id: str,
        name: str,
        args: Any = (),
        kwargs: Any = None,
        delivery_info: dict[str, Any] | None = None,
        hostname: str | None = None,
        ignore_result: bool | None = False,
        reply_to: str | None = None,
        correlation_id: str | None = None,
        request_dict: dict[str, Any] | None = None,
    ) -> None:
        self.id = id
        self.name = name
        self.args = args
        self.kwargs = {} if kwargs is None else kwargs
        if delivery_info:
            self.delivery_info = delivery_info
        self.hostname = hostname
        self.ignore_result = ignore_result
        self.reply_to = reply_to
        self.correlation_id = correlation_id
        if request_dict is not None:
            self.request_dict = request_dict

    @cached_property
    def delivery_info(self) -> dict[str, Any]:
        """Exchange, routing key and priority of the call."""
        if self._derive is None:
            return {}
        _, envelope, route, _ = self._derive
        return protocol.delivery_info(envelope, route)

    @cached_property
    def enqueued_at(self) -> datetime | None:
        """When it began to wait (UTC, by the server's clock), or None."""
        if self._since_ms is None:
            return None
        return datetime.fromtimestamp(self._since_ms / 1000, timezone.utc)

    @cached_property
    def request_dict(self) -> dict[str, Any]:
        """All headers of the call, with its arguments and properties, as Celery has them."""
        if self._derive is None:
            return {"id": self.id, "args": self.args, "kwargs": self.kwargs}
        task, envelope, route, ignore_result = self._derive
        found = protocol.unpack(
            task,
            self.id,
            envelope,
            ignore_result=ignore_result,
            hostname=self.hostname or "",
            route=route,
        )
        found["retries"] += self.attempts.tries
        return found

    @cached_property
    def context(self) -> Context:
        """The request context with which Celery settles the call."""
        return protocol.context(self.request_dict, self.embed)

    @property
    def brief_context(self) -> Context:
        """What Celery stores of the call with a state, unless the setting `result_extended` is on.

        It has the headers that differ from those of a plain call; to derive the others takes long.
        """
        if self._derive is None or "request_dict" in self.__dict__:
            return self.context
        return protocol.brief_context(self._derive[1])

    @property
    def retries(self) -> int:
        """How often the call was retried before."""
        return int(self.request_dict.get("retries") or 0)

    @property
    def stamps(self) -> dict[str, Any]:
        """The stamps of the call, by their names."""
        headers = self.request_dict if self._derive is None else self._derive[1].headers
        names, stamps = headers.get("stamped_headers"), headers.get("stamps")
        return {name: stamps[name] for name in names if name in stamps} if names and stamps else {}

    def is_expired(self) -> bool:
        """Whether the call's `expires` has passed."""
        if self._derive is None or not (text := self._derive[1].headers.get("expires")):
            return False
        moment: Any = maybe_iso8601(text)
        return bool(maybe_make_aware(moment, timezone.utc) < datetime.now(timezone.utc))

    @classmethod
    def of(
        cls,
        task: str,
        claimed: Claimed,
        envelope: Envelope,
        *,
        hostname: str,
        route: Mapping[str, Any],
        ignore_result: bool,
    ) -> SimpleRequest:
        """Returns the request of a claimed entry."""
        task_id, since_ms, attempts, _ = claimed
        args, kwargs, embed = envelope.body
        headers, properties = envelope.headers, envelope.properties
        request = cls.__new__(cls)
        # All at once, and the rest when it is asked for: this runs for every request.
        request.__dict__ = {
            "id": task_id,
            "name": printable(shadow) if (shadow := headers.get("shadow")) else task,
            "args": tuple(args),
            "kwargs": kwargs,
            "hostname": hostname,
            "ignore_result": headers.get("ignore_result", ignore_result),
            "reply_to": properties.get(protocol.REPLY_TO),
            "correlation_id": properties.get(protocol.CORRELATION_ID, task_id),
            "embed": embed,
            "chord": embed.get("chord") if embed else None,
            "attempts": attempts,
            "attempt": attempts.number,
            "_since_ms": since_ms,
            "_derive": (task, envelope, route, ignore_result),
        }
        return request

    def succeed(self, value: Any = None) -> None:
        """Settles this call with a result: stores it, and calls what is linked to it.

        Raises:
            LeaseLost: The batch was taken over by another worker; nothing was stored.
        """
        self._settler().succeed(self, value)

    def fail(self, exc: Exception) -> None:
        """Settles this call with an exception, which its caller's `.get()` raises.

        If the task's `autoretry_for` covers it, the call is retried instead, as long as it may be.

        Raises:
            LeaseLost: The batch was taken over by another worker; nothing was stored.
        """
        self._settler().decide(self, exc)

    def retry(
        self,
        *,
        countdown: float | None = None,
        eta: datetime | None = None,
        exc: Exception | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> None:
        """Runs this call again later, in another batch; the others of this batch go on.

        Args:
            countdown: Seconds to wait, `default_retry_delay` of the task by default.
            eta: When to run it instead; without a time zone it is UTC, as in Celery.
            exc: Why; what the call fails with after the task's `max_retries`.
            max_retries: Overrides the task's.
            options: Other options of `apply_async` that the call has from then on.

        Raises:
            OptionError: `countdown` or `eta` is no time, or another option has no meaning for a
                retry; nothing was reported, and it has no outcome.
        """
        self._settler().retry(
            self, countdown=countdown, eta=eta, exc=exc, max_retries=max_retries, options=options
        )

    def replace(self, sig: Any) -> None:
        """Replaces this call by another one, which gets its id and what hangs on it.

        As `celery.Task.replace`, but the function and the other calls of the batch go on.

        Args:
            sig: A signature, chain, group or chord.
        """
        self._settler().replace(self, sig)

    def add_to_chord(self, sig: Any, lazy: bool = False) -> Any:
        """Adds another call to the chord that this one is a part of, as `celery.Task` does.

        Args:
            sig: A signature.
            lazy: Whether it is only prepared: then call `delay()` of what is returned.

        Returns:
            Its result, or the prepared signature.

        Raises:
            ValueError: This call is a part of no chord.
        """
        return self._settler().add_to_chord(self, sig, lazy)

    def attach(self, batch: RunningBatch, settler: Settler) -> None:
        """Lets the call know the batch that it runs in, and who settles it."""
        self.batch, self.settler = batch, settler

    def detach(self) -> None:
        """Lets the call know that its batch has ended."""
        self.batch = self.settler = None

    def _settler(self) -> Settler:
        if self.settler is not None:
            return self.settler
        if "settler" in self.__dict__:
            raise RuntimeError(
                f"the batch of request {self.id} has ended: settle requests before the batch "
                "function returns"
            )
        raise RuntimeError(
            f"this is a copy of request {self.id}, which no batch runs: settle the request that "
            "the batch function was given, in the process that runs it"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what belongs to the running batch."""
        derived = ("request_dict", "delivery_info", "enqueued_at")
        state = {**self.__dict__, **{name: getattr(self, name) for name in derived}}
        state["_derive"] = None
        state.pop("batch", None)
        state.pop("settler", None)
        state.pop("context", None)
        return state

    def __repr__(self) -> str:
        """Names the call without its arguments, which may be secret."""
        return f"<{type(self).__name__}: {self.name}[{self.id}] attempt {self.attempt}>"
