"""The figures of a run as a table and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict

from rich import box
from rich.console import Console
from rich.table import Table

from tests.chaos.check import EXAMPLES
from tests.chaos.evidence import Report


def as_json(report: Report, **more: object) -> str:
    """Returns a report as JSON text.

    Args:
        report: The report.
        more: What to say first, e.g. the seed.
    """
    return json.dumps({**more, "passed": report.passed, **asdict(report)}, indent=2)


def show(console: Console, report: Report) -> None:
    """Prints the table and the verdict."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column(width=29)
    table.add_column(justify="right", width=20)
    for name, figure in report.figures.items():
        table.add_row(name, "-" if figure is None else f"{figure:,}")
    table.add_section()
    for name, found in report.violations.items():
        table.add_row(name, f"[bold red]{len(found):,}[/]" if found else "[green]0[/]")
    table.add_section()
    for name, count in sorted(report.faults.items()):
        hits = f" ({report.hits[name]:,} hit)" if report.hits[name] else ""
        table.add_row(name, f"{count:,}{hits}")
    console.print(table)
    for error, count in report.errors.items():
        console.print(f"{count:,} calls raised {error}", markup=False, soft_wrap=True)
    for surprise, count in Counter(text.partition(" ")[2] for text in report.surprises).items():
        console.print(f"{count:,} workers {surprise}")
    for name, found in report.violations.items():
        for example in found[:EXAMPLES]:
            console.print(f"{name}: {example}", markup=False, style="red", soft_wrap=True)
    console.print("[bold green]OK[/]" if report.passed else "[bold red]FAILED[/]")
