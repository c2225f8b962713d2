"""The total-queue check: what became of every attempted call.

What is lost, unexpected or duplicated is told as Jepsen's total-queue checker tells it, from what
the callers and the executions wrote down, not from what the queue says of itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from itertools import zip_longest
from statistics import median

from tests.chaos.answers import Answers, Found
from tests.chaos.cluster import CONCURRENCY, WORKERS
from tests.chaos.evidence import Evidence, Report, Sample
from tests.chaos.ledger import Run
from tests.chaos.tasks import FLUSH_EVERY, INTERVALS, LEASE, SWEEP_INTERVAL

#: Seconds that a worker takes to start, and a server to come back.
RESTART = 5.0
#: Seconds in which a call returns, of a batch task that is called alone: what `delay` waits for
#: the store, and for the broker.
CALL_BOUND = 30.0
#: The first word of the faults of servers.
SERVERS = ("store", "broker", "backend")
#: What a call may raise: errors of this package, which are kombu's `OperationalError`.
ERRORS = ("StoreError", "OutOfMemory")
#: Ids that a report names of each kind.
EXAMPLES = 20


def check(evidence: Evidence) -> Report:
    """Returns the figures and the violations of a run."""
    answers = Answers(evidence)
    report = Report(
        faults=dict(Counter(blow.kind for blow in evidence.blows)),
        hits=dict(_hits(evidence)),
        errors=dict(Counter(_brief(call.error) for call in evidence.calls.values() if call.error)),
        surprises=list(evidence.surprises),
    )
    report.violations = {
        "lost": _texts(answers.lost(), answers.losable),
        "hung callers": _texts(answers.hung(), answers.losable),
        "told twice": _texts(answers.told_twice(), answers.touched),
        "run though revoked": _texts(answers.run_though_revoked(), answers.touched),
        "wrong results": _texts(answers.wrong()),
        "given up": _texts(answers.given_up()),
        "unexpected": sorted(answers.executed - evidence.calls.keys()),
        "oversize": [run.token for run in evidence.runs if _is_oversize(run)],
        "settled twice or never": [*_miscounted(evidence, answers)],
        "calls that did not return": [*evidence.stuck, *_slow_calls(evidence)],
        "odd errors of calls": [*_odd_errors(evidence)],
        "too many duplicates": _too_many(evidence, answers),
        "stray keys": [f"{key}: {value}" for key, value in evidence.strays.items()],
        "not drained": [] if evidence.drained is not None else ["requests still wait or run"],
    }
    report.figures = {
        **_counts(evidence, answers),
        **_failover(answers),
        **_times(evidence),
        **_sizes(evidence),
    }
    return report


def _texts(found: Iterable[Found], exposed: Container[str] = ()) -> list[str]:
    return [text for key, text in found if key not in exposed]


def _count(found: Iterable[Found], exposed: Container[str]) -> int:
    return sum(key in exposed for key, _ in found)


def _counts(evidence: Evidence, answers: Answers) -> dict[str, float | int | None]:
    calls, runs = evidence.calls, evidence.runs
    accepted = {key for key, call in calls.items() if call.task_id}
    states = Counter(state for state, _ in evidence.answers.values())
    return {
        "attempted": len(calls),
        "accepted": len(accepted),
        "unknown": len(calls) - len(accepted),
        "unknown, but executed": len(answers.executed & calls.keys() - accepted),
        "executed": len(answers.executed),
        "canvases": len({call.flow for key, call in calls.items() if call.flow != key}),
        "ended well": states["SUCCESS"],
        "failed as they had to": states["FAILURE"],
        "revoked": states["REVOKED"],
        "asked to be revoked": sum(bool(call.revokes) for call in calls.values()),
        "callers who waited": len(evidence.waits),
        "batches": len(runs),
        "batches that died": sum(not run.ended for run in runs),
        "dead letters": sum(stats["dead"] for stats in evidence.stats.values()),
        "duplicates": _duplicates(evidence).total(),
        "duplicates allowed": _duplicates_allowed(evidence, answers),
    }


def _failover(answers: Answers) -> dict[str, float | int | None]:
    """Returns what happened inside the documented window of a failover, which is no violation."""
    return {
        "touched by a failover": len(answers.touched),
        "lost by a failover": _count(answers.lost(), answers.losable),
        "hung by a failover": len({key for key, _ in answers.hung() if key in answers.losable}),
        "told twice by a failover": _count(answers.told_twice(), answers.touched),
    }


def _times(evidence: Evidence) -> dict[str, float | int | None]:
    found = [*_recoveries(evidence)]
    recoveries = [seconds for seconds, _ in found]
    undisturbed = [seconds for seconds, alone in found if alone]
    waits = [max(run.waited) for run in evidence.runs if run.attempts[0] == 1]
    told = [wait.seconds for wait in evidence.waits if wait.outcome]
    calls = [call.done_at - call.at for call in evidence.calls.values() if call.done_at]
    return {
        "late batches": sum(_is_late(run) for run in evidence.runs),
        "longest wait (s)": round(max(waits, default=0), 2),
        "a caller is told p50 (s)": round(median(told), 2) if told else None,
        "a caller is told max (s)": round(max(told), 2) if told else None,
        "longest call (s)": round(max(calls, default=0), 2),
        "recoveries": len(recoveries),
        "recovery p50 (s)": round(median(recoveries), 2) if recoveries else None,
        "recovery max (s)": round(max(recoveries), 2) if recoveries else None,
        "undisturbed recoveries": len(undisturbed),
        "undisturbed p50 (s)": round(median(undisturbed), 2) if undisturbed else None,
        "undisturbed max (s)": round(max(undisturbed), 2) if undisturbed else None,
        "drained after (s)": evidence.drained,
    }


def _sizes(evidence: Evidence) -> dict[str, float | int | None]:
    early, late = _growth(evidence.samples)
    return {
        "most doorbells in the broker": evidence.doorbells,
        "keys, early": early.keys,
        "keys, late": late.keys,
        "keys at the end": evidence.samples[-1].keys,
        "memory, early (B)": early.memory,
        "memory, late (B)": late.memory,
        "memory at the end (B)": evidence.samples[-1].memory,
    }


def _hits(evidence: Evidence) -> Counter[str]:
    hits: Counter[str] = Counter()
    for blow in evidence.blows:
        hits[blow.kind] += blow.hits
    return hits


def _is_oversize(run: Run) -> bool:
    """Whether a batch is larger than it may be, or holds a request twice."""
    return len(run.calls) > FLUSH_EVERY or len(set(run.calls)) < len(run.calls)


def _duplicates(evidence: Evidence) -> Counter[str]:
    """Returns how often each call ran again without being a retry."""
    tries = Counter(
        (key, retries)
        for run in evidence.runs
        for key, retries in zip(run.calls, run.retries, strict=True)
    )
    tries.update((key, 0) for key in evidence.notes)
    twice: Counter[str] = Counter()
    for (key, _), count in tries.items():
        if count > 1:
            twice[key] += count - 1
    return twice


def _duplicates_allowed(evidence: Evidence, answers: Answers) -> int:
    """Returns how many duplicates the faults explain.

    Each fault of a process may end a batch, each fault of a server all batches that run. What ran
    in the window of a failover may run again.
    """
    batches = sum(
        WORKERS * CONCURRENCY if blow.kind.partition("_")[0] in SERVERS else 1
        for blow in evidence.blows
    )
    return batches * FLUSH_EVERY + len(answers.touched)


def _too_many(evidence: Evidence, answers: Answers) -> list[str]:
    twice = _duplicates(evidence)
    allowed = _duplicates_allowed(evidence, answers)
    return sorted(twice) if twice.total() > allowed else []


def _miscounted(evidence: Evidence, answers: Answers) -> Iterable[str]:
    """Compares the store's own counters with the calls that were stored, task by task.

    More acks than calls: two runs settled one. Fewer: one was never settled, or a call of unknown
    outcome was stored and never executed. A failover may lose what it touched.
    """
    calls = evidence.calls
    known = {key for key, call in calls.items() if call.task_id and call.sent}
    known |= answers.executed & calls.keys()
    stored = Counter(calls[key].task for key in known)
    touched = Counter(calls[key].task for key in answers.touched)
    for task, stats in evidence.stats.items():
        ended = stats["acked"] + stats["dead"] + stats["dropped"]
        if stats["pushed"] != ended or abs(stored[task] - ended) > touched[task]:
            yield f"{task}: {stored[task]} stored, {dict(stats)}"


def _odd_errors(evidence: Evidence) -> Iterable[str]:
    """Yields errors that no caller expects; those of canvases may come from the result backend."""
    for key, call in evidence.calls.items():
        if call.flow == key and call.error and call.error.partition(":")[0] not in ERRORS:
            yield f"{call.task} {key}: {_brief(call.error)}"


def _slow_calls(evidence: Evidence) -> Iterable[str]:
    """Yields calls of single tasks that took too long; a canvas makes many calls."""
    for key, call in evidence.calls.items():
        if call.flow == key and call.done_at and call.done_at - call.at > CALL_BOUND:
            yield f"{call.task} {key}: {call.done_at - call.at:.0f} s"


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
