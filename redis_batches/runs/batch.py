"""What became of each request of one run: decisions only, nothing is stored or sent here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from redis_batches.core.outcomes import Outcome, Verb


class Fate(Enum):
    """What became of a request that its batch does not give back."""

    #: Its outcome was reported, or it is to have none: it is forgotten.
    FORGOTTEN = "forgotten"
    #: It is not this batch's any more: a call with its id took it over, or it was reclaimed.
    ELSEWHERE = "elsewhere"


Decision: TypeAlias = "Outcome | Fate"


class Named(Protocol):
    """What the ledger knows of a request."""

    @property
    def id(self) -> str:
        """The task id."""


_R = TypeVar("_R", bound=Named)


class Batch(Generic[_R]):
    """The requests of one run, and what was decided of each.

    A request is decided by one assignment, so that an exception of a signal's handler comes before
    that or after it.

    Args:
        requests: The calls that the function sees.

    Attributes:
        requests: The calls that the function sees, oldest first.
        values: What callers are told, by id: a result, or an exception.
        called: Whether the function was called.
    """

    def __init__(self, requests: Iterable[_R] = ()) -> None:
        self.requests: list[_R] = []
        self.values: dict[str, Any] = {}
        self.called = False
        self._known: dict[str, _R] = {}
        #: By id; what is not in it has no outcome.
        self._decided: dict[str, Decision] = {}
        self._doubtful: set[str] = set()
        #: Ids that Redis has forgotten, or taken back, already.
        self._saved: set[str] = set()
        self.add(requests)

    def add(self, requests: Iterable[_R]) -> None:
        """Adds calls that the function sees."""
        for request in requests:
            self.requests.append(request)
            self.hold(request)

    def hold(self, request: _R) -> None:
        """Adds a call that the function does not see, but that has no outcome yet."""
        self._known[request.id] = request

    def __iter__(self) -> Iterator[_R]:
        """Yields every call, seen by the function or not."""
        return iter(list(self._known.values()))

    # -- what is known

    @property
    def undecided(self) -> list[_R]:
        """The requests that have no outcome yet."""
        return [request for task_id, request in self._known.items() if task_id not in self._decided]

    @property
    def doubtful(self) -> list[_R]:
        """Those of the undecided requests whose outcome may have been stored all the same."""
        return [request for request in self.undecided if request.id in self._doubtful]

    @property
    def unsaved(self) -> Mapping[str, Decision]:
        """What was decided and Redis does not know yet, by id."""
        return {task_id: d for task_id, d in self._decided.items() if task_id not in self._saved}

    def find(self, task_id: str) -> _R | None:
        """Returns the undecided request with an id."""
        return None if task_id in self._decided else self._known.get(task_id)

    def is_decided(self, task_id: str) -> bool:
        """Whether a request has an outcome."""
        return task_id in self._decided

    # -- deciding

    def suspect(self, ids: Iterable[str]) -> None:
        """Notes that outcomes are about to be stored: whatever breaks in may come after that."""
        self._doubtful.update(ids)

    def settle(self, task_id: str, value: Any, decision: Decision) -> Decision:
        """Decides a request whose outcome was reported; returns what holds.

        A call with its id may have taken it over meanwhile: that stays.
        """
        self.values[task_id] = value
        return self._decided.setdefault(task_id, decision)

    def decide(self, task_id: str, decision: Decision) -> None:
        """Decides a request, whatever was decided of it before."""
        self._decided[task_id] = decision

    def leave_out(self, requests: Iterable[_R]) -> None:
        """Takes out requests whose outcome was reported by an earlier run."""
        for request in requests:
            self._decided[request.id] = Fate.FORGOTTEN
        self.show_undecided()

    def show_undecided(self) -> None:
        """Leaves out of `requests` what has an outcome."""
        self.requests = [request for request in self.requests if request.id not in self._decided]

    def put_back_rest(self, ids: Iterable[str], verb: Verb, delay_ms: int, reason: str) -> None:
        """Lets what has no outcome run again.

        Args:
            ids: All that were claimed, decoded or not.
            verb: `PUT_BACK`, or `POSTPONE` for a cause outside the requests.
            delay_ms: How long it waits for that, if it was not put back before.
            reason: Why; kept for an operator.
        """
        for task_id in ids:
            if task_id not in self._decided:
                self._decided[task_id] = Outcome(task_id, verb, delay_ms, reason)

    def abandon_rest(self) -> None:
        """Notes that what has no outcome was taken back from this run."""
        for task_id in self._known:
            self._decided.setdefault(task_id, Fate.ELSEWHERE)

    def note_saved(self, ids: Iterable[str]) -> None:
        """Notes that Redis has forgotten requests, or has them back."""
        self._saved.update(ids)
