"""Where the definitions of a file begin and end: functions, methods, classes and constants."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from typing import TypeAlias

#: A name, as a mutant names it, and its first line and the line after its last, from 0.
Definition: TypeAlias = tuple[str, int, int]

_LUA_FUNCTION = re.compile(r"^local (?:function (\w+)|(\w+) = function)\b")


@cache
def definitions(suffix: str, text: str) -> tuple[Definition, ...]:
    """Returns the definitions of a file; a method is `Class.method`, an inner function is none."""
    found = _of_python(ast.parse(text).body) if suffix == ".py" else _of_lua(text)
    return tuple(found)


def _of_python(body: list[ast.stmt], owner: str = "") -> Iterator[Definition]:
    for node in body:
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(each.lineno for each in decorators)]) - 1
        for name in _names(node):
            yield owner + name, first, node.end_lineno or node.lineno
        if isinstance(node, ast.ClassDef):
            yield from _of_python(node.body, f"{owner}{node.name}.")


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [each.id for each in targets if isinstance(each, ast.Name)]


def _of_lua(text: str) -> Iterator[Definition]:
    """A function of a script begins and ends at the margin; what it defines inside is its own."""
    name, first = "", 0
    for number, line in enumerate(text.splitlines()):
        if begins := _LUA_FUNCTION.match(line):
            name, first = begins[1] or begins[2], number
        if name and (line == "end" or (begins and line.endswith(" end"))):
            yield name, first, number + 1
            name = ""
