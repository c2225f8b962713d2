"""A running batch: one outcome per request, told at once, settled at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from logging import ERROR, INFO
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

from celery.exceptions import Retry, TaskRevokedError
from celery.utils.log import get_task_logger

from redis_batches import completion
from redis_batches.codec import UnknownEnvelope
from redis_batches.config import HEARTBEATS_PER_LEASE
from redis_batches.errors import LeaseLost, ResultCountError, ResultKeyError, ResultTypeError
from redis_batches.lease import Lease
from redis_batches.model import Bells, Outcome, Verb
from redis_batches.request import SimpleRequest
from redis_batches.results import CHUNK, again

if TYPE_CHECKING:
    from redis_batches.task import Batches

logger = get_task_logger(__name__)
_T = TypeVar("_T")

#: Seconds for which an outcome is told again while the result backend cannot be reached.
TELL_PATIENCE = 30.0
#: Requests that failed, or retry, that one line of the log names.
LOGGED_REQUESTS = 10
#: How long a request of a newer version waits for a newer worker.
UNKNOWN_DELAY_MS = 5000

#: Batches that run in this process, by the ids of their requests: whoever names a request, in
#: whatever thread, finds the batch that it is in.
running: dict[str, Batch] = {}


class Batch:
    """The requests of one call of a batch function.

    Attributes:
        task: The batch task.
        requests: The calls, oldest first.
        token: Names this run of the batch; fresh at each run.
        fence: A number larger than that of every earlier run of the task, for writes that must
            not be undone by a late run; see Kleppmann, "How to do distributed locking" (2016).
    """

    def __init__(
        self, task: Batches, requests: Sequence[SimpleRequest], lease: Lease | None
    ) -> None:
        self.task = task
        self.requests = list(requests)
        self.lease = lease
        self.token = lease.token if lease else ""
        self.fence = lease.fence if lease else 0
        self.values: dict[str, Any] = {}
        self._confirmed = monotonic()
        self._open = {request.id: request for request in requests}
        self._finished: list[str] = []
        self._given_back: list[Outcome] = []
        self._plans: dict[tuple[type, int], dict[str, Any] | None] = {}
        self._ending = False
        self.patience = TELL_PATIENCE
        for request in self.requests:
            request.batch = self

    @property
    def attempt(self) -> int:
        """The highest attempt of its requests; 1 is the first."""
        return max((request.attempt for request in self.requests), default=1)

    @property
    def lost(self) -> bool:
        """Whether another worker took the batch over: whatever this run does is in vain."""
        return self.lease is not None and self.lease.lost

    @property
    def undecided(self) -> list[SimpleRequest]:
        """The requests that have no outcome yet."""
        return list(self._open.values())

    def find(self, task_id: str) -> SimpleRequest | None:
        """Returns the undecided request with an id."""
        return self._open.get(task_id)

    def succeed(self, request: SimpleRequest, value: Any, *, store: bool = True) -> None:
        """Settles one request with a result; one that cannot be serialized fails it."""
        stored = self._tell(request, value, lambda: self._tell_success(request, value, store))
        self._forget(request, stored)

    def fail(self, request: SimpleRequest, exc: Exception) -> None:
        """Settles one request with an exception."""
        self._forget(request, self._tell_failure(request, exc))

    def revoke(self, request: SimpleRequest, reason: str) -> None:
        """Tells of one request that it will not run; it goes when the batch ends.

        Args:
            request: The call.
            reason: "revoked" or "expired".
        """

        def tell() -> bool:
            return completion.tell_revoked(self.task, request, reason, self.confirm)

        self._tell(request, TaskRevokedError(reason), lambda: self._patiently(tell))

    def bury(self, request: SimpleRequest, exc: Exception) -> None:
        """Fails one request, and keeps it as a dead letter for an operator."""
        if self._tell_failure(request, exc) is not None:
            self._given_back.append(Outcome(request.id, Verb.DEAD, error=repr(exc)))

    def put_back(self, request: SimpleRequest, delay_ms: int = 0) -> None:
        """Lets one request wait again, as if it had not been claimed."""
        if self._take(request):
            self._given_back.append(Outcome(request.id, Verb.PUT_BACK, delay_ms))

    def retry(
        self,
        request: SimpleRequest,
        *,
        countdown: float | None = None,
        exc: Exception | None = None,
        max_retries: int | None = None,
        verb: Verb = Verb.RETRY,
    ) -> bool:
        """Lets one request run again later; one that has no tries left is a dead letter.

        Args:
            request: The call.
            countdown: Seconds to wait, the task's `default_retry_delay` by default.
            exc: Why.
            max_retries: Overrides the task's.
            verb: `RETRY_BATCH` if the batch as a whole failed.

        Returns:
            Whether it will run again.
        """
        if request.id not in self._open:
            return False
        limit = self.task.max_retries if max_retries is None else max_retries
        if limit is not None and request.retries >= limit:
            self.bury(request, exc or self._exhausted(request))
            return False
        seconds = self.task.default_retry_delay if countdown is None else countdown
        reason: Any = Retry(exc=exc, when=seconds)  # type: ignore[arg-type]
        told = self._tell(
            request, reason, lambda: completion.tell_retry(self.task, request, reason, self.confirm)
        )
        if told is not None:
            delay_ms = max(round(seconds * 1000), 0)
            self._given_back.append(Outcome(request.id, verb, delay_ms, repr(exc) if exc else ""))
        return True

    def hold(self, request: SimpleRequest) -> None:
        """Adds a request that the function shall not see, but that has no outcome yet."""
        self._open[request.id] = request

    def leave_out(self, settled: Sequence[SimpleRequest]) -> None:
        """Takes out requests whose outcome was told before: they go when the batch ends."""
        for request in settled:
            self._open.pop(request.id, None)
        if settled:
            self.requests = [request for request in self.requests if request.id in self._open]

    def tell_rest(self, request: SimpleRequest, meta: Mapping[str, Any]) -> None:
        """Tells what hangs on a request whose outcome was stored by a run that died then."""
        self._patiently(lambda: completion.tell_rest(self.task, request, meta))

    def give_up(self, request: SimpleRequest, exc: Exception) -> None:
        """Settles a request that cannot be run."""
        if isinstance(exc, UnknownEnvelope):
            self.put_back(request, UNKNOWN_DELAY_MS)
        else:
            logger.error("%s[%s] is given up: %s", request.name, request.id, exc)
            self.bury(request, exc)

    def reject(self, exc: Any) -> None:
        """Settles what is undecided when the function raised `Reject`."""
        for request in self.undecided:
            if exc.requeue:
                self.put_back(request)
            else:
                self.bury(request, exc)

    def _exhausted(self, request: SimpleRequest) -> Exception:
        make: Any = self.task.MaxRetriesExceededError
        text = f"Can't retry {self.task.name}[{request.id}] after {request.retries} retries"
        exc: Exception = make(text, task_args=request.args, task_kwargs=request.kwargs)
        return exc

    def requeued(self, task_id: str) -> None:
        """Notes that the function called the task again with the id of one of its requests."""
        self._open.pop(task_id, None)
        if self.lease is not None:
            self.lease.leave(task_id)

    def abandon(self) -> None:
        """Forgets what is undecided, when the function raised `Ignore`: nobody is told."""
        self._open.clear()

    def results_of(self, returned: Any) -> Mapping[str, Any]:
        """Returns what a function returned as results by request id.

        Args:
            returned: None; a list or tuple with a result per request, in order; or a mapping of
                request id to result.

        Raises:
            ResultCountError: A list has another length than the batch.
            ResultKeyError: A mapping has a key that is no request's id.
            ResultTypeError: It is something else.
        """
        ids = [request.id for request in self.requests]
        if returned is None:
            return {}
        if isinstance(returned, (list, tuple)):
            if len(returned) != len(ids):
                raise ResultCountError(self.task.name, len(returned), len(ids))
            return dict(zip(ids, returned, strict=True))
        if isinstance(returned, Mapping):
            if unknown := returned.keys() - set(ids):
                raise ResultKeyError(self.task.name, unknown.pop())
            return returned
        raise ResultTypeError(self.task.name, returned)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Settles what is undecided when the function returned.

        Args:
            results: By request id; an exception fails its request, a missing one is None.
        """
        self._ending = True
        store = self.task.returns_results
        self._tell_together([(r, results.get(r.id)) for r in self.undecided], store=store)
        for request in self.undecided:
            result = results.get(request.id)
            if isinstance(result, Exception):
                self.fail_or_retry(request, result)
            else:
                self.succeed(request, result, store=store)

    def fail_or_retry(
        self, request: SimpleRequest, exc: Exception, verb: Verb = Verb.RETRY
    ) -> bool:
        """Retries one request if the task's `autoretry_for` covers the exception, else fails it.

        Returns:
            Whether it will run again.
        """
        plan = self._plan(request, exc)
        if plan is None:
            self.fail(request, exc)
            return False
        return self.retry(request, exc=exc, verb=verb, **plan)

    def _plan(self, request: SimpleRequest, exc: Exception) -> dict[str, Any] | None:
        """Returns how a failure is retried, if at all.

        Those that failed together wait together: jitter must not scatter a batch.
        """
        failure = (type(exc), request.retries)
        if failure not in self._plans:
            self._plans[failure] = self.task.autoretry_plan(exc, request.retries)
        return self._plans[failure]

    def take_raised(self, exc: Exception) -> bool:
        """Settles what is undecided by what the function raised.

        Returns:
            Whether any of it will run again.
        """
        self._ending = True
        self._tell_together([(request, exc) for request in self.undecided], store=True)
        kept = [self.fail_or_retry(request, exc, Verb.RETRY_BATCH) for request in self.undecided]
        return any(kept)

    def fail_undecided(self, exc: Exception) -> None:
        """Settles what is undecided when something else ended the run."""
        self._ending = True
        self._tell_together([(request, exc) for request in self.undecided], store=True)
        for request in self.undecided:
            self.fail(request, exc)

    def retry_undecided(self, reason: Retry) -> None:
        """Settles what is undecided when the function raised a `Retry` of its own."""
        when: Any = reason.when
        seconds = when if isinstance(when, (int, float)) else None
        cause = reason.exc if isinstance(reason.exc, Exception) else None
        for request in self.undecided:
            self.retry(request, countdown=seconds, exc=cause, verb=Verb.RETRY_BATCH)

    def flush(self) -> None:
        """Tells Redis what is finished so far, so that a crash does not run it again."""
        if self.lease is not None and self._finished:
            finished, self._finished = self._finished, []
            self.lease.ack(finished)

    def settle(self, *, well: bool) -> list[Bells]:
        """Gives back what runs again, and ends the batch; returns the doorbells to ring.

        Args:
            well: Whether the function returned.
        """
        assert self.lease is not None
        for request in self.undecided:
            self.put_back(request)
        if well:
            self._log_outcomes()
        for request in self.requests:
            request.batch = None
        bells = self.lease.release(self._given_back) if self._given_back else []
        self.lease.ack(well=well)
        return bells

    def _log_outcomes(self) -> None:
        """Says which failed or retry; of a batch that raised, Celery logs the exception."""
        failed = {i: repr(value) for i, value in self.values.items() if _is_failure(value)}
        retried = {i: str(value) for i, value in self.values.items() if isinstance(value, Retry)}
        for level, verb, found in ((ERROR, "failed", failed), (INFO, "retry", retried)):
            if found:
                logger.log(
                    level,
                    "%d of %d requests of batch %s of %s %s: %s%s",
                    len(found),
                    len(self.values),
                    self.token,
                    self.task.name,
                    verb,
                    ", ".join(f"{i}: {found[i]}" for i in islice(found, LOGGED_REQUESTS)),
                    ", ..." if len(found) > LOGGED_REQUESTS else "",
                )

    def _take(self, request: SimpleRequest) -> bool:
        if self._open.pop(request.id, None) is not None:
            return True
        logger.warning(
            "%s[%s] has an outcome already: a second one is ignored", request.name, request.id
        )
        return False

    def _tell(self, request: SimpleRequest, value: Any, tell: Callable[[], bool]) -> bool | None:
        """Tells an outcome; returns whether a second run could find it, or None: not told."""
        if not self._take(request):
            return None
        self.values[request.id] = value
        if self.lease is None:
            return None
        try:
            self.confirm()
            return tell()
        except BaseException:
            self._open[request.id] = request
            raise

    def _tell_together(self, outcomes: Sequence[tuple[SimpleRequest, Any]], *, store: bool) -> None:
        """Tells many outcomes with few round trips; what it leaves open is told one by one.

        Args:
            outcomes: Undecided requests and their results, or exceptions.
            store: Whether values are stored, if a call does not ignore its result.
        """
        if self.lease is None:
            return
        final = [pair for pair in outcomes if self._is_plain_and_final(*pair)]
        while chunk := final[:CHUNK]:
            self.confirm()
            try:
                told = self._patiently(partial(self._try_together, chunk, store))
            except Exception as exc:
                if completion.is_transient(self.task, exc) or isinstance(exc, LeaseLost):
                    raise
                logger.warning("batch %s tells its outcomes one by one: %r", self.token, exc)
                return
            values = {request.id: value for request, value in chunk}
            for request in told:
                del self._open[request.id]
                self.values[request.id] = values[request.id]
                self._finished.append(request.id)
            # Large ones go out in parts; if none did, they can only be told one by one.
            rest = [pair for pair in chunk if pair[0].id in self._open] if told else []
            final = rest + final[CHUNK:]

    def _is_plain_and_final(self, request: SimpleRequest, value: Any) -> bool:
        if not completion.is_plain(request):
            return False
        return not (isinstance(value, Exception) and self._plan(request, value) is not None)

    def _try_together(
        self, outcomes: Sequence[tuple[SimpleRequest, Any]], store: bool
    ) -> list[SimpleRequest]:
        tell = partial(completion.tell_together, self.task, outcomes, self.confirm, store=store)
        return again(tell)

    def _forget(self, request: SimpleRequest, stored: bool | None) -> None:
        """Notes a told request as finished; at once where nothing else would tell a second run."""
        if stored is None:
            return
        self._finished.append(request.id)
        if not stored and not self._ending:
            self.flush()

    def _tell_success(self, request: SimpleRequest, value: Any, store: bool) -> bool:
        """Goes on and stores; a result that can never be stored fails its request instead."""
        task = self.task
        try:
            self._patiently(lambda: completion.go_on(task, request, value))
            return self._patiently(
                lambda: completion.tell_success(task, request, value, self.confirm, store=store)
            )
        except Exception as exc:
            if completion.is_transient(task, exc) or isinstance(exc, LeaseLost):
                raise
            logger.error("%s[%s] cannot tell its result: %r", request.name, request.id, exc)
            failure = exc
        return self._patiently(
            lambda: completion.tell_failure(task, request, failure, self.confirm)
        )

    def _tell_failure(self, request: SimpleRequest, exc: Exception) -> bool | None:
        def tell() -> bool:
            return completion.tell_failure(self.task, request, exc, self.confirm)

        return self._tell(request, exc, lambda: self._patiently(tell))

    def _patiently(self, tell: Callable[[], _T]) -> _T:
        """Tells again while the result backend cannot be reached; the lease is kept meanwhile."""
        deadline, pause = monotonic() + self.patience, 0.1
        while True:
            try:
                return tell()
            except Exception as exc:
                late = monotonic() + pause > deadline
                if self.lost or late or not completion.is_transient(self.task, exc):
                    raise
                logger.warning("cannot tell an outcome of batch %s yet: %r", self.token, exc)
            sleep(pause)
            pause = min(2 * pause, 2.0)

    def confirm(self) -> None:
        """Raises LeaseLost unless this run holds its requests for long enough to tell of one."""
        lease = self.lease
        if lease is None:
            return
        old = monotonic() - self._confirmed > self.task.lease / HEARTBEATS_PER_LEASE
        # Past its deadline a lease is not kept any more, but not lost before it ends.
        if old and not lease.lost and lease.extend():
            self._confirmed = monotonic()
        if lease.lost:
            raise LeaseLost(
                f"the lease on batch {self.token} of {self.task.name} ended while its function ran:"
                " another worker runs its requests, and nothing of this run counts"
            )


def _is_failure(value: Any) -> bool:
    return isinstance(value, Exception) and not isinstance(value, (Retry, TaskRevokedError))
