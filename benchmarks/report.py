"""The tables, in a terminal and as Markdown, and the machine that they were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import redis
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.bench import Section
from benchmarks.peer import ROOT
from benchmarks.values import Column, Row, Values, middle, number

#: What each section measured.
Measured: TypeAlias = Mapping[Section, Values]
#: Columns of a terminal that the widest table needs.
WIDTH = 150
HOW = "Each cell has the median, and below it the least and the greatest value of all rounds."


def show(console: Console, machine: Mapping[str, str], measured: Measured) -> None:
    """Prints the tables, and below them what they were measured on."""
    for section, values in measured.items():
        console.print(f"[bold]{section.title}[/bold]\n{section.note}")
        table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
        table.add_column("median\nmin-max")
        columns = _used(section, values)
        for column in columns:
            table.add_column(column.heading, justify="right", no_wrap=True)
        for row in values:
            cells = [_cell(values, row, column, "\n[dim]{}[/dim]") for column in columns]
            table.add_row(f"{row.title}\n[dim]{row.unit}[/dim]", *cells)
        console.print(table)
    for name, value in machine.items():
        console.print(f"{name}: {value}", highlight=False, soft_wrap=True)


def markdown(machine: Mapping[str, str], measured: Measured) -> str:
    """Returns the same as Markdown."""
    lines = ["# Measured", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    lines += ["", HOW]
    for section, values in measured.items():
        columns = _used(section, values)
        lines += ["", f"## {section.title}", "", section.note, ""]
        lines.append(_line("", "", *(column.heading for column in columns)))
        lines.append("|---|---|" + "---:|" * len(columns))
        for row in values:
            cells = [_cell(values, row, column, "<br><sub>{}</sub>") for column in columns]
            lines.append(_line(row.title, row.unit, *cells))
    return "\n".join(lines) + "\n"


def as_json(machine: Mapping[str, str], sizes: Mapping[str, Any], measured: Measured) -> Any:
    """Returns the same with the values of all rounds."""
    sections = {section.name: values.as_json() for section, values in measured.items()}
    return {"machine": dict(machine), "sizes": dict(sizes), "sections": sections}


def describe_machine(url: str, versions: Mapping[str, str]) -> dict[str, str]:
    """Returns what the figures depend on: processor, versions, and what else kept it busy.

    Args:
        url: The server.
        versions: What each side has installed, by its name.
    """
    with redis.Redis.from_url(url) as client:
        info: Any = client.info("server")
    server = info.get("server_name", "redis")
    return {
        "code": _code(),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "system": f"{platform.platform()}, Python {platform.python_version()}",
        "server": f"{server} {info.get(f'{server}_version', info['redis_version'])}",
        **versions,
    }


def _used(section: Section, values: Values) -> list[Column]:
    """Returns the columns in which something was measured."""
    return [c for c in section.columns if any(values.of(row, c.key) for row in values)]


def _cell(values: Values, row: Row, column: Column, spread: str) -> str:
    found = values.of(row, column.key)
    if not found:
        return ""
    median, least, most = middle(found)
    cell = f"{number(median)}{column.sign}"
    return (
        cell
        if len(found) == 1
        else cell + spread.format(f"{number(least)}-{number(most)}{column.sign}")
    )


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _code() -> str:
    """Returns the commit that is measured, with a plus if something was changed since."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "no git repository"
    return done.stdout.strip()


def _processor() -> str:
    for line in _lines_of("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _lines_of(path: str) -> Iterator[str]:
    try:
        yield from Path(path).read_text().splitlines()
    except OSError:
        return
