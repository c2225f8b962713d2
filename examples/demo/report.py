"""The tables at the end, and the verdict."""

from __future__ import annotations

from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

from examples.demo import ledger
from examples.demo.audit import Audit
from examples.demo.ledger import Run
from examples.demo.tasks import FLUSH_EVERY, FLUSH_INTERVAL

TASKS = ("count_click", "reputation")
MAX_FAULTS = 10


def show(console: Console, audit: Audit, http_requests: int, seconds: float) -> None:
    """Prints the tables and the verdict.

    Args:
        console: Where to.
        audit: What is known about the calls.
        http_requests: Requests that the web API got.
        seconds: How long the whole demo took.
    """
    console.print(calls_table(audit, http_requests), speed_table(audit))
    calls = sum(len(audit.accepted(task)) for task in TASKS)
    console.print(
        f"{calls:,} calls ran in {len(audit.runs):,} batches; the demo took {seconds:.1f} s."
    )
    faults = audit.faults()
    if not faults:
        console.print(
            "[bold green]OK[/] every call was executed exactly once, and every result is right."
        )
        return
    for fault in faults[:MAX_FAULTS]:
        console.print(f"- {fault}", markup=False, style="red", soft_wrap=True)
    console.print(f"[bold red]FAILED[/] {len(faults):,} faults.")


def calls_table(audit: Audit, http_requests: int) -> Table:
    """Shows what became of the calls of each task."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("", width=34)
    for task in TASKS:
        table.add_column(task, justify="right", width=16)
    runs = [audit.runs_of(task) for task in TASKS]
    full = [[run for run in some if run.full] for some in runs]

    def row(name: str, cells: list[str]) -> None:
        table.add_row(name, *cells)

    row("calls accepted", [f"{len(audit.accepted(task)):,}" for task in TASKS])
    row("executed exactly once", [f"{audit.executed_once(task):,}" for task in TASKS])
    row("results checked", [f"{audit.clicks.total():,} clicks", f"{audit.checked:,} answers"])
    row("HTTP requests for them", ["-", f"{http_requests:,}"])
    table.add_section()
    row("batches", [f"{len(some):,}" for some in runs])
    row(f"  by count ({FLUSH_EVERY} calls)", [f"{len(some):,}" for some in full])
    partial = [len(some) - len(those) for some, those in zip(runs, full, strict=True)]
    row(f"  by interval ({FLUSH_INTERVAL:g} s)", [f"{count:,}" for count in partial])
    row("  size: min / median / max", [_sizes(some) for some in runs])
    row("  by interval: the oldest waited", [_waits(some) for some in runs])
    return table


def speed_table(audit: Audit) -> Table:
    """Shows who did the work, and how fast."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_header=False)
    table.add_column(width=34)
    table.add_column(justify="right", width=16)
    table.add_column(justify="right", style="dim", width=16)
    shares = ledger.shares(audit.runs)
    for worker, count in shares.items():
        table.add_row(f"executed by {worker}", f"{count:,}", f"{count / sum(shares.values()):.0%}")
    rush = f"rush of {audit.seconds:.1f} s"
    table.add_row("accepted while both sent", f"{audit.accept_rate:,.0f} calls/s", rush)
    table.add_row("executed meanwhile", f"{audit.execute_rate:,.0f} calls/s", "the same time")
    return table


def _sizes(runs: list[Run]) -> str:
    sizes = [len(run.ids) for run in runs]
    return f"{min(sizes)} / {median(sizes):g} / {max(sizes)}" if sizes else "-"


def _waits(runs: list[Run]) -> str:
    waits = [run.waited for run in runs if not run.full]
    return f"{min(waits):.2f} to {max(waits):.2f} s" if waits else "-"
