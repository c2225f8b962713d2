"""The total-queue check: what became of every attempted call.

What is lost, unexpected or duplicated is told as Jepsen's total-queue checker tells it, from what
the callers and the executions wrote down, not from what the queue says of itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from statistics import median
from typing import Any

from tests.chaos.faults import Blow
from tests.chaos.ledger import Call, Run
from tests.chaos.tasks import FLUSH_EVERY, INTERVALS, LEASE, SWEEP_INTERVAL

#: Seconds that a worker takes to start, and a server to come back.
RESTART = 5.0
#: Ids that a report names of each kind.
EXAMPLES = 20


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
        blows: Every fault.
        stats: What `Store.stats` says of each task, by its short name.
        answers: State and result of accepted calls whose task stores results.
        strays: Keys of the store that nobody needs any more, with what they hold.
        samples: What the store held while it went on, and at the end.
        drained: Seconds from the last fault until nothing was left to run, or None.
        doorbells: The most that waited in the broker at a time.
        stuck: Producers that a call did not return to.
        surprises: What happened to processes by itself.
    """

    calls: Mapping[str, Call]
    runs: Sequence[Run]
    blows: Sequence[Blow]
    stats: Mapping[str, Mapping[str, int]]
    answers: Mapping[str, tuple[str, Any]]
    strays: Mapping[str, str]
    samples: Sequence[Sample]
    drained: float | None
    doorbells: int = 0
    stuck: Sequence[str] = ()
    surprises: Sequence[str] = ()


