"""The table at the end, and the verdict."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

from examples.demo.audit import Audit
from examples.demo.ledger import Run, shares
from examples.demo.tasks import FLUSH_EVERY, FLUSH_INTERVAL

MAX_FAULTS = 10


def show(console: Console, audit: Audit, http_requests: int, seconds: float) -> bool:
    """Prints the table and the verdict.

    Args:
        console: Where to.
        audit: What is known about the calls.
        http_requests: Requests that the web API got.
        seconds: How long the whole demo took.

    Returns:
        Whether nothing was wrong.
    """
    console.print(table_of(audit, http_requests))
    console.print(
        f"{len(audit.accepted()):,} calls ran in {len(audit.runs):,} batches;"
        f" the rush took {audit.rush:.1f} s, the whole demo {seconds:.1f} s."
    )
    faults = audit.faults()
    if not faults:
        console.print(
            "[bold green]OK[/] every call was executed exactly once, and every result is right."
        )
        return True
    for fault in faults[:MAX_FAULTS]:
        console.print(f"- {fault}", markup=False, style="red", soft_wrap=True)
    console.print(f"[bold red]FAILED[/] {len(faults):,} faults.")
    return False


def table_of(audit: Audit, http_requests: int) -> Table:
    """Shows what became of the calls of each task, and of all."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column(width=24)
    for name in ("count_click", "reputation", "both"):
        table.add_column(name, justify="right", width=14)
    audits = [audit.of("count_click"), audit.of("reputation"), audit]

    def row(name: str, cell: Callable[[Audit], int | str]) -> None:
        cells = [cell(one) for one in audits]
        table.add_row(name, *(f"{one:,}" if isinstance(one, int) else one for one in cells))

    row("calls accepted", lambda one: len(one.accepted()))
    row("executed exactly once", lambda one: one.executed_once())
    clicks, answers = audit.clicks.total(), audit.checked
    table.add_row("results checked", f"{clicks:,} clicks", f"{answers:,} answers", "")
    table.add_row("HTTP requests", "", f"{http_requests:,}", "")
    table.add_section()
    row("batches", lambda one: len(one.runs))
    row(f"  by count, {FLUSH_EVERY} calls", lambda one: sum(run.full for run in one.runs))
    row(f"  by interval, {FLUSH_INTERVAL:g} s", lambda one: sum(not run.full for run in one.runs))
    row("    oldest call waited", lambda one: _waits(one.runs))
    row("  size, min/median/max", lambda one: _sizes(one.runs))
    table.add_section()
    for worker in shares(audit.runs):
        table.add_row(f"executed by {worker}", *(_share(one.runs, worker) for one in audits))
    row("accepted per second", lambda one: round(one.accept_rate))
    row("executed per second", lambda one: round(one.execute_rate))
    return table


def _sizes(runs: list[Run]) -> str:
    sizes = [len(run.ids) for run in runs]
    return f"{min(sizes)}/{median(sizes):g}/{max(sizes)}" if sizes else ""


def _waits(runs: list[Run]) -> str:
    waits = [run.waited for run in runs if not run.full]
    return f"{min(waits):.2f} to {max(waits):.2f} s" if waits else ""


def _share(runs: list[Run], worker: str) -> str:
    counts = shares(runs)
    return f"{counts.get(worker, 0) / max(sum(counts.values()), 1):.0%}"
