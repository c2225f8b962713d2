"""All that is known of a run at its end, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tests.chaos.ledger import Call, Outcome, Run, Wait
from tests.chaos.places import Blow


@dataclass(frozen=True)
class Sample:
    """What the store held at a time.

    Attributes:
        seconds: Since the first fault; infinite at the end.
        memory: Bytes that it used.
        keys: How many keys it had.
        waiting: Requests that waited.
    """

    seconds: float
    memory: int
    keys: int
    waiting: int


@dataclass(frozen=True)
class Evidence:
    """All that is known when nothing runs any more.

    Attributes:
        calls: Every attempted call, by its id.
        runs: Every execution of a batch, the first one first.
        notes: Ids of the calls of the task that is no batch task, one for each run of them.
        waits: What callers who waited were told.
        blows: Every fault.
        stats: What `Store.stats` says of each task, by its short name.
        letters: Why each dead letter is one, by its task id.
        answers: What is stored of each call of which anybody is told, at the end.
        told: The different final states that were told of each task id, each with the Unix time
            at which it was told last.
        strays: Keys of the store that nobody needs any more, with what they hold.
        samples: What the store held while it went on, and at the end.
        drained: Seconds from the last fault until nothing was left to run, or None.
        doorbells: The most that waited in the broker at a time.
        stuck: Producers that a call did not return to, or that it ended.
        surprises: What happened to processes by itself.
    """

    calls: Mapping[str, Call]
    runs: Sequence[Run]
    notes: Sequence[str]
    waits: Sequence[Wait]
    blows: Sequence[Blow]
    stats: Mapping[str, Mapping[str, int]]
    letters: Mapping[str, str]
    answers: Mapping[str, Outcome]
    told: Mapping[str, Sequence[tuple[Outcome, float]]]
    strays: Mapping[str, str]
    samples: Sequence[Sample]
    drained: float | None
    doorbells: int = 0
    stuck: Sequence[str] = ()
    surprises: Sequence[str] = ()

    def outcomes(self, key: str) -> list[Outcome]:
        """Returns every different state that anybody was told of a call: one, if all is well."""
        call = self.calls[key]
        heard = [outcome for outcome, _ in self.told.get(call.task_id or key, ())]
        waited = [wait.outcome for wait in self.waits_for.get(key, ()) if wait.outcome]
        found: list[Outcome] = []
        for outcome in (*heard, *waited, self.answers.get(key, ("PENDING", None))):
            if is_final(outcome) and outcome not in found:
                found.append(outcome)
        return found

    @cached_property
    def waits_for(self) -> Mapping[str, Sequence[Wait]]:
        """What callers who waited were told, by the call."""
        found: dict[str, list[Wait]] = {}
        for wait in self.waits:
            found.setdefault(wait.call, []).append(wait)
        return found


@dataclass
class Report:
    """The figures of a run.

    Attributes:
        figures: By their names.
        violations: What must not happen, by its name: examples of it, none if it did not.
        faults: How often each fault happened.
        hits: How many connections, commands or bytes each fault hit.
        errors: How often producers got each error.
        surprises: What happened to processes by itself.
    """

    figures: dict[str, float | int | None] = field(default_factory=dict)
    violations: dict[str, list[str]] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    hits: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    surprises: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing happened that must not happen."""
        return not any(self.violations.values())


def is_final(outcome: Outcome) -> bool:
    """Whether a call has ended."""
    return outcome[0] in ("SUCCESS", "FAILURE", "REVOKED")