@dataclass
class Report:
    """The figures of a run.

    Attributes:
        figures: By their names.
        violations: What must not happen, by its name: examples of it, none if it did not.
        faults: How often each fault happened.
        errors: How often producers got each error.
        surprises: What happened to processes by itself.
    """

    figures: dict[str, float | int | None] = field(default_factory=dict)
    violations: dict[str, list[str]] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    surprises: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing happened that must not happen."""
        return not any(self.violations.values())


def check(evidence: Evidence) -> Report:
    """Returns the figures and the violations of a run."""
    calls, runs = evidence.calls, evidence.runs
    accepted = {key for key, call in calls.items() if call.task_id}
    executed = {key for run in runs for key in run.calls}
    known = accepted | (executed & calls.keys())
    twice = _duplicates(runs)
    bound = len(evidence.blows) * FLUSH_EVERY
    report = Report(
        faults=dict(Counter(blow.kind for blow in evidence.blows)),
        errors=dict(Counter(_brief(call.error) for call in calls.values() if call.error)),
        surprises=list(evidence.surprises),
    )
    report.violations = {
        "lost": sorted(accepted - executed),
        "unexpected": sorted(executed - calls.keys()),
        "oversize": [run.token for run in runs if _is_oversize(run)],
        "settled twice or never": _miscounted(evidence, known),
        "hung callers": [key for key, (state, _) in evidence.answers.items() if not _ready(state)],
        "calls that did not return": list(evidence.stuck),
        "wrong results": list(_wrong(evidence)),
        "too many duplicates": sorted(twice) if twice.total() > bound else [],
        "stray keys": [f"{key}: {value}" for key, value in evidence.strays.items()],
        "not drained": [] if evidence.drained is not None else ["requests still wait or run"],
    }
    found = [*_recoveries(evidence)]
    recoveries = [seconds for seconds, _ in found]
    undisturbed = [seconds for seconds, alone in found if alone]
    early, late = _growth(evidence.samples)
    waits = [max(run.waited) for run in runs if run.attempts[0] == 1]
    report.figures = {
        "attempted": len(calls),
        "accepted": len(accepted),
        "unknown": len(calls) - len(accepted),
        "unknown, but executed": len(executed & calls.keys() - accepted),
        "executed": len(executed),
        "batches": len(runs),
        "batches that died": sum(not run.ended for run in runs),
        "failed by time limit": sum(state == "FAILURE" for state, _ in evidence.answers.values()),
        "dead letters": sum(stats["dead"] for stats in evidence.stats.values()),
        "duplicates": twice.total(),
        "duplicates allowed": bound,
        "late batches": sum(_is_late(run) for run in runs),
        "longest wait (s)": round(max(waits, default=0), 2),
        "recoveries": len(recoveries),
        "recovery p50 (s)": round(median(recoveries), 2) if recoveries else None,
        "recovery max (s)": round(max(recoveries), 2) if recoveries else None,
        "undisturbed recoveries": len(undisturbed),
        "undisturbed p50 (s)": round(median(undisturbed), 2) if undisturbed else None,
        "undisturbed max (s)": round(max(undisturbed), 2) if undisturbed else None,
        "drained after (s)": evidence.drained,
        "most doorbells in the broker": evidence.doorbells,
        "keys, early": early.keys,
        "keys, late": late.keys,
        "keys at the end": evidence.samples[-1].keys,
        "memory, early (B)": early.memory,
        "memory, late (B)": late.memory,
        "memory at the end (B)": evidence.samples[-1].memory,
    }
    return report


def _is_oversize(run: Run) -> bool:
    """Whether a batch is larger than it may be, or holds a request twice."""
    return len(run.calls) > FLUSH_EVERY or len(set(run.calls)) < len(run.calls)


def _duplicates(runs: Iterable[Run]) -> Counter[str]:
    """Returns how often each call ran again without being a retry."""
    tries = Counter(
        (key, retries) for run in runs for key, retries in zip(run.calls, run.retries, strict=True)
    )
    twice: Counter[str] = Counter()
    for (key, _), count in tries.items():
        if count > 1:
            twice[key] += count - 1
    return twice


def _miscounted(evidence: Evidence, known: set[str]) -> list[str]:
    """Compares the store's own counters with the calls that were stored, task by task.

    More acks than calls: two runs settled one. Fewer: one was never settled, or a call of unknown
    outcome was stored and never executed.
    """
    stored = Counter(evidence.calls[key].task for key in known)
    wrong = []
    for task, stats in evidence.stats.items():
        ended = stats["acked"] + stats["dead"] + stats["dropped"]
        if not stored[task] == stats["pushed"] == ended:
            wrong.append(f"{task}: {stored[task]} stored, {dict(stats)}")
    return wrong


def _ready(state: str) -> bool:
    return state in ("SUCCESS", "FAILURE", "REVOKED")


def _wrong(evidence: Evidence) -> Iterable[str]:
    """Yields the calls whose callers got something else than they should."""
    for key, (state, result) in evidence.answers.items():
        call = evidence.calls[key]
        right = state == "SUCCESS" and result == call.number**2
        limited = call.task == "limited" and "TimeLimitExceeded" in repr(result)
        if _ready(state) and not right and not limited:
            yield f"{call.task} {key}: {state} {result!r}"


def _is_late(run: Run) -> bool:
    """Whether a batch that was not full began much later than its interval says."""
    allowed = INTERVALS[run.task] + SWEEP_INTERVAL + LEASE + RESTART
    return run.attempts[0] == 1 and len(run.calls) < FLUSH_EVERY and max(run.waited) > allowed


def _growth(samples: Sequence[Sample]) -> tuple[Sample, Sample]:
    """Returns what the store held in the second quarter of the time, and in the last: medians."""
    quarter = max(len(samples) // 4, 1)
    return _middle(samples[quarter : 2 * quarter] or samples), _middle(samples[-quarter:])


def _middle(samples: Sequence[Sample]) -> Sample:
    rows = [(each.memory, each.keys, each.waiting) for each in samples]
    memory, keys, waiting = (round(median(column)) for column in zip(*rows, strict=True))
    return Sample(samples[0].seconds, memory, keys, waiting)


def _recoveries(evidence: Evidence) -> Iterable[tuple[float, bool]]:
    """Yields, for each batch that a kill broke off, seconds until the last of it ran again.

    With each whether no other fault came between. Requests that never ran again had been settled
    before.
    """
    starts: dict[str, list[float]] = {}
    broken: dict[int, list[Run]] = {}
    for run in evidence.runs:
        for key in run.calls:
            starts.setdefault(key, []).append(run.at)
        if not run.ended:
            broken.setdefault(run.pid, []).append(run)
    for blow, following in zip_longest(evidence.blows, evidence.blows[1:]):
        for run in (run for pid in blow.killed for run in broken.get(pid, ())):
            later = ([at for at in starts[key] if at > blow.at] for key in run.calls)
            again = max((ats[0] for ats in later if ats), default=None)
            if run.at <= blow.at and again is not None:
                yield again - blow.at, following is None or again < following.at


def _brief(error: str) -> str:
    """Returns an error without what differs from one time to the next."""
    return error.splitlines()[0][:100]
