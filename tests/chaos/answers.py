"""What callers were told: whether it is right, whether it is all, whether it is told once.

How each call may end is known before it is made; see `ledger.Call.expect`. A failover that loses
the newest writes is the one exception: calls that were accepted in its window may be lost, calls
that something happened to in it may be told twice. They are counted apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from tests.chaos.evidence import Evidence, is_final
from tests.chaos.faults import PROMOTION
from tests.chaos.ledger import Call, Outcome
from tests.chaos.tasks import LEASE

#: Seconds in which a batch that has told its outcomes ends.
ENDING = 2.0
#: Milliseconds that a claim's fence may be ahead of the clock.
FENCE_AHEAD = 50
EXHAUSTED: Outcome = ("FAILURE", "Again")
REVOKED: Outcome = ("REVOKED", None)
#: Unix times of a beginning and an end.
Span: TypeAlias = "tuple[float, float]"
#: A call's key, and what is wrong with it.
Found: TypeAlias = "tuple[str, str]"


class Answers:
    """Compares what was told with what had to be told.

    Args:
        evidence: What is known of the run.

    Attributes:
        losable: Calls that a failover may have lost.
        touched: Calls that a failover may have let run again.
        executed: Calls that ran.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self.losable, self.touched = _exposed(evidence)
        self._revoked = {call.flow for call in evidence.calls.values() if call.revokes}
        self.executed = {key for run in evidence.runs for key in run.calls}

    def lost(self) -> Iterator[Found]:
        """Yields accepted calls that never ran and that nobody was told the end of."""
        for key, call in self._evidence.calls.items():
            runs = not (call.task_id and call.sent) or key in self.executed
            if not runs and not self._evidence.outcomes(key):
                yield key, f"{call.task} {key}"

    def hung(self) -> Iterator[Found]:
        """Yields calls whose end was told to nobody, or not to everybody who waited."""
        for key, call in self._evidence.calls.items():
            state, _ = self._evidence.answers.get(key, ("", None))
            # Under which id a call alone was stored that did not return, nobody wrote down.
            begun = call.task_id or (call.flow != key and call.sent and key in self.executed)
            if begun and call.expect and not is_final((state, None)):
                yield key, f"{call.task} {key}: {state} at the end"
        for wait in self._evidence.waits:
            if wait.outcome is None:
                state, _ = self._evidence.answers[wait.call]
                task = self._evidence.calls[wait.call].task
                text = f"not told in {wait.seconds:.0f} s, {state} at the end"
                yield wait.call, f"{task} {wait.call}: {text}"

    def wrong(self) -> Iterator[Found]:
        """Yields calls of which somebody was told what must not be."""
        for key, call in self._evidence.calls.items():
            allowed = self._allowed(key, call)
            for outcome in self._evidence.outcomes(key):
                if outcome not in allowed:
                    yield key, f"{call.task} {key}: {outcome}, not one of {allowed}"

    def told_twice(self) -> Iterator[Found]:
        """Yields calls of which two ends were told."""
        for key, call in self._evidence.calls.items():
            outcomes = self._evidence.outcomes(key)
            if len(outcomes) > 1:
                yield key, f"{call.task} {key}: {outcomes}"

    def run_though_revoked(self) -> Iterator[Found]:
        """Yields calls that were claimed after somebody was told that they are revoked."""
        for run in self._evidence.runs:
            for key in run.calls:
                call = self._evidence.calls.get(key)
                for _, done_at in call.revokes if call else ():
                    if done_at and run.fence > done_at * 1000 + FENCE_AHEAD:
                        yield key, f"{run.task} {key}: ran {run.at - done_at:.1f} s later"

    def given_up(self) -> Iterator[Found]:
        """Yields dead letters of calls that do not fail by themselves after their retries."""
        keys = {call.task_id or key: key for key, call in self._evidence.calls.items()}
        for task_id, reason in self._evidence.letters.items():
            key = keys.get(task_id, task_id)
            call = self._evidence.calls.get(key)
            if call is None or EXHAUSTED not in call.expect:
                yield key, f"{call.task if call else ''} {key}: {reason}"

    def _allowed(self, key: str, call: Call) -> list[Outcome]:
        """Returns how a call may end: also revoked, or failed with what it needs, if that was."""
        if call.flow not in self._revoked:
            return call.expect
        more: Outcome = REVOKED if call.revokes else ("FAILURE", "ChordError")
        return [*call.expect, more] if call.revokes or not call.sent else call.expect


def _exposed(evidence: Evidence) -> tuple[set[str], set[str]]:
    """Returns the calls that were made in the window of a failover, and those touched in it.

    All calls of a canvas stand for each other: what leads to a call may be what was lost, and a run
    makes the calls that it leads to.
    """
    windows = [
        (blow.at, blow.until) for blow in evidence.blows if blow.kind == PROMOTION and blow.until
    ]
    calls = evidence.calls
    made = {call.flow for call in calls.values() if _overlaps(_making(call), windows)}
    touched = {call.flow for call, span in _handling(evidence) if _overlaps(span, windows)} | made
    losable = {
        key
        for key, call in calls.items()
        if call.flow in made or (call.flow != key and call.flow in touched)
    }
    return losable, {key for key, call in calls.items() if call.flow in touched}


def _making(call: Call) -> Span:
    return call.at, call.done_at or call.at + LEASE


def _handling(evidence: Evidence) -> Iterable[tuple[Call, Span]]:
    """Yields when a call was revoked, and when it ran and its outcome was told."""
    calls = evidence.calls
    for call in calls.values():
        for began, done in call.revokes:
            yield call, (began, done or began + LEASE)
    for run in evidence.runs:
        members = [calls[key] for key in run.calls if key in calls]
        told = [at for call in members for _, at in evidence.told.get(call.task_id or "", ())]
        ended = run.ended_at or run.at + 3 * LEASE
        for call in members:
            yield call, (run.fence / 1000, max(ended, *told, run.at) + ENDING)


def _overlaps(span: Span, windows: Sequence[Span]) -> bool:
    return any(span[0] <= end and span[1] >= start for start, end in windows)
