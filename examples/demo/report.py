"""The table at the end."""

from __future__ import annotations

from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

from examples.demo.audit import Audit
from examples.demo.tasks import FLUSH_EVERY, FLUSH_INTERVAL

MAX_FAULTS = 10


def show(console: Console, audit: Audit, http_requests: int, seconds: float) -> None:
    """Prints the tables and the verdict.

    Args:
        console: Where to.
        audit: What is known about the calls.
        http_requests: Requests that the API got.
        seconds: How long the whole demo took.
    """
    console.print(by_task(audit, http_requests))
    console.print(overall(audit))
    faults = audit.faults()
    for fault in faults[:MAX_FAULTS]:
        console.print(f"[red]-[/] {fault}", soft_wrap=True)
    if faults:
        console.print(f"[bold red]FAILED[/] {len(faults):,} faults in {seconds:.1f} s.")
    else:
        console.print(
            "[bold green]OK[/] Every call was executed exactly once and every result is right"
            f" ({seconds:.1f} s)."
        )


def by_task(audit: Audit, http_requests: int) -> Table:
    """What happened to the calls of each task."""
    tasks = ("count_click", "reputation")
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("", width=34)
    for task in tasks:
        table.add_column(task, justify="right", width=16)
    sizes = {task: [len(run.ids) for run in audit.runs_of(task)] for task in tasks}
    full = {task: sizes[task].count(FLUSH_EVERY) for task in tasks}

    def row(name: str, *cells: str) -> None:
        table.add_row(name, *cells)

    row("calls accepted", *(f"{len(audit.accepted(task)):,}" for task in tasks))
    row("executed exactly once", *(f"{audit.executed_once(task):,}" for task in tasks))
    row("results checked", f"{audit.clicks.total():,} clicks", f"{audit.checked:,} answers")
    table.add_section()
    row("batches", *(f"{len(sizes[task]):,}" for task in tasks))
    row(f"  by count ({FLUSH_EVERY} calls)", *(f"{full[task]:,}" for task in tasks))
    row(
        f"  by interval ({FLUSH_INTERVAL:g} s)",
        *(f"{len(sizes[task]) - full[task]:,}" for task in tasks),
    )
    row("batch size, min / median / max", *(_spread(sizes[task]) for task in tasks))
    row("HTTP requests", "-", f"{http_requests:,}")
    return table


def overall(audit: Audit) -> Table:
    """Who did the work, and how fast."""
    table = Table.grid(padding=(0, 2))
    table.add_column(width=34)
    table.add_column(justify="right")
    table.add_column(style="dim")
    executed = sum(len(run.ids) for run in audit.runs)
    for worker, count in audit.shares().items():
        table.add_row(f"share of {worker}", f"{count:,} calls", f"{count / executed:.1%}")
    rush = f"in the rush of {audit.seconds:.1f} s"
    table.add_row("accepted", f"{audit.accept_rate:,.0f} calls/s", rush)
    table.add_row("executed", f"{audit.execute_rate:,.0f} calls/s", "in the same time")
    waits = [run.waited for run in audit.runs if len(run.ids) < FLUSH_EVERY]
    if waits:
        spread = f"{min(waits):.2f} to {max(waits):.2f} s"
        table.add_row("oldest call of a batch by interval", spread, "waited")
    return table


def _spread(sizes: list[int]) -> str:
    return f"{min(sizes)} / {median(sizes):g} / {max(sizes)}" if sizes else "-"
