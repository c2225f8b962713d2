"""The check itself: each violation is seen where there is one, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.check import Evidence, Sample, check
from tests.chaos.faults import Blow
from tests.chaos.ledger import FOLDER_VARIABLE, Call, Log, Run, read_calls

CALLS = {f"call-{number}": Call("square", number, f"id-{number}") for number in range(3)}
SETTLED = {"pushed": 3, "acked": 3, "dead": 0, "dropped": 0}


def run_of(*calls: str, at: float = 1.0, **more: Any) -> Run:
    """A run of some calls, each for the first time."""
    count = len(calls)
    default: dict[str, Any] = {"token": f"t{at}", "fence": 1, "pid": 1, "ended": True}
    counts = {"attempts": [1] * count, "retries": [0] * count, "waited": [0.1] * count}
    return Run("square", at=at, calls=[*calls], **{**default, **counts, **more})


GOOD = Evidence(
    calls=CALLS,
    runs=[run_of(*CALLS)],
    blows=[],
    stats={"square": SETTLED},
    answers={key: ("SUCCESS", call.number**2) for key, call in CALLS.items()},
    strays={},
    samples=[Sample(0.0, 1000, 5, 0)],
    drained=1.0,
)
WRONG: dict[str, dict[str, Any]] = {
    "lost": {"runs": [run_of("call-0", "call-1")]},
    "unexpected": {"runs": [run_of(*CALLS, "call-9")]},
    "oversize": {"runs": [run_of(*CALLS, "call-0")]},
    "settled twice or never": {"stats": {"square": {**SETTLED, "acked": 4}}},
    "hung callers": {"answers": {"call-0": ("RETRY", None)}},
    "calls that did not return": {"stuck": ["producer-1"]},
    "wrong results": {"answers": {"call-2": ("SUCCESS", 5)}},
    "too many duplicates": {"runs": [run_of(*CALLS), run_of("call-0", at=2.0)]},
    "stray keys": {"strays": {"rb:{chaos/square}:own": "hash"}},
    "not drained": {"drained": None},
}


def test_a_good_run_passes() -> None:
    """Nothing is found where nothing is wrong, and every violation has a case here."""
    report = check(GOOD)

    assert report.passed
    assert report.violations.keys() == WRONG.keys()


@pytest.mark.parametrize("name", WRONG)
def test_each_violation_is_seen(name: str) -> None:
    """The run fails, and says why."""
    report = check(replace(GOOD, **WRONG[name]))

    assert not report.passed
    assert report.violations[name]


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
    Log("calls").write([{"call": key, "task": "square", "number": 1} for key in ("a", "b")])
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:-5])

    assert read_calls(tmp_path).keys() == {"a"}
