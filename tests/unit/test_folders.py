"""The folders say what they hold: their docstrings, the documents and the picture are the same."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "architecture" / "folders.py"


@pytest.fixture(scope="module")
def folders() -> dict[str, Any]:
    """What the script that draws them defines."""
    return runpy.run_path(str(SCRIPT))


def test_each_folder_is_on_a_floor_and_says_one_sentence(folders: dict[str, Any]) -> None:
    """Its `__init__` holds nothing else, so who imports from a folder names the file."""
    found = {path.parent.name for path in (ROOT / "redis_batches").glob("*/__init__.py")}
    assert found == set(folders["sentences"]())
    for folder in found:
        tree = ast.parse((ROOT / "redis_batches" / folder / "__init__.py").read_text())
        assert [type(node) for node in tree.body] == [ast.Expr], folder
        assert re.fullmatch(r"[^.]+[.]", folders["sentences"]()[folder]), folder


@pytest.mark.parametrize("index", [0, 1])
def test_a_table_of_folders_says_what_they_say(folders: dict[str, Any], index: int) -> None:
    """In their order, the top floor first; `python docs/architecture/folders.py` renews it."""
    rows = folders["ROW"].findall(folders["DOCUMENTS"][index].read_text("utf-8"))

    assert dict(rows) == folders["sentences"]()
    assert [folder for folder, _ in rows] == list(folders["sentences"]())


def test_the_files_that_contributors_are_shown_are_there() -> None:
    """Each row of the table has an example of its own folder."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^[|] `(\w+)` [|].*`(\w+)(/\w+[.]py)` [|]$", text, re.M)

    assert len(rows) == len(list((ROOT / "redis_batches").glob("*/__init__.py")))
    for folder, named, file in rows:
        assert named == folder
        assert (ROOT / "redis_batches" / (named + file)).is_file()


def test_the_picture_shows_the_imports(folders: dict[str, Any]) -> None:
    """`python docs/architecture/folders.py` draws it anew."""
    assert folders["PICTURE"].read_text("utf-8") == folders["draw"]()
