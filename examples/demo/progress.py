"""The picture while it runs: live in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from examples.demo import ledger
from examples.demo.ledger import Run
from examples.demo.tasks import FLUSH_EVERY, count_click, reputation

#: Seconds between two lines where there is no terminal.
LINE_INTERVAL = 2.0
#: Seconds between two looks at Redis.
LOOK_INTERVAL = 0.1


@dataclass
class Progress:
    """How far the calls are, as Redis and the ledger say.

    Attributes:
        calls: How many there will be.
        pushed: Accepted so far.
        waiting: In Redis, for a batch.
        running: In a batch that runs.
        done: Executed and settled.
        runs: Every run of a batch so far.
    """

    calls: int
    pushed: int = 0
    waiting: int = 0
    running: int = 0
    done: int = 0
    runs: list[Run] = field(default_factory=list)

    def look(self) -> None:
        """Brings it up to date."""
        stats = [task.stats() for task in (count_click, reputation)]
        self.pushed = sum(one["pushed"] for one in stats)
        self.waiting = sum(one["waiting"] for one in stats)
        self.running = sum(one["running"] for one in stats)
        self.done = sum(one["acked"] for one in stats)
        self.runs += ledger.read_runs(len(self.runs))

    @property
    def full(self) -> int:
        """Batches that the count made due; the others ran by the interval."""
        return sum(len(run.ids) == FLUSH_EVERY for run in self.runs)

    @property
    def shares(self) -> dict[str, int]:
        """Calls that each worker executed."""
        shares: Counter[str] = Counter()
        for run in self.runs:
            shares[run.worker] += len(run.ids)
        return dict(sorted(shares.items()))


class Display:
    """Shows progress for the length of a `with` block."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._live = Live(console=console, transient=True, auto_refresh=False)
        self._next_look = self._next_line = 0.0

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def update(self, title: str) -> None:
        """Looks again and shows it, if it is time to."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_INTERVAL
        self._progress.look()
        if self._console.is_terminal:
            self._live.update(picture(self._progress, title), refresh=True)
        elif now >= self._next_line:
            self._next_line = now + LINE_INTERVAL
            self._console.print(line(self._progress, title))


def picture(progress: Progress, title: str) -> Panel:
    """Draws it all."""
    calls = Table.grid(padding=(0, 2))
    calls.add_column(width=8)
    calls.add_column(width=36)
    calls.add_column(justify="right", width=7)
    calls.add_column()
    for name, count in (("pushed", progress.pushed), ("done", progress.done)):
        share = f"[dim]of {progress.calls:,}[/]" if name == "pushed" else ""
        calls.add_row(name, ProgressBar(progress.calls, count), f"{count:,}", share)
    waits = f"[dim]and {progress.running:,} running[/]"
    calls.add_row(
        "waiting", ProgressBar(progress.calls, progress.waiting), f"{progress.waiting:,}", waits
    )
    calls.add_row()
    executed = sum(progress.shares.values()) or 1
    for worker, count in progress.shares.items():
        bar = ProgressBar(executed, count, complete_style="cyan", finished_style="cyan")
        calls.add_row(worker, bar, f"{count:,}", f"{count / executed:.0%}")
    by_interval = len(progress.runs) - progress.full
    batches = (
        f"batches   [bold]{progress.full}[/] full, at {FLUSH_EVERY} calls"
        f"   [bold]{by_interval}[/] smaller, by the interval"
    )
    return Panel(Group(calls, "", batches), title=title, width=78, padding=(1, 2))


def line(progress: Progress, title: str) -> str:
    """Says it in one line."""
    return (
        f"{title}: {progress.pushed:,} pushed, {progress.waiting:,} waiting, "
        f"{progress.running:,} running, {progress.done:,} done, {len(progress.runs)} batches"
    )
