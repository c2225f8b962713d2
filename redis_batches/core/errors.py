"""Every error of this package, under one base; the docstring of each says when it is raised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kombu.exceptions import OperationalError


class BatchesError(Exception):
    """The base of every error that redis_batches raises on its own.

    Attributes:
        accepted: Of `delay_many` and `apply_async_many`: the results of the calls that were stored
            before, in order; all others were not, but those of a script call whose reply was lost.
    """

    accepted: tuple[Any, ...] = ()
    _text: str | None = None

    def _say(self, text: str, *args: Any) -> None:
        """Sets the text, and what the class is called with to make the same error again.

        Pickle and Celery's result backends do that with `args`.
        """
        self._text, self.args = text, args

    def __str__(self) -> str:
        return super().__str__() if self._text is None else self._text

    def __repr__(self) -> str:
        return (
            super().__repr__() if self._text is None else f"{type(self).__name__}({self._text!r})"
        )


class ServerNotFound(BatchesError):
    """No Redis or Valkey executable could be found for an embedded server."""


class UnsupportedServer(BatchesError):
    """The server is too old, or is set up in a way that would lose what waits in it."""


class StoreError(BatchesError, OperationalError):
    """Redis could not be reached or refused a command; nothing of the call was stored.

    It is also a `kombu.exceptions.OperationalError`, the error that Celery's own `delay()`
    raises when its broker is down, so that one `except` covers both.

    Attributes:
        passes_by_itself: Whether what was refused may be accepted if it is sent again.
    """

    passes_by_itself = False


class OutOfMemory(StoreError):
    """Redis is at its `maxmemory` and refuses what needs more: raise it, or drain the backlog."""


class Unanswered(StoreError):
    """A server that did not answer a moment ago is not asked again yet."""

    passes_by_itself = True

    def __init__(self, server: str, seconds: float) -> None:
        self._say(
            f"{server} did not answer a moment ago; it is asked again in {seconds:.1f} s",
            server,
            seconds,
        )


class ResendTooLate(StoreError):
    """A call was sent again because a reply was lost, too late to know whether it ran already.

    It may or may not have been stored. Redis remembers the calls that ended last, but not all of
    those that ended since this one was first sent; sent once more, it could run twice.

    Attributes:
        unknown: Ids of the requests that may or may not have been stored.
    """

    def __init__(self, task: str, unknown: Sequence[str]) -> None:
        self._say(
            f"{len(unknown)} calls of {task} may or may not have been stored: a reply "
            "was lost, and they were sent again so late that they may have run and be forgotten; "
            "look for their results before you call again",
            task,
            tuple(unknown),
        )
        self.unknown = tuple(unknown)


class ScriptReplyError(BatchesError):
    """A script answered in a shape that no script of this version has."""


class RouteLost(BatchesError):
    """Somebody deleted what Redis had noted of a queue, so nobody could be woken for its requests.

    Attributes:
        count: Requests that were left as they are.
        done: Requests that were dealt with.
    """

    def __init__(self, task: str, count: int, done: int) -> None:
        self._say(
            f"{count} requests of {task} were called for a queue that neither Redis nor this app "
            f"knows any more, and were left as they are ({done} others were dealt with): name it, "
            "as in inspector.repair(queues=['other'])",
            task,
            count,
            done,
        )
        self.count = count
        self.done = done


class OptionError(BatchesError, ValueError):
    """An option of a task or a setting has a value that is not allowed."""

    def __init__(self, option: str, value: object, allowed: str, shown: str | None = None) -> None:
        shown = repr(value) if shown is None else shown
        self._say(f"{option} is {shown}, but must be {allowed}", option, None, allowed, shown)


class UnknownOption(OptionError):
    """A task has an option, or an app a setting, that looks like a mistyped one of this package."""

    def __init__(self, option: str, likely: str | None) -> None:
        hint = f": did you mean {likely}?" if likely else ""
        self._say(f"{option} is not known here{hint}", option, likely)


class RequestError(BatchesError, ValueError):
    """A call cannot become a request; nothing was stored."""


class PayloadTooLarge(RequestError):
    """The encoded call is larger than `redis_batches_max_payload` allows.

    Attributes:
        size: Bytes of the encoded call.
        limit: Bytes allowed.
    """

    def __init__(self, size: int, limit: int) -> None:
        self._say(
            f"the call takes {size:,} bytes, and redis_batches_max_payload allows {limit:,}: "
            "pass a reference (a key, a path, an id) instead of the data",
            size,
            limit,
        )
        self.size = size
        self.limit = limit


class InvalidTaskId(RequestError):
    """A `task_id` holds characters that a request's id may not have, or is too long."""

    def __init__(self, task_id: object, shown: str | None = None) -> None:
        shown = repr(task_id) if shown is None else shown
        self._say(
            f"task_id {shown} is not usable: 1 to 128 characters of A-Z a-z 0-9 _ . : - "
            "are allowed",
            None,
            shown,
        )


