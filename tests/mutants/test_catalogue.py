"""The list of mutants: each still fits the code; `sh run.sh mutants` shows that each is caught."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.catalogue import ROOT, Misfit, Mutant, load, parse
from tests.mutants.trial import BY_WORKERS, stages

MUTANTS = load()

CODE = '''
class Batch:
    """A batch."""

    size = 1

    def retry(self):
        if self.lost:
            return 1
        return 2

    def fail(self):
        for each in self:
            return 2
        return 2


def retry():
    return 3
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package of one file."""
    (tmp_path / "redis_batches" / "runs").mkdir(parents=True)
    (tmp_path / "redis_batches" / "runs" / "batch.py").write_text(CODE)
    return tmp_path


def mutant(definition: str, *lines: str) -> Mutant:
    """Returns a mutant of the package."""
    return parse("\n".join([f"name {definition}", "# what", *lines]), "package.txt")


@pytest.mark.parametrize("mutant", [pytest.param(each, id=each.name) for each in MUTANTS])
def test_a_mutant_applies_once(mutant: Mutant, tmp_path: Path) -> None:
    """And changes its file into another that can be read."""
    file = mutant.find().file
    before = (ROOT / file).read_text()
    copy = tmp_path / file
    copy.parent.mkdir(parents=True)
    copy.write_text(before)

    with mutant.applied(tmp_path):
        assert copy.read_text() != before
        if copy.suffix == ".py":
            ast.parse(copy.read_text())

    assert copy.read_text() == before


def test_each_has_a_name_of_its_own() -> None:
    """And says what it breaks."""
    assert set(Counter(each.name for each in MUTANTS).values()) == {1}
    assert all(each.what for each in MUTANTS)


def test_every_script_is_broken_somehow() -> None:
    """Libraries of scripts, and the package, too."""
    broken = {each.find().file for each in MUTANTS}
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "lua").rglob("*.lua")} <= broken
    assert sum(each.source == "package.txt" for each in MUTANTS) >= 12


@pytest.mark.parametrize(
    ("definition", "lines", "becomes"),
    [
        ("Batch.retry", ("-if self.lost:", "-    return 1", "+pass"), "        pass\n"),
        ("Batch.retry", ("-return 1", "+return 9"), "            return 9\n"),
        ("retry", ("-return 3", "+return 9"), "    return 9\n"),
        ("Batch.size", ("-size = 1", "+size = 9"), "    size = 9\n"),
        ("batch.py", ("-return 3", "+return 9"), "    return 9\n"),
        ("runs/batch.py:Batch.retry", ("-return 2", "+return 9"), "        return 9\n"),
    ],
)
def test_a_mutant_names_a_definition_and_its_lines(
    tree: Path, definition: str, lines: tuple[str, ...], becomes: str
) -> None:
    """Wherever it lies, and however far it is indented."""
    with mutant(definition, *lines).applied(tree) as path:
        assert becomes in path.read_text()


@pytest.mark.parametrize(
    ("definition", "line", "advice"),
    [
        ("Batch.fail", "return 2", r"more than once \(.*batch\.py:14, .*batch\.py:15\); add"),
        (
            "Batch.fail",
            "return 1",
            r"they are in Batch\.retry \(redis_batches/runs/batch\.py\): name that",
        ),
        ("Batch.gone", "return 4", r"no such lines; if they were rewritten"),
        ("other.py", "return 3", r"other\.py has no such lines; they are in retry"),
    ],
)
def test_a_mutant_that_does_not_fit_says_what_to_do(
    tree: Path, definition: str, line: str, advice: str
) -> None:
    """Its lines were moved, rewritten, or are there twice."""
    with pytest.raises(Misfit, match=advice):
        mutant(definition, f"-{line}", "+pass").find(tree)


@pytest.mark.parametrize("file", ["", "lua/claim.lua", "redis_batches/app/ringer.py"])
def test_every_stage_is_there(file: str) -> None:
    """The tests that a mutant is tried on; those of its folder come first."""
    found = list(stages(file))

    named = [name for tests in found for name in tests if name.startswith("tests/")]
    assert all((ROOT / name).exists() for name in named)
    assert (
        found[0][0]
        == {
            "": "tests/lua",
            "lua/claim.lua": "tests/lua/test_claim.py",
            "redis_batches/app/ringer.py": "tests/unit/app",
        }[file]
    )


@pytest.mark.parametrize("beginning", BY_WORKERS)
def test_the_integration_tests_of_a_file_are_there(beginning: str) -> None:
    """So is the file, or the folder."""
    assert list(ROOT.glob(f"{beginning}*"))
    for name in BY_WORKERS[beginning]:
        assert (ROOT / f"tests/integration/test_{name}.py").exists()
