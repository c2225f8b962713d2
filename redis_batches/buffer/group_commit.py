"""Group commit: calls that come while a script call is out share the next one.

Whoever finds nobody at work leads: it sends its own request with those that wait already, answers
their callers, and hands over to the next one that waits. So a lone caller never waits for another,
and a caller is answered as soon as its own request's fate is known.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any, NamedTuple, Protocol

from redis_batches.buffer.chunks import PUSH_BYTES, PUSH_CHUNK
from redis_batches.core.age import Age
from redis_batches.core.errors import BatchesError, StoreError
from redis_batches.core.requests import Group, Outgoing, Pushed, Status
from redis_batches.core.triggers import Bells, Trigger
from redis_batches.driver.deadline import until

#: Seconds after which those that wait look whether there still is a leader.
LOOK_AGAIN = 1.0


class Push(Protocol):
    """What stores requests, as `Store.push` does."""

    def __call__(
        self, group: Group, trigger: Trigger, requests: Sequence[Outgoing], *, age: Age
    ) -> Pushed:
        """Stores up to 500 requests of a group."""


class PushKey(NamedTuple):
    """What requests have in common that may share a script call.

    Attributes:
        group: Where they wait.
        trigger: When a batch of them is due.
        priority: Of the doorbells that they cause.
    """

    group: Group
    trigger: Trigger
    priority: int | None


class Committed(NamedTuple):
    """What became of a request.

    Attributes:
        status: What the script said of it.
        bells: The flush signal, for the caller that led; None for the others.
        missing: How many of the replicas that were waited for do not have it.
    """

    status: Status
    bells: Bells | None
    missing: int = 0


class _Ticket:
    """A request and the thread or greenlet that waits for its fate."""

    __slots__ = (
        *("age", "ends", "error", "gate", "gone", "key", "missing", "request", "status"),
        "unshared",
    )

    def __init__(self, key: PushKey, request: Outgoing, ends: float) -> None:
        self.key = key
        self.request = request
        #: When its caller is answered at the latest.
        self.ends = ends
        #: Knows when it was first sent; None: it was not.
        self.age: Age | None = None
        self.status: Status | None = None
        self.missing = 0
        self.error: BatchesError | None = None
        #: Released when it is answered, or to lead; None: it never waited.
        self.gate: Any = None
        #: Whether it shares no script call any more, because one failed in an unknown way.
        self.unshared = False
        #: Whether its caller has left.
        self.gone = False

    @property
    def answered(self) -> bool:
        return self.status is not None or self.error is not None


class Committer:
    """Pushes the requests that the threads and greenlets of a process make of one task.

    Args:
        push: Stores up to 500 requests of a group; it may be sent twice without harm.
        deadline: Seconds in which each caller is answered, with the time that it waits for others.
        slack: Seconds that the reply to a push may take.
    """

    def __init__(self, push: Push, deadline: float = math.inf, slack: float = 0.0) -> None:
        self._push = push
        self._deadline = deadline
        self._slack = slack
        # Held for moments, never while anything is sent.
        self._mutex = threading.Lock()
        self._leader: _Ticket | None = None
        self._sent: list[_Ticket] = []
        self._waiting: deque[_Ticket] = deque()
        self._inside: set[int] = set()
        #: How the last leader that had no success was answered.
        self._trouble: BatchesError = StoreError(
            "Redis has not answered calls of other threads, so this one was not sent"
        )

    def commit(self, key: PushKey, request: Outgoing) -> Committed:
        """Stores a request; returns when its own fate is known.

        Raises:
            StoreError: Redis could not be reached, or refused.
            ScriptReplyError: Redis answered what no script does.
        """
        me = threading.get_ident()
        if me in self._inside:
            # A signal handler or a finalizer that interrupted this very thread: it cannot wait.
            pushed = self._push(key.group, key.trigger, [request], age=Age(self._slack))
            return Committed(pushed.statuses[0], pushed.bells, pushed.missing)
        ticket, bells = _Ticket(key, request, monotonic() + self._deadline), None
        self._inside.add(me)
        try:
            try:
                if self._wait_for_turn(ticket):
                    with until(ticket.ends):
                        bells = self._lead(ticket)
            finally:
                self._leave(ticket)
        finally:
            # Even if a signal's exception broke into `_leave`.
            ticket.gone = True
            self._inside.discard(me)
        if ticket.error is not None:
            raise ticket.error
        assert ticket.status is not None
        return Committed(ticket.status, bells, ticket.missing)

    def _wait_for_turn(self, ticket: _Ticket) -> bool:
        """Returns whether the ticket leads; else it has been answered."""
        with self._mutex:
            if self._leader is None:
                self._leader = ticket
                return True
            # Looked up now: gevent may have put its own there.
            ticket.gate = threading.Lock()
            ticket.gate.acquire()
            self._waiting.append(ticket)
        while not ticket.gate.acquire(timeout=LOOK_AGAIN):
            if self._take_over(ticket):
                break
        return not ticket.answered

    def _take_over(self, ticket: _Ticket) -> bool:
        """Leads if the leader went without handing over; returns whether the wait is over."""
        with self._mutex:
            if ticket.answered or self._leader is ticket:
                return True
            if self._leader is None or self._leader.gone:
                self._drop(ticket)
                self._sent, self._leader = [], ticket
                return True
            if ticket.ends < monotonic() and ticket in self._waiting:
                self._drop(ticket)
                ticket.error = _copy(self._trouble)
                return True
            if ticket not in self._waiting and ticket not in self._sent:
                self._waiting.append(ticket)
            return False

    def _lead(self, ticket: _Ticket) -> Bells | None:
        """Sends what waits with the leader's own request, and notes the fate of each."""
        self._sent = sent = [ticket]
        if self._waiting:
            with self._mutex:
                sent += self._gather(ticket)
        age = ticket.age or Age(self._slack)
        for other in sent:
            other.age = age
        key, requests = ticket.key, [other.request for other in sent]
        try:
            pushed = self._push(key.group, key.trigger, requests, age=age)
        except BatchesError as exc:
            ticket.error = self._trouble = exc
            for other in sent[1:]:
                other.error = _copy(exc)
            return None
        except Exception:
            # One of the requests may be the cause, and it need not be the leader's.
            for other in sent[1:]:
                other.unshared = True
            raise
        for other, status in zip(sent, pushed.statuses, strict=True):
            other.missing = pushed.missing
            other.status = status
        return pushed.bells

    def _gather(self, leader: _Ticket) -> list[_Ticket]:
        """Gathers the requests that share a script call with the leader's, oldest first."""
        taken: list[_Ticket] = []
        if leader.unshared:
            return taken
        size, left = len(leader.request.envelope), deque[_Ticket]()
        # A leader with little time left does not fail for those that have much.
        latest = 2 * leader.ends - monotonic()
        for ticket in self._waiting:
            larger = size + len(ticket.request.envelope)
            fits = len(taken) + 1 < PUSH_CHUNK and larger <= PUSH_BYTES
            # What was sent before shares a call only with what was sent with it: one age for all.
            fits = fits and ticket.age is leader.age
            shares = ticket.key == leader.key and not ticket.unshared and ticket.ends <= latest
            if fits and shares:
                taken.append(ticket)
                size = larger
            else:
                left.append(ticket)
        self._waiting = left
        return taken

    def _leave(self, ticket: _Ticket) -> None:
        """Goes: a leader answers those that it sent for, and hands over to the next."""
        ticket.gone = True
        with self._mutex:
            if self._leader is not ticket:
                self._drop(ticket)
                return
            sent, self._sent = self._sent[1:], []
            # They have no fate if the leader was interrupted: they are sent again.
            again = [other for other in sent if not (other.answered or other.gone)]
            self._waiting.extendleft(reversed(again))
            self._leader = self._waiting.popleft() if self._waiting else None
            for other in sent:
                if other.answered:
                    other.gate.release()
            if self._leader is not None:
                self._leader.gate.release()

    def _drop(self, ticket: _Ticket) -> None:
        if not ticket.answered and ticket in self._waiting:
            self._waiting.remove(ticket)


def _copy(exc: BatchesError) -> BatchesError:
    """Returns an error of the same kind: threads that raise the same one garble its traceback."""
    copy = type(exc)(*exc.args)
    copy.__cause__ = exc
    return copy
