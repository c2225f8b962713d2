"""The picture while it runs: live in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from examples.demo import ledger
from examples.demo.ledger import Run
from examples.demo.producer import Plan
from examples.demo.tasks import FLUSH_EVERY, FLUSH_INTERVAL, count_click, reputation

#: Seconds between two looks at Redis.
LOOK_INTERVAL = 0.1
#: Seconds between two lines where there is no terminal.
LINE_INTERVAL = 2.0


@dataclass
class Progress:
    """How far the calls are, as Redis and the ledger say.

    Attributes:
        plan: How many there will be.
        pushed: Accepted so far.
        waiting: In Redis, for a batch.
        running: In a batch that runs.
        done: Executed and settled.
        runs: Every run of a batch so far.
    """

    plan: Plan
    pushed: int = 0
    waiting: int = 0
    running: int = 0
    done: int = 0
    runs: list[Run] = field(default_factory=list)

    def look(self) -> None:
        """Brings it up to date."""
        stats = [task.stats() for task in (count_click, reputation)]
        self.pushed = sum(counts["pushed"] for counts in stats)
        self.waiting = sum(counts["waiting"] for counts in stats)
        self.running = sum(counts["running"] for counts in stats)
        self.done = sum(counts["acked"] for counts in stats)
        self.runs += ledger.read_runs(len(self.runs))

    @property
    def idle(self) -> bool:
        """Whether everything that was accepted is done."""
        return self.pushed == self.done and self.waiting == self.running == 0

    @property
    def phase(self) -> str:
        """What happens now."""
        if self.pushed == 0:
            return "the producers start"
        if self.pushed < self.plan.calls - self.plan.quiet:
            return "rush: both producers send as fast as they can"
        if self.pushed < self.plan.calls:
            return "quiet: few calls, so the interval makes batches due"
        if not self.idle:
            return "the last batches"
        return "the producers check their answers"


class Display:
    """Shows progress for the length of a `with` block."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._live = Live(console=console, transient=True, auto_refresh=False)
        self._next_look = 0.0
        self._next_line = time.monotonic() + LINE_INTERVAL

    def __enter__(self) -> Display:
        if self._console.is_interactive:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def update(self) -> None:
        """Looks again and shows it, if it is time to."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_INTERVAL
        self._progress.look()
        if self._console.is_interactive:
            self._live.update(picture(self._progress), refresh=True)
        elif now >= self._next_line:
            self._next_line = now + LINE_INTERVAL
            self._console.print(line(self._progress))


def picture(progress: Progress) -> Panel:
    """Draws it all."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=8)
    grid.add_column(width=32)
    grid.add_column(justify="right", width=7)
    grid.add_column(style="dim")

    def row(name: str, count: int, total: int, note: str, style: str) -> None:
        bar = ProgressBar(max(total, 1), count, complete_style=style, finished_style=style)
        grid.add_row(name, bar, f"{count:,}", note)

    calls = progress.plan.calls
    row("pushed", progress.pushed, calls, f"of {calls:,}", "magenta")
    grid.add_row("waiting", "", f"{progress.waiting:,}", f"and {progress.running:,} running")
    row("done", progress.done, calls, f"in {len(progress.runs):,} batches", "green")
    grid.add_row()
    shares = ledger.shares(progress.runs)
    executed = sum(shares.values())
    for worker, count in shares.items():
        row(worker, count, executed, f"{count / executed:.0%}", "cyan")
    full = sum(run.full for run in progress.runs)
    batches = (
        f"[bold]{full:,}[/] batches by count ({FLUSH_EVERY} calls),"
        f" [bold]{len(progress.runs) - full:,}[/] by interval ({FLUSH_INTERVAL:g} s)"
    )
    return Panel(Group(grid, "", batches), title=progress.phase, width=78, padding=(1, 2))


def line(progress: Progress) -> str:
    """Says it in one line."""
    return (
        f"  {progress.pushed:>7,} pushed {progress.waiting:>5,} waiting {progress.running:>5,} "
        f"running {progress.done:>7,} done {len(progress.runs):>5,} batches"
    )
