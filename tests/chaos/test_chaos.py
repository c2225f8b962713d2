"""A minute of faults, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.campaign import Plan, run
from tests.chaos.ledger import FOLDER_VARIABLE


@pytest.mark.chaos
@pytest.mark.timeout(400)
def test_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is killed, paused or restarted, every accepted call runs and ends once."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))

    report = run(Plan(seed=1, minutes=1.0), tmp_path, print)

    assert report.passed, report.violations
    assert (report.figures["executed"] or 0) > 1000
    assert len(report.faults) > 5
