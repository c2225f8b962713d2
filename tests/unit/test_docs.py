"""What the documents point to is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


@cache
def names_in(path: Path) -> set[str]:
    """Returns the names of all functions and classes of a file, and of its assignments."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_and_file_that_a_document_names_is_there(document: Path) -> None:
    """A test that was renamed takes the line that it proves along."""
    text = document.read_text()

    missing = [
        f"{file}::{name}"
        for file, name in _TEST.findall(text)
        if not (ROOT / file).is_file() or name not in names_in(ROOT / file)
    ]
    missing += [link for link in _LINK.findall(text) if not (document.parent / link).exists()]
    assert not missing