class UnusableCall(RequestError):
    """One call of many cannot become a request; `__cause__` says why.

    Attributes:
        index: Its place among the calls; the first is 0.
        stored: How many calls before it were stored.
    """

    def __init__(self, index: int, stored: int, cause: Exception | str) -> None:
        self._say(
            f"call {index} cannot become a request: {cause}; {stored} calls before it were stored",
            index,
            stored,
            str(cause),
        )
        self.index = index
        self.stored = stored


class NotReplicated(BatchesError):
    """Calls are stored, but fewer replicas than `redis_batches_wait_replicas` have them.

    They run, unless their server is lost before its replicas are in step. Do not call again: they
    would run twice. So this is no `OperationalError`, for which many programs do.

    Attributes:
        missing: How many replicas did not answer within `redis_batches_deadline`.
    """

    def __init__(self, task: str, missing: int) -> None:
        self._say(
            f"the call of {task} is stored and will run, but {missing} of the replicas that "
            "redis_batches_wait_replicas asks for did not get it in time: do not call again, "
            "and look at the replicas (INFO replication)",
            task,
            missing,
        )
        self.missing = missing


class DuplicateTaskId(RequestError):
    """A request with this `task_id` is already waiting or running; that one is kept."""

    def __init__(self, task_id: str) -> None:
        self._say(
            f"a request with task_id {task_id!r} is already waiting or running; it was kept, "
            "and this call was not stored",
            task_id,
        )
        self.task_id = task_id


class BacklogFull(BatchesError):
    """As many requests of the task wait as `redis_batches_max_pending` allows.

    Attributes:
        refused: Ids of the requests that were not stored, in the order of the calls.
    """

    def __init__(self, task: str, limit: int, refused: Sequence[str]) -> None:
        self._say(
            f"{task} has {limit:,} requests waiting, as many as redis_batches_max_pending "
            f"allows; {len(refused)} of this call not stored: add workers, or raise the limit",
            task,
            limit,
            tuple(refused),
        )
        self.refused = tuple(refused)


class PutBackTooOften(BatchesError):
    """Runs gave a request back without an outcome, as often as `redis_batches_max_put_backs` says.

    It fails with this error and is kept as a dead letter. What a shutdown, an outage or a newer
    version put back does not count.
    """

    def __init__(self, task: str, task_id: str, times: int, reason: str) -> None:
        last = f", the last time because of {reason}" if reason else ""
        self._say(
            f"{task}[{task_id}] was put back {times} times without an outcome{last}",
            task,
            task_id,
            times,
            reason,
        )


class LeaseLost(BatchesError):
    """The lease on a batch ended while its function still ran, so another worker may run it.

    Whatever the late run does to its requests changes nothing. Heartbeats keep a lease alive;
    they stop when the process was paused or cut off from Redis for longer than
    `redis_batches_lease`.
    """


class ResultCountError(BatchesError, ValueError):
    """A batch function returned a list that does not have one element per request."""

    def __init__(self, task: str, returned: int, requests: int) -> None:
        self._say(
            f"{task} returned a list of {returned} results for a batch of {requests} requests: "
            "return one per request in their order, a dict by request id, or None",
            task,
            returned,
            requests,
        )


class ResultKeyError(BatchesError, ValueError):
    """A batch function returned a dict with a key that is not the id of one of its requests."""

    def __init__(self, task: str, key: object, shown: str | None = None) -> None:
        shown = repr(key) if shown is None else shown
        self._say(
            f"{task} returned a dict with the key {shown}, which is no request's id: use "
            "request.id as key, or return None and settle with request.succeed(value)",
            task,
            None,
            shown,
        )


class ResultTypeError(BatchesError, TypeError):
    """A batch function returned something that does not say a result for each request."""

    def __init__(self, task: str, returned: object, shown: str | None = None) -> None:
        shown = type(returned).__name__ if shown is None else shown
        self._say(
            f"{task} returned {shown}: return a list with a result per request "
            "in their order, a dict by request id, or None",
            task,
            None,
            shown,
        )
