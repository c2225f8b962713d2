"""Draws the folders of the package and what each imports: `python docs/architecture/folders.py`.

Rows are the floors of the import contract in pyproject.toml, and boxes say what the folders'
docstrings say. Arrows are read from the imports; one that others imply is left out. It renews the
sentences in the documents' tables of folders, too.
"""

from __future__ import annotations

import ast
import re
from html import escape
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "redis_batches"
PICTURE = Path(__file__).with_suffix(".svg")
#: Each has a table whose first two columns are the folders and their sentences.
DOCUMENTS = (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md")
ROW = re.compile(r"^[|] `(\w+)` [|] ([^|]*) [|]", re.M)

WIDTH, MARGIN, BOX, GAP = 720, 90, 46, 26
#: Width of a character of a sentence, on average.
CHARACTER = 6.0


def floors() -> list[list[str]]:
    """Returns the folders of each floor, the top floor first."""
    found = re.search(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert found is not None
    return [line.split(" | ") for line in re.findall(r'"(.*)"', found[1])]


def sentences() -> dict[str, str]:
    """Returns what each folder holds, as its docstring says it."""
    return {
        folder: ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text())) or ""
        for floor in floors()
        for folder in floor
    }


def imports() -> dict[str, set[str]]:
    """Returns the folders that each folder imports from, also for types and inside functions."""
    found: dict[str, set[str]] = {folder: set() for floor in floors() for folder in floor}
    for folder, others in found.items():
        for path in (PACKAGE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                for name in _imported(node):
                    if name in found and name != folder:
                        others.add(name)
    return found


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        modules = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return []
    return [module.split(".")[1] for module in modules if module.startswith("redis_batches.")]


def arrows() -> list[tuple[str, str]]:
    """Returns who imports whom, without what follows from the rest."""
    found = imports()

    def reached(folder: str) -> set[str]:
        return found[folder].union(*map(reached, found[folder]))

    return [
        (folder, other)
        for folder in found
        for other in sorted(found[folder])
        if not any(other in reached(between) for between in found[folder] - {other})
    ]


def draw() -> str:
    """Returns the picture."""
    places = _places()
    height = GAP + len(floors()) * (BOX + GAP)
    said = sentences()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="sans-serif" text-anchor="middle">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8"'
        ' markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="#57606a"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        *(_arrow(places[source], places[target]) for source, target in arrows()),
        *(_box(folder, said[folder], places[folder]) for folder in places),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _places() -> dict[str, tuple[int, int, int]]:
    """Returns the left and upper edge of each folder's box, and its width."""
    places = {}
    for row, floor in enumerate(floors()):
        width = (WIDTH - 2 * MARGIN - GAP * (len(floor) - 1)) // len(floor)
        for column, folder in enumerate(floor):
            places[folder] = (MARGIN + column * (width + GAP), GAP + row * (BOX + GAP), width)
    return places


def _box(folder: str, sentence: str, place: tuple[int, int, int]) -> str:
    left, top, width = place
    lines = wrap(sentence.replace("`", ""), int(width / CHARACTER))
    middle = left + width // 2
    texts = [
        f'<text x="{middle}" y="{top + 30 + 12 * number}" font-size="11">{escape(line)}</text>'
        for number, line in enumerate(lines)
    ]
    return "\n".join(
        [
            f'<rect x="{left}" y="{top}" width="{width}" height="{BOX}" rx="5" fill="#f6f8fa"'
            ' stroke="#57606a"/>',
            f'<text x="{middle}" y="{top + 16}" font-size="13" font-weight="bold">{folder}</text>',
            *texts,
        ]
    )


def _arrow(source: tuple[int, int, int], target: tuple[int, int, int]) -> str:
    style = 'fill="none" stroke="#57606a" marker-end="url(#head)"'
    if target[1] - source[1] == BOX + GAP:
        # Straight down where one box is above the other.
        upper, lower = (source, source) if source[2] <= target[2] else (target, target)
        if source[2] == target[2]:
            lower = target
        start, end = upper[0] + upper[2] // 2, lower[0] + lower[2] // 2
        return f'<path d="M{start} {source[1] + BOX} L{end} {target[1]}" {style}/>'
    start, end, right = source[1] + BOX // 2, target[1] + BOX // 2, source[0] + source[2]
    bend = right + MARGIN * 2 // 3
    return f'<path d="M{right} {start} C{bend} {start} {bend} {end} {right} {end}" {style}/>'


def renewed(text: str) -> str:
    """Returns a document whose table says what the folders say."""
    said = sentences()
    return ROW.sub(lambda row: f"| `{row[1]}` | {said.get(row[1], row[2])} |", text)


if __name__ == "__main__":
    PICTURE.write_text(draw(), "utf-8")
    for document in DOCUMENTS:
        document.write_text(renewed(document.read_text("utf-8")), "utf-8")
