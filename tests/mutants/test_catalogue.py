"""The list of mutants: each still fits the code; `sh run.sh mutants` shows that each is caught."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from redis_batches.driver.sources import load_sources
from tests.mutants.catalogue import ROOT, Mutant, load

MUTANTS = load()


@pytest.mark.parametrize("mutant", [pytest.param(each, id=each.name) for each in MUTANTS])
def test_a_mutant_applies_once(mutant: Mutant, tmp_path: Path) -> None:
    """And changes its file into another that can be read."""
    path = tmp_path / mutant.file
    path.parent.mkdir(parents=True)
    path.write_text((ROOT / mutant.file).read_text())

    assert mutant.occurrences(tmp_path) == 1
    before = mutant.apply(tmp_path)

    assert path.read_text() != before
    if path.suffix == ".py":
        ast.parse(path.read_text())


def test_each_has_a_name_of_its_own() -> None:
    """And says what it breaks."""
    assert set(Counter(each.name for each in MUTANTS).values()) == {1}
    assert all(each.what for each in MUTANTS)


def test_every_script_is_broken_somehow() -> None:
    """And the package, too."""
    broken = {each.file for each in MUTANTS}
    assert {f"lua/{name}.lua" for name in load_sources()} <= broken
    assert sum(each.file.startswith("redis_batches/") for each in MUTANTS) >= 12
