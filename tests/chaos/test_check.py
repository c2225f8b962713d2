"""The check itself: each violation is seen where there is one, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.check import CALL_BOUND, check
from tests.chaos.evidence import Evidence, Sample
from tests.chaos.faults import PROMOTION
from tests.chaos.ledger import FOLDER_VARIABLE, Call, Log, Run, Wait, read_calls
from tests.chaos.places import Blow

NUMBERS = {f"call-{number}": number for number in range(3)}
CALLS = {
    key: Call("square", [("SUCCESS", number**2)], key, task_id=f"id-{number}", done_at=0.1)
    for key, number in NUMBERS.items()
}
SETTLED = {"pushed": 3, "acked": 3, "dead": 0, "dropped": 0}
ANSWERS = {key: ("SUCCESS", number**2) for key, number in NUMBERS.items()}
#: A chord of two parts, of which one fails, and its body.
CHORD = {
    "chord.0": Call("add", [("SUCCESS", 1)], "chord", task_id="chord.0"),
    "chord.1": Call("add", [("FAILURE", "Refused")], "chord", task_id="chord.1"),
    "chord.2": Call("gather", [("FAILURE", "ChordError")], "chord", False, task_id="chord.2"),
}


def run_of(*calls: str, at: float = 1.0, **more: Any) -> Run:
    """A run of some calls, each for the first time."""
    count = len(calls)
    default: dict[str, Any] = {"token": f"t{at}", "pid": 1, "ended": True, "ended_at": at + 0.1}
    counts = {"attempts": [1] * count, "retries": [0] * count, "waited": [0.1] * count}
    values = {"fence": round(at * 1000), **default, **counts, **more}
    return Run("square", at=at, calls=[*calls], **values)


GOOD = Evidence(
    calls=CALLS,
    runs=[run_of(*CALLS)],
    notes=[],
    waits=[Wait("call-1", 0.5, ("SUCCESS", 1))],
    blows=[],
    stats={"square": SETTLED},
    letters={},
    answers=ANSWERS,
    told={"id-0": [(("SUCCESS", 0), 1.1)]},
    strays={},
    samples=[Sample(0.0, 1000, 5, 0)],
    drained=1.0,
)


def changed(key: str, **more: Any) -> dict[str, Call]:
    """The calls of a good run, one of them changed."""
    return {**CALLS, key: replace(CALLS[key], **more)}


def told(key: str, *outcomes: tuple[str, Any]) -> dict[str, Any]:
    """What was told of one call."""
    return {f"id-{NUMBERS[key]}": [(outcome, 1.1) for outcome in outcomes]}


WRONG: dict[str, list[dict[str, Any]]] = {
    "lost": [
        {"runs": [run_of("call-0", "call-1")], "answers": {**ANSWERS, "call-2": ("PENDING", None)}}
    ],
    "unexpected": [{"runs": [run_of(*CALLS, "call-9")]}],
    "oversize": [
        {"runs": [run_of(*CALLS, "call-0")]},
        {"runs": [run_of(*(f"call-{number}" for number in range(51)))]},
    ],
    "settled twice or never": [
        {"stats": {"square": {**SETTLED, "acked": 4}}},
        {"stats": {"square": {**SETTLED, "acked": 2}}},
        {"stats": {"square": {**SETTLED, "pushed": 4, "acked": 4}}},
    ],
    "hung callers": [
        {"answers": {**ANSWERS, "call-0": ("RETRY", "Again")}},
        {"waits": [Wait("call-1", 90.0, None)]},
        {
            "calls": changed("call-0", task_id=None, error="StoreError: down", flow="canvas"),
            "answers": {**ANSWERS, "call-0": ("STARTED", None)},
        },
    ],
    "told twice": [
        {"told": told("call-1", ("SUCCESS", 1), ("FAILURE", "OutOfMemoryError"))},
        {"told": told("call-1", ("REVOKED", None))},
        {"waits": [Wait("call-1", 0.5, ("SUCCESS", 7))]},
    ],
    "run though revoked": [
        {"calls": changed("call-0", revokes=[(0.5, 0.6)])},
    ],
    "calls that did not return": [
        {"stuck": ["producer-1"]},
        {"calls": changed("call-0", done_at=CALL_BOUND + 1)},
    ],
    "odd errors of calls": [
        {"calls": changed("call-0", task_id=None, error="ValueError: I/O operation")},
    ],
    "wrong results": [
        {"answers": {**ANSWERS, "call-2": ("SUCCESS", 5)}},
        {"answers": {**ANSWERS, "call-2": ("REVOKED", None)}},
        {"told": told("call-2", ("FAILURE", "OutOfMemoryError"))},
        {"waits": [Wait("call-1", 0.5, ("FAILURE", "WorkerLostError"))]},
    ],
    "given up": [{"letters": {"id-1": "WorkerLostError()"}}],
    "too many duplicates": [
        {"runs": [run_of(*CALLS), run_of("call-0", at=2.0)]},
        {"notes": ["call-9", "call-9"]},
    ],
    "stray keys": [{"strays": {"rb:{chaos/square}:own": "hash"}}],
    "not drained": [{"drained": None}],
}
CASES = [(name, case) for name, cases in WRONG.items() for case in cases]


def test_a_good_run_passes() -> None:
    """Nothing is found where nothing is wrong, and every violation has a case here."""
    report = check(GOOD)

    assert report.passed
    assert report.violations.keys() == WRONG.keys()


@pytest.mark.parametrize(("name", "case"), CASES)
def test_each_violation_is_seen(name: str, case: dict[str, Any]) -> None:
    """The run fails, and says why."""
    report = check(replace(GOOD, **case))

    assert not report.passed
    assert report.violations[name]


def test_a_call_of_unknown_outcome_may_have_any() -> None:
    """Whether it was stored, nobody knows: it may have run, or not."""
    calls = changed("call-0", task_id=None, error="StoreError: down")
    rest = run_of("call-1", "call-2")
    answers = {**ANSWERS, "call-0": ("PENDING", None)}
    stats = {"square": {**SETTLED, "pushed": 2, "acked": 2}}

    assert check(replace(GOOD, calls=calls)).passed
    assert check(replace(GOOD, calls=calls, answers=answers, told={})).passed
    never = replace(GOOD, calls=calls, runs=[rest], answers=answers, stats=stats, told={})
    assert check(never).passed


def test_what_is_revoked_may_end_so_without_a_run() -> None:
    """It may have run all the same, if it was claimed before."""
    calls = changed("call-0", revokes=[(0.9, 1.2)])
    answers = {**ANSWERS, "call-0": ("REVOKED", None)}
    rest = run_of("call-1", "call-2")

    assert check(replace(GOOD, calls=calls)).passed
    assert check(replace(GOOD, calls=calls, answers=answers, runs=[rest], told={})).passed


def a_chord(*, revoked: bool, body: tuple[str, Any]) -> Evidence:
    """A run in which a chord ended so, whose first part was revoked or not."""
    parts = ("chord.0", "chord.1")
    calls = {**CHORD}
    answers = {"chord.0": ("SUCCESS", 1), "chord.1": ("FAILURE", "Refused"), "chord.2": body}
    if revoked:
        calls["chord.0"] = replace(CHORD["chord.0"], revokes=[(0.9, 1.2)])
        calls["chord.1"] = replace(CHORD["chord.1"], expect=[("SUCCESS", 1)])
        calls["chord.2"] = replace(CHORD["chord.2"], expect=[("SUCCESS", [1, 1])])
        answers |= {"chord.0": ("REVOKED", None), "chord.1": ("SUCCESS", 1)}
    stats = {"add": {"pushed": 2, "acked": 2, "dead": 0, "dropped": 0}}
    return replace(
        GOOD,
        calls=calls,
        answers=answers,
        runs=[run_of(*parts[revoked:])],
        stats=stats,
        told={},
        waits=[],
    )


@pytest.mark.parametrize("revoked", [False, True])
def test_a_chord_fails_with_a_part(revoked: bool) -> None:
    """Its body must fail if a part does, also one that was revoked."""
    assert check(a_chord(revoked=revoked, body=("FAILURE", "ChordError"))).passed
    report = check(a_chord(revoked=revoked, body=("SUCCESS", [1])))
    assert [name for name, found in report.violations.items() if found] == ["wrong results"]


def test_a_body_that_was_never_called_is_a_hung_caller() -> None:
    """No producer sends it, but the canvas was accepted."""
    report = check(a_chord(revoked=False, body=("PENDING", None)))

    assert [name for name, found in report.violations.items() if found] == ["hung callers"]


def test_what_a_failover_may_lose_is_told_apart() -> None:
    """Only what was accepted in its window may be lost."""
    stats = {"square": {**SETTLED, "pushed": 2, "acked": 2}}
    lost: dict[str, Any] = {
        "runs": [run_of("call-0", "call-1", at=20.0)],
        "answers": {**ANSWERS, "call-2": ("PENDING", None)},
        "stats": stats,
        "told": {},
        "blows": [Blow(PROMOTION, 10.0, until=11.0)],
    }
    inside = changed("call-2", at=10.4, done_at=10.5)

    report = check(replace(GOOD, calls=inside, **lost))
    assert report.passed
    assert report.figures["lost by a failover"] == report.figures["hung by a failover"] == 1
    report = check(replace(GOOD, **lost))
    assert report.violations["lost"]
    assert report.violations["hung callers"]
    assert report.violations["settled twice or never"]


def test_what_a_failover_may_let_run_again_is_told_apart() -> None:
    """Its end may be told twice, but never a wrong one."""
    calls = changed("call-0", revokes=[(10.3, 10.6)])
    twice: dict[str, Any] = {
        "calls": calls,
        "answers": {**ANSWERS, "call-0": ("REVOKED", None)},
        "runs": [run_of(*CALLS, at=20.0)],
    }
    blows = [Blow(PROMOTION, 10.0, until=11.0)]

    report = check(replace(GOOD, **twice, blows=blows))
    assert report.passed
    assert report.figures["told twice by a failover"] == 1
    report = check(replace(GOOD, **twice, blows=[Blow(PROMOTION, 40.0, until=41.0)]))
    assert report.violations["told twice"]
    assert report.violations["run though revoked"]


def test_a_retry_is_no_duplicate() -> None:
    """A second run that the task asked for is not the fault of anybody."""
    again = run_of("call-0", at=2.0, retries=[1], attempts=[2])

    assert check(replace(GOOD, runs=[*GOOD.runs, again])).passed


def test_faults_allow_duplicates_and_tell_the_recovery() -> None:
    """A batch that a kill broke off runs again, and the time it took is told."""
    broken = run_of(*CALLS, pid=7, ended=False)
    again = run_of(*CALLS, at=3.5, attempts=[2] * 3)
    blow = Blow("kill_child", 1.5, (7,))

    report = check(replace(GOOD, runs=[broken, again], blows=[blow]))

    assert report.passed
    assert report.figures["duplicates"] == 3
    assert report.figures["recovery max (s)"] == 2.0
    assert report.figures["undisturbed max (s)"] == 2.0


def test_a_recovery_during_which_something_else_broke_is_told_apart() -> None:
    """How long a recovery takes by itself, only those say that nothing else disturbed."""
    broken = run_of(*CALLS, pid=7, ended=False)
    again = run_of(*CALLS, at=3.5, attempts=[2] * 3)
    blows = [Blow("kill_child", 1.5, (7,)), Blow("crash_broker", 2.5)]

    report = check(replace(GOOD, runs=[broken, again], blows=blows))

    assert report.figures["recoveries"] == 1
    assert report.figures["undisturbed recoveries"] == 0


def test_growth_is_told_early_and_late() -> None:
    """The first quarter, while it warms up, does not count."""
    samples = [Sample(float(n), 100 * n, 10 + n, 0) for n in range(8)]

    figures = check(replace(GOOD, samples=samples)).figures

    assert (figures["memory, early (B)"], figures["memory, late (B)"]) == (250, 650)
    assert (figures["keys, early"], figures["keys, late"]) == (12, 16)


def test_a_line_that_was_not_finished_was_never_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer that was killed while it wrote had not called yet."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    Log("calls").write([{"call": key, "task": "square", "expect": []} for key in ("a", "b")])
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:-5])

    assert read_calls(tmp_path).keys() == {"a"}
