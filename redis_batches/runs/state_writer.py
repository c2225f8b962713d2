"""Writes what a run reports until it is stored: whoever waits for a result backend waits in here.

Three things may keep an outcome from being stored. Somebody else stored a state of the call
meanwhile: that is read, and the try repeated. The server is down, or refuses for now: the try is
repeated after a pause, for as long as the writer is patient. Or the run has lost its lease: then
nothing of it may be stored any more.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from errno import (
    EHOSTDOWN,
    EHOSTUNREACH,
    ENETDOWN,
    ENETRESET,
    ENETUNREACH,
    ENOTCONN,
    EPIPE,
    ETIMEDOUT,
)
from socket import gaierror
from time import monotonic, sleep
from typing import Any, TypeVar

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError

from redis_batches.buffer.lease import Lease
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.errors import BacklogFull, LeaseLost, StoreError
from redis_batches.core.settings import HEARTBEATS_PER_LEASE
from redis_batches.driver.server_errors import is_refusal
from redis_batches.runs.states import Changed, Guard

logger = get_logger(__name__)
_T = TypeVar("_T")

#: Seconds for which an outcome is written again while the result backend cannot be reached.
PATIENCE = 30.0
#: Seconds between two tries: the first pause, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
#: How often a state is read and found to be another one when it is stored.
TRIES = 10

#: Errors of the operating system that a network causes.
_NETWORK = {EPIPE, ENETDOWN, ENETUNREACH, ENETRESET, EHOSTDOWN, EHOSTUNREACH, ENOTCONN, ETIMEDOUT}


class StateWriter:
    """Writes the outcomes of one run.

    Args:
        task: The batch task.
        lease: The run's, or None outside Redis.
        patience: Seconds for which it tries again; default: `PATIENCE`.
        clock: Returns seconds; it must never go back.
        pause: Waits for some seconds.

    Attributes:
        patience: Seconds for which it tries again; 0 after it was in vain once, so that what is
            written next is not waited for as long again.
        outage: The error of a server that kept an outcome from being stored.
    """

    def __init__(
        self,
        task: BatchTask,
        lease: Lease | None,
        patience: float | None = None,
        *,
        clock: Callable[[], float] | None = None,
        pause: Callable[[float], None] | None = None,
    ) -> None:
        self._task = task
        self._lease = lease
        self.patience = PATIENCE if patience is None else patience
        self.outage: Exception | None = None
        self._clock = clock or monotonic
        self._wait = pause or sleep

    @property
    def lost(self) -> bool:
        """Whether another worker took the batch over: nothing that this run does counts."""
        return self._lease is not None and self._lease.lost

    def write(self, step: Callable[[Guard], _T]) -> _T:
        """Does one step of reporting until it is through.

        Args:
            step: Is done again, from its beginning, if it fails and may succeed later.

        Returns:
            What the step returns.

        Raises:
            LeaseLost: The run may report nothing any more.
            Exception: What the step raised, if it does not pass by itself, or did not in time.
        """
        deadline, pause = self._clock() + self.patience, FIRST_PAUSE
        while True:
            try:
                return self._unless_changed(step)
            except Exception as exc:
                if self.lost or not is_transient(self._task.backend, exc):
                    raise
                if self._clock() + pause > deadline:
                    self.outage, self.patience = exc, 0.0
                    raise
                logger.warning("cannot report an outcome of batch %s yet: %r", self._token, exc)
            self._wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def patiently(self, step: Callable[[], _T]) -> _T:
        """Does a step that stores no state itself, and again as `write` does."""
        return self.write(lambda _: step())

    def _unless_changed(self, step: Callable[[Guard], _T]) -> _T:
        """Does a step until nobody else stored a state of its calls while it read and wrote it."""
        for number in range(TRIES):
            if number:
                # Whoever stored it may be a newer run.
                self.confirm(anew=True)
            with suppress(Changed):
                return step(Guard(self.confirm, first=not number))
        raise OperationalError(
            "the state of a call is never what was read a moment before: "
            "does the result backend read from a replica?"
        )

    def confirm(self, *, anew: bool = False) -> None:
        """Raises LeaseLost unless this run holds its requests for long enough to report of one.

        Args:
            anew: Whether to ask Redis, however short ago it was asked.
        """
        lease = self._lease
        if lease is None:
            return
        old = lease.age > self._task.lease / HEARTBEATS_PER_LEASE
        # Past its deadline a lease is not kept any more, but not lost before it ends.
        if (old or anew) and not lease.lost:
            try:
                lease.extend()
            except StoreError as exc:
                self.outage = exc
                raise
        if lease.lost:
            raise LeaseLost(
                f"the lease on batch {self._token} of {self._task.name} ended while its function"
                " ran: another worker runs its requests, and nothing of this run counts"
            )

    def may_pass(self, exc: Exception) -> bool:
        """Whether an error is not the fault of what was to be written."""
        if isinstance(exc, (LeaseLost, SoftTimeLimitExceeded)):
            return True
        return is_transient(self._task.backend, exc)

    @property
    def _token(self) -> str:
        return self._lease.token if self._lease else ""


def is_transient(backend: Any, exc: Exception) -> bool:
    """Whether a try may succeed later: a server is down, or the next step's backlog is full.

    Args:
        backend: The result backend, which has errors of its own.
        exc: What the try raised.
    """
    if isinstance(exc, (ConnectionError, TimeoutError, gaierror, OperationalError, BacklogFull)):
        return True
    if isinstance(exc, OSError):
        return exc.errno in _NETWORK
    # What a Redis says of itself, such as OOM or READONLY, is never the fault of what is written.
    if is_refusal(exc):
        return True
    # Some of Celery's lists name KeyError, which any code may raise.
    if isinstance(exc, LookupError):
        return False
    known = getattr(backend, "connection_errors", ())
    return isinstance(exc, known) or bool(backend.exception_safe_to_retry(exc))
