"""What the package needs to know of a batch task, so that no other folder imports its class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from redis_batches.core.triggers import Trigger


class BatchTask(Protocol):
    """A batch task, as `redis_batches.Batches` makes it.

    What Celery gives it is of Celery's own types.

    Attributes:
        function: The user's batch function.
    """

    name: Any
    request_stack: Any
    typing: bool
    acks_late: bool
    track_started: Any
    ignore_result: Any
    store_errors_even_if_ignored: Any
    time_limit: Any
    soft_time_limit: Any
    rate_limit: Any
    max_retries: Any
    default_retry_delay: Any
    MaxRetriesExceededError: Any
    flush_every: int
    flush_interval: float
    returns_results: bool
    function: Callable[..., Any]
    Request: Any
    __header__: Any

    @property
    def app(self) -> Any:
        """The Celery app."""

    @property
    def backend(self) -> Any:
        """The result backend."""

    @property
    def request(self) -> Any:
        """What runs now: a doorbell, or a call that runs alone."""

    @property
    def trigger(self) -> Trigger:
        """When a batch is due."""

    @property
    def lease(self) -> float:
        """Seconds after which a silent worker's batch is taken back."""

    def autoretry_plan(self, exc: BaseException, retries: int) -> dict[str, Any] | None:
        """Returns how an exception is retried, as options of `retry`, if at all."""

    def running_batch(self, task_id: str) -> Any:
        """Returns the batch of this task that runs in this process and holds an id."""

    def signature_from_request(self, request: Any, **options: Any) -> Any:
        """Returns the signature of a call, as Celery makes it for a retry."""

    def apply_async(self, args: Any, kwargs: Any, **options: Any) -> Any:
        """Calls the task."""

    def AsyncResult(self, task_id: str, **kwargs: Any) -> Any:  # noqa: N802
        """Returns the result of a call."""

    def retry(self, *, exc: Any, countdown: Any) -> Any:
        """Retries a call that runs alone; returns or raises what says so."""
